"""The constants that vision encoders normalize pixels with, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

from ggufnorm.core.pixels import KNOWN
from ggufnorm.core.tolerances import PIXEL_CONSTANT
from ggufnorm.formats.gguf_constants import Keys

MEAN: str = Keys.ClipVision.IMAGE_MEAN
STD: str = Keys.ClipVision.IMAGE_STD

LARGEST = 2.0
"""Largest mean or deviation of pixels in the range 0 to 1, with room to spare."""


_SHOWN = {"SigLIP": "SigLIP's and Inception's"}

TRAINED_WITH: dict[str, str] = {
    "gemma3": "SigLIP",
    "gemma3nv": "MobileNet",
    "glm4v": "CLIP",
    "idefics3": "SigLIP",
    "internvl": "ImageNet",
    "janus_pro": "SigLIP",
    "kimivl": "SigLIP",
    "lfm2": "SigLIP",
    "llama4": "SigLIP",
    "pixtral": "CLIP",
    "qwen2.5vl_merger": "CLIP",
    "qwen2vl_merger": "CLIP",
    "qwen3vl_merger": "SigLIP",
}
"""Projector types whose models were all trained with the same constants, and whose."""


def three(value: object) -> tuple[float, ...] | None:
    """A list's three numbers; None if it is no list, has not three, or not numbers."""
    if not isinstance(value, list) or len(value) != 3 or not are_numbers(value):
        return None
    return tuple(_float(x) for x in value)


def are_numbers(value: object) -> bool:
    """Whether a value, or all values of a list, are numbers."""
    numbers = value if isinstance(value, list) else [value]
    return all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in numbers)


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # JSON's integers have no bound
        return inf


def equal(a: Sequence[float], b: Sequence[float], within: float = PIXEL_CONSTANT) -> bool:
    """Whether constants are the same but for their rounding."""
    return all(abs(x - y) <= within for x, y in zip(a, b, strict=True))


def whose(key: str, numbers: Sequence[float]) -> str | None:
    """Whose mean or deviation it is, None if it is not known."""
    known = {name: both[key == STD] for name, both in KNOWN.items()}
    return next((name for name, constants in known.items() if equal(numbers, constants)), None)


def possessive(owner: str) -> str:
    """In words."""
    return _SHOWN.get(owner, f"{owner}'s")


def in_words(numbers: Sequence[float]) -> str:
    """With as many digits as one reads."""
    return ", ".join(f"{x:.4g}" for x in numbers)


def as_json(numbers: Sequence[float]) -> list[float | str]:
    """As JSON has no NaN and no infinity."""
    return [x if isfinite(x) else str(x) for x in numbers]
