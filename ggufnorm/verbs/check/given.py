"""What a check was given: each location is taken for what its kind says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggufnorm.core.check import Given
from ggufnorm.errors import InputError
from ggufnorm.formats.forms import AnyLocation, Location, parse
from ggufnorm.verbs.kinds import wrong_turn

_TEXTS = (".txt", ".md", ".text")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SOUNDS = (".wav",)


@dataclass(frozen=True)
class Evidence:
    """The locations to look at.

    Attributes:
        model: the file that is suspected.
        source: the checkpoint that it was converted from.
        reference: a better quant of the same network.
        encoder: the image or audio encoder that goes with the model.
        text: a text file to run.
        image: a picture to feed to the encoder.
        sound: a recording to feed to the encoder.
    """

    model: str = ""
    source: str | None = None
    reference: str | None = None
    encoder: str | None = None
    text: str | None = None
    image: str | None = None
    sound: str | None = None

    @property
    def given(self) -> tuple[Given, ...]:
        """All that there is, and what it is taken for."""
        found = {
            "model": self.model,
            "source": self.source,
            "better quant": self.reference,
            "encoder": self.encoder,
            "text": self.text,
            "picture": self.image,
            "sound": self.sound,
        }
        return tuple(Given(role, location) for role, location in found.items() if location)


def sort_evidence(
    locations: Sequence[AnyLocation],
    *,
    source: AnyLocation | None = None,
    reference: AnyLocation | None = None,
) -> Evidence:
    """Tell what each location is.

    Args:
        locations: the model first; a checkpoint, a better quant, an encoder (mmproj), a text,
            a picture or a sound in any order.
        source: the checkpoint, where it is named as such.
        reference: the better quant, where it is named as such.

    Raises:
        InputError: there is no model, there are two of something, or one is of a kind that
            another command takes.
    """
    found = Evidence(
        source=None if source is None else _source(os.fspath(source)),
        reference=None if reference is None else os.fspath(reference),
    )
    for location in locations:
        found = _with(found, parse(location))
    if not found.model and found.encoder:
        found = replace(found, model=found.encoder, encoder=None)
    if not found.model:
        raise InputError("there is no model to check: name a GGUF file")
    return found


def _with(found: Evidence, place: Location) -> Evidence:
    role = _role(found, place)
    if getattr(found, role) not in (None, ""):
        raise InputError(
            f"{place.text} is one {_NAMES[role]} too many beside {getattr(found, role)}"
        )
    location = _source(place.text) if role == "source" else place.text
    return replace(found, **{role: location})


_NAMES = {
    "model": "model", "source": "source", "reference": "model", "encoder": "encoder",
    "text": "text", "image": "picture", "sound": "sound",
}  # fmt: skip


def _role(found: Evidence, place: Location) -> str:
    suffix = Path(place.name).suffix.lower()
    for role, suffixes in (("text", _TEXTS), ("image", _PICTURES), ("sound", _SOUNDS)):
        if place.scheme == "path" and suffix in suffixes:
            return role
    if place.kind in ("checkpoint", "folder"):
        return "source"
    if place.kind == "safetensors" and (Path(place.name).parent / "config.json").is_file():
        return "source"
    if place.kind == "mmproj":
        return "encoder"
    if place.scheme == "path" and Path(place.name).is_dir():
        raise InputError(f"{place.text} is a folder{_models_in(Path(place.name))}")
    if place.kind == "onnx":
        raise InputError(
            f"{place.text} is an ONNX model: use ggufnorm compare SOURCE {place.text}, or"
            f" ggufnorm inspect {place.text}"
        )
    turn = wrong_turn("audit", [place.text])
    if turn is not None:
        raise InputError(turn)
    return "model" if not found.model else "reference"


def _models_in(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.gguf"))
    if not names:
        return " without config.json and without a GGUF file: name the model"
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f" with {shown}: name one of them, the suspected one first"


def _source(location: str) -> str:
    """A checkpoint's folder, however it was written."""
    place = parse(location)
    if place.kind == "safetensors":
        return str(Path(place.name).parent)
    return place.name if place.scheme == "checkpoint" else place.text
