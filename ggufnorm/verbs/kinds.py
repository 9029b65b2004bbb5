"""Which kinds of locations each verb takes, and the command that was meant instead."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Literal

from ggufnorm.errors import InputError
from ggufnorm.formats.forms import GGUF_KINDS, AnyLocation, Kind, Location, parse
from ggufnorm.verbs.meant import (
    MEANT,
    MODELS,
    SHAPES,
    SOURCE_KINDS,
    command,
    corrected,
    is_checkpoint,
    models_in,
    quoted_folder,
    sentence_for,
)
from ggufnorm.verbs.meant import example as example

Verb = Literal[
    "check", "inspect", "audit", "fix", "diff", "drift", "quants", "attribute", "recipe", "trace",
    "compare", "verify", "pixels", "audio", "report",
]  # fmt: skip
"""A command, and the function of the same name."""

TAKES: Mapping[str, frozenset[Kind]] = {
    "check": SOURCE_KINDS | {"gguf", "mmproj", "text", "picture", "sound"},
    "inspect": GGUF_KINDS | {"onnx", "models", "directory"},
    "audit": frozenset({"gguf", "mmproj", "imatrix", "adapter", "models", "directory"}),
    "fix": frozenset({"gguf", "mmproj"}),
    "diff": GGUF_KINDS,
    "drift": frozenset({"gguf", "onnx"}),
    "quants": frozenset({"gguf"}),
    "attribute": frozenset({"gguf"}),
    "recipe": frozenset({"gguf"}),
    "verify": frozenset({"gguf", "mmproj"}),
    "trace": frozenset({"gguf", "onnx", "checkpoint"}),
    "compare": frozenset({"gguf", "mmproj", "trace", "onnx", "checkpoint"}),
    "pixels": frozenset({"picture"}),
    "audio": frozenset({"sound"}),
    "report": frozenset({"report"}),
}
"""Kinds by verb. An unknown file is taken by all: whoever opens it says what is wrong with it."""


def wrong_turn(verb: str, locations: Sequence[AnyLocation]) -> str | None:
    """The sentence that sends a user to another command; None if the verb takes all locations.

    Args:
        verb: one of :data:`Verb`.
        locations: all that it was given, in order.
    """
    places = [parse(location) for location in locations]
    for place in places:
        if verb == "check" and place.kind == "safetensors" and is_checkpoint(place):
            continue  # stands for its folder
        if TAKES[verb] >= GGUF_KINDS and place.is_gguf and place.kind != "webpage":
            continue  # which of them it is takes the whole header to tell
        if place.kind == "folder" and verb in ("inspect", "audit") and models_in(place):
            continue  # a repository with both
        if place.kind == "folder" and verb == "compare":
            return f"{place.text} is a checkpoint's folder: use {command(verb, places)}"
        if place.kind not in {"unknown", *TAKES[verb], *_taken_together(verb, places)}:
            return sentence_for(verb, place, places)
    if verb == "drift":
        return _two_engines(places)
    if verb == "check" and not any(place.kind in {*MODELS, "unknown"} for place in places):
        return sentence_for(verb, places[0], places) if places else None
    return _wrong_comparison(places) if verb == "compare" else None


def wrong_source(verb: str, model: AnyLocation, source: AnyLocation) -> str | None:
    """The sentence on a ``--source`` that is no checkpoint; None if it may be one.

    Args:
        verb: one of :data:`Verb`.
        model: that it is to be the source of.
        source: as it was given.
    """
    it, place = parse(source), parse(model)
    is_remote = it.kind == "gguf" and it.scheme in ("http", "hub")
    if it.kind in ("unknown", *SOURCE_KINDS) or is_remote:
        return None
    required = SHAPES[verb][1] if verb in SHAPES else ""
    asked = f"ggufnorm {verb} {shlex.quote(place.text)} --source"
    if it.kind == "safetensors" and is_checkpoint(it):
        return f"{it.text} is a file of a checkpoint: use {asked} {quoted_folder(it)}{required}"
    if it.kind in ("repository", "webpage"):
        meant = corrected(it)
        return f"{it.text} {MEANT[it.kind].what}: use {asked} {shlex.quote(meant)}{required}"
    if it.kind == "gguf":
        is_better = verb == "check"
        meant = command("check", [place, it]) if is_better else command("diff", [it, place])
        return f"{it.text} is a GGUF model: use {meant}"
    if it.kind == "onnx":
        return f"{it.text} is an ONNX model: use {command('compare', [it, place])}"
    return f"{it.text} {MEANT[it.kind].what}, and no checkpoint: use {asked} FOLDER{required}"


def wrong_text(verb: str, text: AnyLocation) -> str | None:
    """The sentence on a text to run that is none; None if it may be one."""
    it = parse(os.fspath(text))
    if it.kind in ("text", "report", "unknown", "repository") or it.scheme != "path":
        return None
    names, required = SHAPES[verb]
    asked = f"ggufnorm {verb} {' '.join(names)} -f TEXT{required}"
    return f"{it.text} {MEANT[it.kind].what}, and no text: use {asked}"


def require_kinds(verb: str, *locations: AnyLocation) -> None:
    """Make sure that a verb takes these locations.

    Raises:
        InputError: another command was meant; the message has it.
    """
    sentence = wrong_turn(verb, locations)
    if sentence is not None:
        raise InputError(sentence)


def require_source(verb: str, model: AnyLocation, source: AnyLocation | None) -> None:
    """Make sure that ``--source`` may be a checkpoint.

    Raises:
        InputError: it is something else; the message has the command that was meant.
    """
    sentence = None if source is None else wrong_source(verb, model, source)
    if sentence is not None:
        raise InputError(sentence)


def _taken_together(verb: str, places: Sequence[Location]) -> frozenset[Kind]:
    """Kinds that a verb takes if all are of that kind: two versions of an encoder."""
    kinds = {place.kind for place in places}
    return frozenset(kinds) if verb == "drift" and kinds == {"mmproj"} else frozenset()


def _wrong_comparison(places: Sequence[Location]) -> str | None:
    kinds = [place.kind for place in places]
    if len(places) > 1 and set(kinds) == MODELS:
        return sentence_for("drift", places[kinds.index("mmproj")], places)
    if len(places) > 1 and MODELS.issuperset(kinds):
        return f"both are models: use {command('drift', places[:2])}"
    if "trace" in kinds and "checkpoint" in kinds:
        checkpoint = places[kinds.index("checkpoint")]
        run = command("trace", [checkpoint])
        return f"{checkpoint.text} must be run first: use {run} -o FILE, and compare FILE"
    if kinds[0] in MODELS and not MODELS.union({"trace", "unknown"}).issuperset(kinds):
        return f"the source comes first: use {command('compare', places)}"
    return None


def _two_engines(places: Sequence[Location]) -> str | None:
    """Drift runs both sides in one engine."""
    found = [place for place in places if place.kind == "onnx"]
    if not found or all(place.kind in ("onnx", "unknown") for place in places):
        return None
    return f"{found[0].text} {MEANT['onnx'].what}: use {command('compare', places)}"
