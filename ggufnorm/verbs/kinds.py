"""Which kinds of locations each verb takes, and the command that was meant instead."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ggufnorm.errors import InputError
from ggufnorm.formats.forms import GGUF_KINDS, AnyLocation, Kind, Location, parse

Verb = Literal[
    "inspect",
    "audit",
    "fix",
    "diff",
    "drift",
    "quants",
    "attribute",
    "recipe",
    "trace",
    "compare",
    "verify",
]
"""A command, and the function of the same name."""

TAKES: Mapping[str, frozenset[Kind]] = {
    "inspect": GGUF_KINDS | {"onnx"},
    "audit": frozenset({"gguf", "mmproj", "imatrix"}),
    "fix": frozenset({"gguf", "mmproj"}),
    "diff": GGUF_KINDS,
    "drift": frozenset({"gguf", "onnx"}),
    "quants": frozenset({"gguf"}),
    "attribute": frozenset({"gguf"}),
    "recipe": frozenset({"gguf"}),
    "verify": frozenset({"gguf", "mmproj"}),
    "trace": frozenset({"gguf", "onnx", "checkpoint"}),
    "compare": frozenset({"gguf", "mmproj", "trace", "onnx", "checkpoint"}),
}
"""Kinds by verb. An unknown file is taken by all: whoever opens it says what is wrong with it."""

_MERGE = "`llama-export-lora -m MODEL --lora {it} -o MERGED` first, then the merged model"
_LOOK, _SOURCE = "inspect {it}", "audit MODEL --source {folder}"

_MEANT: Mapping[Kind, tuple[str, str, str]] = {
    # what it is; the command that was meant by a verb of one model; by a verb of several
    "trace": ("is a saved trace", "compare {it} MODEL", "compare {all}"),
    "onnx": ("is an ONNX model", "inspect {it}", "compare {all}"),
    "mmproj": ("is an image or audio encoder", "compare hf:FOLDER {it}", "compare hf:FOLDER {it}"),
    "adapter": ("is a LoRA adapter", _MERGE, _MERGE),
    "vocabulary": ("is a vocabulary without weights", _LOOK, _LOOK),
    "imatrix": ("is an importance matrix", "audit {it}", "audit {it}"),
    "safetensors": ("is a checkpoint's safetensors file", _SOURCE, _SOURCE),
    "checkpoint": ("is a checkpoint", "audit MODEL --source {name}", "compare {all}"),
    "folder": ("is a checkpoint's folder", "audit MODEL --source {name}", "compare {all}"),
}

_MODELS: frozenset[Kind] = frozenset({"gguf", "mmproj"})
_SOURCES: tuple[Kind, ...] = ("checkpoint", "folder", "onnx")
"""What may be the source of a comparison across frameworks, the likeliest first."""


def wrong_turn(verb: str, locations: Sequence[AnyLocation]) -> str | None:
    """The sentence that sends a user to another command; None if the verb takes all locations.

    Args:
        verb: one of :data:`Verb`.
        locations: all that it was given, in order.
    """
    places = [parse(location) for location in locations]
    for place in places:
        if TAKES[verb] >= GGUF_KINDS and place.is_gguf:
            continue  # which of them it is takes the whole header to tell
        if place.kind == "folder" and "checkpoint" in TAKES[verb]:
            return f"{place.text} is a checkpoint's folder: use {_command(verb, places)}"
        if place.kind not in {"unknown", *TAKES[verb], *_taken_together(verb, places)}:
            what, alone, together = _MEANT[place.kind]
            template = alone if len(places) == 1 else together
            return f"{place.text} {what}: use {_filled(template, place, places)}"
    if verb == "drift":
        return _two_engines(places)
    return _wrong_comparison(places) if verb == "compare" else None


def _taken_together(verb: str, places: Sequence[Location]) -> frozenset[Kind]:
    """Kinds that a verb takes if all are of that kind: two versions of an encoder."""
    kinds = {place.kind for place in places}
    return frozenset(kinds) if verb == "drift" and kinds == {"mmproj"} else frozenset()


def require_kinds(verb: str, *locations: AnyLocation) -> None:
    """Make sure that a verb takes these locations.

    Raises:
        InputError: another command was meant; the message has it.
    """
    sentence = wrong_turn(verb, locations)
    if sentence is not None:
        raise InputError(sentence)


def _wrong_comparison(places: Sequence[Location]) -> str | None:
    kinds = [place.kind for place in places]
    if len(places) > 1 and _MODELS.issuperset(kinds):
        return f"both are models: use {_command('drift', places[:2])}"
    if "trace" in kinds and "checkpoint" in kinds:
        checkpoint = places[kinds.index("checkpoint")]
        command = _command("trace", [checkpoint])
        return f"{checkpoint.text} must be run first: use {command} -o FILE, and compare FILE"
    if kinds[0] in _MODELS and not _MODELS.union({"trace", "unknown"}).issuperset(kinds):
        return f"the source comes first: use {_command('compare', places)}"
    return None


def _two_engines(places: Sequence[Location]) -> str | None:
    """Drift runs both sides in one engine."""
    found = [place for place in places if place.kind == "onnx"]
    if not found or all(place.kind in ("onnx", "unknown") for place in places):
        return None
    return f"{found[0].text} {_MEANT['onnx'][0]}: use {_command('compare', places)}"


def _filled(template: str, it: Location, places: Sequence[Location]) -> str:
    if template.startswith("`"):  # another program's
        return template.format(it=shlex.quote(it.text))
    verb, _, rest = template.partition(" ")
    if rest == "{all}":
        return _command(verb, places)
    names = {"it": it.text, "name": it.name, "folder": str(Path(it.name).parent)}
    return f"ggufnorm {verb} " + rest.format(**{n: shlex.quote(v) for n, v in names.items()})


def _command(verb: str, places: Sequence[Location]) -> str:
    """A command line with these locations, the source of a comparison in front."""
    if verb == "compare":
        places = sorted(places, key=_position)
    return " ".join(["ggufnorm", verb, *(shlex.quote(_corrected(place)) for place in places)])


def _position(place: Location) -> int:
    return _SOURCES.index(place.kind) if place.kind in _SOURCES else len(_SOURCES)


def _corrected(place: Location) -> str:
    return f"hf:{place.name}" if place.kind == "folder" else place.text
