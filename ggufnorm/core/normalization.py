"""The normalization of pixels: ``(level · scale - mean) / std`` per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufnorm.core.tolerances import PIXEL_FORMULA

Array = NDArray[np.float64]
Three = tuple[float, float, float]
Constants = tuple[Three, Three]

# OPENAI_CLIP_MEAN, IMAGENET_DEFAULT_MEAN and IMAGENET_STANDARD_MEAN in transformers'
# image_utils; the last is timm's MobileNetV5.
KNOWN: dict[str, Constants] = {
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "SigLIP": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "MobileNet": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation of pixels from 0 to 1, red first, by whose they are."""

TOP_LEVEL = 255.0

_HUGE = 1e12
"""No pipeline stretches or shifts levels so far."""
RGB, BGR = (0, 1, 2), (2, 1, 0)


@dataclass(frozen=True)
class Affine:
    """``values[..., c] = gain[c] · levels[..., order[c]] + offset[c]``."""

    gain: Three
    offset: Three
    order: tuple[int, int, int] = RGB

    def apply(self, levels: ArrayLike) -> Array:
        """Values of levels; the last axis is the channel's."""
        x = np.asarray(levels, np.float64)[..., list(self.order)]
        return np.asarray(x * np.array(self.gain) + np.array(self.offset))

    def undo(self, values: ArrayLike) -> Array:
        """Levels of values: the inverse of :meth:`apply`."""
        y = np.asarray(values, np.float64)
        levels = (y - np.array(self.offset)) / np.array(self.gain)
        return np.asarray(levels[..., list(np.argsort(self.order))])


@dataclass(frozen=True)
class Normalization:
    """``(level · scale - mean) / std`` per channel, red first.

    Attributes:
        mean: subtracted, in units of scaled levels.
        std: what is divided by.
        scale: of levels from 0 to 255; 1 leaves them as they are.
    """

    mean: Three
    std: Three
    scale: float = 1 / TOP_LEVEL

    @property
    def affine(self) -> Affine:
        """The same, as a function of levels."""
        k, m, s = self.scale, np.array(self.mean), np.array(self.std)
        with np.errstate(all="ignore"):
            return Affine(three(k / s), three(-m / s))

    @property
    def owner(self) -> str | None:
        """Whose constants they are (a key of :data:`KNOWN`), None if that is not known."""
        for name, (mean, std) in KNOWN.items():
            if is_same(self.affine, Normalization(mean, std).affine):
                return name
        return None

    def comes_to(self, other: Normalization) -> bool:
        """Whether the two make the same of all levels, but for rounded constants."""
        return is_same(self.affine, other.affine)

    def apply(self, levels: ArrayLike) -> Array:
        """The formula itself, float64; the last axis is the channel's."""
        x = np.asarray(levels, np.float64)
        return np.asarray((x * self.scale - np.array(self.mean)) / np.array(self.std))


def whose_model(name: str) -> str:
    """A key of :data:`KNOWN` in words."""
    return {"SigLIP": "SigLIP and Inception (-1 to 1)"}.get(name, name)


def is_usable(affine: Affine) -> bool:
    """Whether all its numbers are finite, and none is 0 that is divided by."""
    gain, offset = np.abs(affine.gain), np.abs(affine.offset)
    return bool((gain > 1 / _HUGE).all() and (gain < _HUGE).all() and (offset < _HUGE).all())


def is_same(a: Affine, b: Affine) -> bool:
    """Whether two come to the same for all levels, as far as rounded constants can tell."""
    return a.order == b.order and is_usable(a) and is_usable(b) and is_any(a, [b])


def is_any(one: Affine, others: Sequence[Affine]) -> bool:
    """The same of any of several usable ones of the same order."""
    if not others:
        return False
    gains = np.array([o.gain for o in others])
    at_zero = np.abs(np.array([o.offset for o in others]) - one.offset)
    at_top = np.abs(np.array([o.offset for o in others]) - one.offset
                    + TOP_LEVEL * (gains - one.gain))  # fmt: skip
    largest = TOP_LEVEL * np.maximum(np.abs(gains), np.abs(one.gain))
    near = np.maximum(at_zero, at_top) <= PIXEL_FORMULA / 4 * largest
    return bool(near.all(axis=1).any())


def three(numbers: ArrayLike) -> Three:
    """Three floats."""
    a, b, c = np.asarray(numbers, np.float64).tolist()
    return a, b, c


def rows_of(pixels: ArrayLike) -> Array:
    """Pixels ``(n, 3)``, float64.

    Raises:
        ValueError: the last axis is not of length 3.
    """
    wide = np.asarray(pixels, np.float64)
    if wide.ndim < 1 or wide.shape[-1] != 3:
        raise ValueError(f"pixels have 3 channels in the last axis, not shape {wide.shape}")
    return wide.reshape(-1, 3)
