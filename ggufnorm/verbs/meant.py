"""What each kind of location is called, and the command that was meant by whoever gave one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufnorm.errors import InputError
from ggufnorm.formats.forms import AnyLocation, Kind, Location, parse, web_page
from ggufnorm.formats.gguf import GGUFFile

SOURCE_KINDS: frozenset[Kind] = frozenset({"checkpoint", "folder"})

SHAPES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "check": (("MODEL",), ""),
    "inspect": (("MODEL",), ""),
    "audit": (("MODEL",), ""),
    "fix": (("MODEL",), " -o FIXED.gguf"),
    "diff": (("A", "B"), ""),
    "drift": (("REF", "QUANT"), ""),
    "quants": (("REF", "QUANT"), ""),
    "attribute": (("REF", "QUANT"), ""),
    "recipe": (("REF", "QUANT"), ""),
    "verify": (("QUANT",), " --from F16"),
    "trace": (("MODEL",), " -o TRACE.safetensors"),
    "compare": (("REF", "QUANT"), ""),
}
"""What each verb of models is given, and the option that it cannot do without."""

_OF_FILES = ("pixels", "audio", "report")
"""Verbs of no model."""

_WITH_TEXT = frozenset({"check", "drift", "quants", "attribute", "recipe", "trace"})
"""Verbs that run a text of the user's."""


@dataclass(frozen=True)
class _Meant:
    """A kind of location, and the command that was meant by whoever gave one.

    Templates are filled by :func:`_filled`; one that begins with a backtick is another program's.

    Attributes:
        what: it is, as the end of a sentence.
        alone: the command where it was given alone.
        together: with others.
        of_verb: of some verbs, whatever else was given.
    """

    what: str
    alone: str
    together: str
    of_verb: Mapping[str, str]


def _meant(what: str, alone: str, together: str = "", **of_verb: str) -> _Meant:
    return _Meant(what, alone, together or alone, of_verb)


_MERGE = "`llama-export-lora -m {model} --lora {it} -o MERGED.gguf` first, then the merged model"
_AUDIT, _TRACE = "audit {model} --source {name}", "trace hf:{name} -o TRACE.safetensors"
_ITSELF = "{verb} {corrected}{required}"

MEANT: Mapping[Kind, _Meant] = {
    "gguf": _meant("is a GGUF model", "check {it}"),
    "mmproj": _meant(
        "is an image or audio encoder", "compare {checkpoint} {it}",
        check="check {it}", report="check {it}", pixels="pixels IMAGE --mmproj {it}",
        audio="audio SOUND.wav --mmproj {it}",
    ),
    "trace": _meant("is a saved trace", "compare {it} {model}", "compare {all}"),
    "onnx": _meant("is an ONNX model", "inspect {it}", "compare {all}"),
    "adapter": _meant("is a LoRA adapter", _MERGE),
    "vocabulary": _meant("is a vocabulary without weights", "inspect {it}"),
    "imatrix": _meant("is an importance matrix", "audit {it}"),
    "checkpoint": _meant(
        "is a checkpoint", _AUDIT, "compare {all}", check="check {model} {name}",
        fix="fix {model} --source {name}{required}", verify=_AUDIT,
        pixels="pixels IMAGE --processor {name}", audio="audio SOUND.wav --processor {name}",
    ),
    "folder": _meant(
        "is a checkpoint's folder", _AUDIT, "compare {all}", check="check {model} {name}",
        fix="fix {model} --source {name}{required}", verify=_AUDIT, trace=_TRACE,
        pixels="pixels IMAGE --processor {name}", audio="audio SOUND.wav --processor {name}",
    ),
    "safetensors": _meant(
        "is a checkpoint's safetensors file", _AUDIT, "compare {all}", trace=_TRACE,
        check="check {model} {name}", verify=_AUDIT,
        fix="fix {model} --source {name}{required}",
    ),
    "models": _meant("is a folder of GGUF files", _ITSELF, pixels="audit {it}",
                     audio="audit {it}", report="audit {it}"),
    "picture": _meant("is a picture", "pixels {it} --processor FOLDER"),
    "sound": _meant("is a sound", "audio {it} --processor FOLDER"),
    "array": _meant("is a NumPy array", "pixels IMAGE --array {it} --processor FOLDER",
                    audio="audio SOUND.wav --array {it} --processor FOLDER"),
    "text": _meant("is a text", "check {model} {it}",
                   **dict.fromkeys(_WITH_TEXT, "{verb} {models} -f {it}{required}")),
    "report": _meant("is a saved result", "report {it}"),
    "pickle": _meant(
        "holds PyTorch pickles, which can run code and are never loaded",
        "`model.save_pretrained(FOLDER)` in Transformers first, then FOLDER",
    ),
    "directory": _meant("is a folder without config.json and without GGUF files",
                        "{verb} {models}{required}", pixels="pixels IMAGE --processor FOLDER",
                        audio="audio SOUND.wav --processor FOLDER", report="report FILE.json"),
    "repository": _meant("is no path here; if it is a repository on the Hub", _ITSELF,
                         **dict.fromkeys(_OF_FILES, "check {corrected}")),
    "webpage": _meant("is a page for browsers", _ITSELF,
                      **dict.fromkeys(_OF_FILES, "check {corrected}")),
}  # fmt: skip

MODELS: frozenset[Kind] = frozenset({"gguf", "mmproj"})
_SOURCES: tuple[Kind, ...] = ("checkpoint", "folder", "safetensors", "onnx")
"""What may be the source of a comparison across frameworks, the likeliest first."""


def example(verb: str, locations: Sequence[AnyLocation]) -> str:
    """A command line of a verb of models, with placeholders for what is missing.

    Args:
        verb: one of :data:`Verb`.
        locations: that it was given.
    """
    names, required = SHAPES[verb]
    given = [shlex.quote(parse(location).text) for location in locations]
    return f"ggufnorm {verb} {' '.join([*given, *names[len(given) :]])}{required}"


def sentence_for(verb: str, it: Location, places: Sequence[Location]) -> str:
    """The sentence that sends a user on who gave ``it`` among ``places`` to a verb."""
    meant = MEANT[it.kind]
    if it.kind == "safetensors" and not is_checkpoint(it):
        return (
            f"{it.text} {meant.what} without its config.json: download the whole checkpoint, then"
            f" use {_filled('audit {model} --source FOLDER', verb, it, places)}"
        )
    if verb == "compare" and MODELS.issuperset({p.kind for p in places} - {it.kind}):
        verb = "drift" if it.kind in ("models", "directory") else verb
    if verb in ("pixels", "audio") and it.kind == "directory" and _has_processor(it):
        command_line = _filled(MEANT["folder"].of_verb[verb], verb, it, places)
        return f"{it.text} is a processor's folder: use {command_line}"
    if verb in ("pixels", "audio"):
        verb = _feeding(verb, it)
    template = meant.of_verb.get(verb) or (meant.alone if len(places) == 1 else meant.together)
    if len(places) > 1 and {place.kind for place in places} in ({"onnx"}, {"mmproj"}):
        template = "drift {all}" if verb in ("diff", "attribute", "recipe") else template
    if it.kind == "imatrix" and verb == "recipe" and len(_given_models(places)) == 2:
        template = "recipe {models} --imatrix {it}"
    return f"{it.text} {meant.what}: use {_filled(template, verb, it, places)}"


def _feeding(verb: str, it: Location) -> str:
    """``pixels`` or ``audio``, whichever goes with what was given; empty if neither does."""
    if it.kind in ("folder", "checkpoint"):
        return verb if _has_processor(it) else ""
    if it.kind != "mmproj":
        return verb
    try:
        with GGUFFile(it.name) as file:
            hears, sees = (
                file.metadata.get(f"clip.has_{sense}_encoder") is True
                for sense in ("audio", "vision")
            )
    except InputError:  # whoever opens it says why
        return verb
    return "audio" if hears and not (sees and verb == "pixels") else "pixels"


def _has_processor(place: Location) -> bool:
    names = ("preprocessor_config.json", "processor_config.json")
    return any((Path(place.name) / name).is_file() for name in names)


def _filled(template: str, verb: str, it: Location, places: Sequence[Location]) -> str:
    """A template's command: ``{it}``, and what else was given or a placeholder for it."""
    meant, _, rest = template.partition(" ")
    if rest == "{all}":
        return command(meant, places)
    names, required = SHAPES.get(verb, ((), ""))
    models = [shlex.quote(place.text) for place in _given_models(places)]
    n_models = None if verb == "quants" else max(len(names), 1)
    checkpoint = next((p for p in places if p.kind in (*SOURCE_KINDS, "safetensors")), None)
    line = template.format(
        verb=verb,
        it=shlex.quote(it.text),
        name=quoted_folder(it),
        corrected=" ".join(shlex.quote(corrected(place)) for place in places),
        checkpoint=shlex.quote(corrected(checkpoint)) if checkpoint else "hf:FOLDER",
        model=models[0] if models else "MODEL",
        models=" ".join([*models, *names[len(models) :]][:n_models]),
        required=required,
    )
    return line if template.startswith("`") else f"ggufnorm {line}"


def command(verb: str, places: Sequence[Location]) -> str:
    """A command line with these locations, the source of a comparison in front."""
    if verb == "compare":
        places = sorted(places, key=_position)
    return " ".join(["ggufnorm", verb, *(shlex.quote(corrected(place)) for place in places)])


def _position(place: Location) -> int:
    return _SOURCES.index(place.kind) if place.kind in _SOURCES else len(_SOURCES)


def _given_models(places: Sequence[Location]) -> list[Location]:
    return [place for place in places if place.kind in MODELS]


def corrected(place: Location) -> str:
    """The location as it should have been written."""
    if place.kind in ("folder", "safetensors"):
        return f"hf:{_folder(place)}"
    if place.kind == "models":
        return next(iter(models_in(place)), place.text)
    if place.kind == "repository":
        return f"hf://{place.text}"
    return web_page(place.name) or place.text if place.kind == "webpage" else place.text


def models_in(place: Location) -> list[str]:
    """The GGUF files of a folder, and of the folders in it."""
    folder = Path(place.name)
    return sorted(str(path) for depth in ("*.gguf", "*/*.gguf") for path in folder.glob(depth))


def _folder(place: Location) -> str:
    """The checkpoint's folder."""
    return str(Path(place.name).parent) if place.kind == "safetensors" else place.name


def quoted_folder(place: Location) -> str:
    """The folder of a checkpoint, or of one of its files, for a shell."""
    return shlex.quote(_folder(place))


def is_checkpoint(place: Location) -> bool:
    """Whether a safetensors file has its ``config.json`` beside it."""
    return (Path(place.name).parent / "config.json").is_file()
