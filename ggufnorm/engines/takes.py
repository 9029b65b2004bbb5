"""Other pictures that pipelines read out of one file: not turned, without colours, mirrored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Levels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Take:
    """A picture as some pipelines read it.

    Attributes:
        mistake: its name.
        text: the same in words.
        levels: ``(height, width, 3)``.
    """

    mistake: str
    text: str
    levels: Levels


_CHANGES: tuple[tuple[str, str, Callable[[Levels], NDArray[np.generic]]], ...] = (
    ("mirrored", "mirrored", lambda x: x[:, ::-1]),
    ("upside-down", "upside down", lambda x: x[::-1]),
    ("transposed", "rows and columns are exchanged", lambda x: np.swapaxes(x, 0, 1)),
    ("turned", "turned by 180°", lambda x: x[::-1, ::-1]),
    ("turned", "turned by 90°", np.rot90),
    ("turned", "turned by 90°, clockwise", lambda x: np.rot90(x, -1)),
)


def takes_of(levels: Levels) -> Iterator[Take]:
    """What pipelines make of a picture's levels before they resize it.

    Args:
        levels: ``(height, width, 3)``, as they should be.
    """
    for mistake, text, change in _CHANGES:
        yield Take(mistake, text, np.ascontiguousarray(change(levels)).astype(np.uint8))
    if np.ptp(levels, axis=2).any():
        grey = np.rint(levels @ np.array([0.299, 0.587, 0.114]))
        yield Take("grayscale", "without its colours", _three(grey))
    share = levels / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    yield Take(
        "gamma", "in linear light (gamma was undone)", np.rint(255 * linear).astype(np.uint8)
    )
    encoded = np.where(share <= 0.0031308, share * 12.92, 1.055 * share ** (1 / 2.4) - 0.055)
    yield Take(
        "gamma", "brightened (gamma was done again)", np.rint(255 * encoded).astype(np.uint8)
    )


def takes_of_file(image: Image, turned: bool) -> Iterator[Take]:
    """What pipelines make of a file otherwise than ``convert("RGB")`` of the turned picture.

    Args:
        image: as the file has it.
        turned: whether its EXIF data turn it.
    """
    from PIL import Image as Module
    from PIL import ImageOps

    if turned:
        text = "not turned as its EXIF data say"
        yield Take("not-turned", text, np.asarray(image.convert("RGB")))
    upright = ImageOps.exif_transpose(image)
    if "A" in upright.getbands() or "transparency" in upright.info:
        layered = upright.convert("RGBA")
        for name, grey in (("white", 255), ("black", 0)):
            ground = Module.new("RGBA", layered.size, (grey, grey, grey, 255))
            shown = Module.alpha_composite(ground, layered).convert("RGB")
            text = f"its transparent parts on {name} ground"
            yield Take("alpha", text, np.asarray(shown))
    if upright.mode.startswith("I;16") or upright.mode == "I":
        deep = np.asarray(upright, np.float64)
        yield Take("depth", "16 bits scaled to 8", _three(np.rint(deep / 257).clip(0, 255)))


def _three(grey: NDArray[np.floating]) -> Levels:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
