"""What a check was given: each location is taken for what its kind says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggufnorm.core.check import Given
from ggufnorm.errors import InputError
from ggufnorm.formats.files import no_such_file
from ggufnorm.formats.forms import AnyLocation, Kind, Location, parse
from ggufnorm.verbs.kinds import require_kinds, require_source

_ROLES: dict[Kind, str] = {
    "checkpoint": "source", "folder": "source", "safetensors": "source", "mmproj": "encoder",
    "text": "text", "picture": "image", "sound": "sound",
}  # fmt: skip
"""What a location is taken for; a GGUF model is the model, or the reference of one."""


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
    require_kinds("check", *locations)
    found = Evidence(
        source=None if source is None else _source(os.fspath(source)),
        reference=None if reference is None else os.fspath(reference),
    )
    for location in locations:
        place = parse(location)
        if place.scheme == "path" and not Path(place.name).exists():
            raise InputError(no_such_file(place.name))
        found = _with(found, place)
    if not found.model and found.encoder:
        found = replace(found, model=found.encoder, encoder=None)
    if not found.model:
        raise InputError("there is no model to check: use ggufnorm check MODEL")
    require_source("check", found.model, source)
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
    role = _ROLES.get(place.kind)
    if role is not None:
        return role
    return "model" if not found.model else "reference"


def _source(location: str) -> str:
    """A checkpoint's folder, however it was written."""
    place = parse(location)
    if place.kind == "safetensors":
        return str(Path(place.name).parent)
    return place.name if place.scheme == "checkpoint" else place.text
