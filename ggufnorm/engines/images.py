"""Pictures through Pillow: read one, and resize it in all the ways that pipelines do."""

from __future__ import annotations

import base64
import io
import math
import os
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.resizing import (
    ANTIALIASED_BILINEAR,
    TENSOR_RESIZES,
    resize_tensor,
)
from ggufnorm.engines.takes import Take, takes_of_file
from ggufnorm.errors import InputError, MissingPackageError
from ggufnorm.formats.files import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

INSTALL_HINT = 'pip install "ggufnorm[vision]"'

_MOST_BYTES = 1 << 28
_MOST_PIXELS = 1 << 26
"""A PNG of 100 kB may hold hundreds of millions of pixels."""

Levels = NDArray[np.uint8]

# Short edges before a crop, relative to the crop: none, torchvision's 232, 236, 248, 256 to 224
# (ImageClassification presets and timm's crop_pct) and 0.95.
_ENLARGED = (1.0, 256 / 224, 232 / 224, 236 / 224, 248 / 224, 1 / 0.95, 1 / 0.9)


@dataclass(frozen=True)
class Picture:
    """A picture file's content.

    Attributes:
        path: of the file.
        levels: ``(height, width, 3)``, red first.
        turned: whether its EXIF data told to turn it, and it was.
        takes: what pipelines may read out of the file instead.
    """

    path: str
    levels: Levels
    turned: bool
    takes: tuple[Take, ...] = ()


@dataclass(frozen=True)
class Resized:
    """A picture on another grid.

    Attributes:
        shape: how it was brought there: stretched, padded, cropped.
        how: the filter, in words.
        levels: ``(height, width, 3)``; not whole where a tensor was resized.
        inside: rows and columns that show the picture; the others are padding.
    """

    shape: str
    how: str
    levels: NDArray[Any]
    inside: tuple[slice, slice]

    def __str__(self) -> str:
        return f"{self.shape}, {self.how}" if self.how else self.shape


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Decode a picture as red, green and blue, turned as its EXIF data say.

    That is what ``transformers.image_utils.load_image`` does.

    Raises:
        MissingPackageError: Pillow is not installed.
        InputError: the file cannot be read, or is no picture.
    """
    image_module = _pillow()
    from PIL import ImageOps

    name = os.fspath(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_regular(name, _MOST_BYTES) as file, image_module.open(file) as image:
                if image.format == "EPS":  # PostScript, a program that Ghostscript would run
                    raise image_module.UnidentifiedImageError
                width, height = image.size
                if width * height > _MOST_PIXELS:
                    raise ValueError(
                        f"{width:,} by {height:,} pixels are more than {_MOST_PIXELS:,}: make it"
                        " smaller"
                    )
                turned = image.getexif().get(0x0112, 1) != 1  # Orientation
                levels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
                takes = tuple(takes_of_file(image, turned))
    except FileNotFoundError:
        raise InputError(f"cannot read the picture {name}: there is no such file") from None
    except image_module.UnidentifiedImageError:
        raise InputError(f"{name} is no picture that Pillow knows") from None
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot read the picture {name}: {reason}") from None
    return Picture(name, levels, turned, takes)


def resizes(
    levels: Levels,
    height: int,
    width: int,
    filters: Sequence[str] | None = None,
    shapes: Container[str] | None = None,
) -> Iterator[Resized]:
    """A picture on a grid of that size, in all the ways that pipelines do, usual ones first.

    Each of bilinear, bicubic, Lanczos, nearest and box filters, Pillow's, and those of
    tensors and OpenCV (:mod:`ggufnorm.engines.resizing`).

    Args:
        levels: the picture.
        height: of the grid.
        width: of the grid.
        filters: those to try, by default all.
        shapes: those to try, as in :attr:`Resized.shape`, by default all.
    """
    tried = FILTERS if filters is None else filters
    rows, columns = levels.shape[:2]
    everything = slice(0, height), slice(0, width)
    if (rows, columns) == (height, width):
        yield Resized("as it is", "", levels, everything)
        return
    if shapes is None or "stretched" in shapes:
        for how in _distinct(tried, levels, height, width):
            yield Resized(
                "stretched",
                _ROWS_FIRST.get(how, how),
                _resize(levels, height, width, how),
                everything,
            )
    if rows * width != columns * height:
        for inside in _paddings(rows, columns, height, width):
            shape = _padded_where(inside, height, width)
            if shapes is not None and shape not in shapes:
                continue
            down, across = inside
            h, w = down.stop - down.start, across.stop - across.start
            for how in _distinct(tried, levels, h, w):
                resized = _resize(levels, h, w, how)
                padded = np.zeros((height, width, 3), resized.dtype)
                padded[inside] = resized
                yield Resized(shape, _ROWS_FIRST.get(how, how), padded, inside)
    for (h, w), shape in _before_crop(rows, columns, height, width).items():
        top, left = (h - height) // 2, (w - width) // 2
        if shapes is not None and shape not in shapes:
            continue
        for how in _distinct(tried, levels, h, w):
            cropped = _resize(levels, h, w, how)[top : top + height, left : left + width]
            yield Resized(shape, _ROWS_FIRST.get(how, how), cropped, everything)


def _distinct(filters: Sequence[str], levels: Levels, height: int, width: int) -> list[str]:
    """Without a filter that is another one's equal at that size."""
    rows, columns = levels.shape[:2]
    equal = {ANTIALIASED_BILINEAR} if height >= rows and width >= columns else set()
    if rows <= columns:
        equal |= set(_ROWS_FIRST)
    return [f for f in filters if f not in equal]


def _padded_where(inside: tuple[slice, slice], height: int, width: int) -> str:
    down, across = inside
    if (down.stop - down.start, across.stop - across.start) == (height, width):
        return "padded"
    middle = down.start or across.start
    return "padded in the middle" if middle else "padded below or to the right"


def thumbnail(levels: Levels, longest: int) -> str:
    """A picture as a PNG in base64, made smaller where an edge is longer than ``longest``.

    Args:
        levels: ``(height, width, 3)``.
        longest: pixels.

    Raises:
        MissingPackageError: Pillow is not installed.
    """
    image: Image = _pillow().fromarray(levels)
    image.thumbnail((longest, longest))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _before_crop(rows: int, columns: int, height: int, width: int) -> dict[tuple[int, int], str]:
    """Sizes that a picture may have before its middle is cut out, and how it got them."""
    short, long = sorted((rows, columns))
    found: dict[tuple[int, int], str] = {}
    enlarged = [max(height, width) * larger for larger in _ENLARGED]
    # ConvNeXT's processor cuts to a whole number, presets are written in whole numbers.
    for edge in dict.fromkeys(cut(e) for e in enlarged for cut in (round, math.floor)):
        # torchvision and Transformers cut the long edge to a whole number, timm rounds it.
        for other in (edge * long // short, round(edge * long / short)):
            h, w = (edge, other) if rows == short else (other, edge)
            found[h, w] = f"short edge to {edge}, cropped"
    for larger in _ENLARGED:
        h, w = round(height * larger), round(width * larger)
        found.setdefault((h, w), f"stretched to {w}×{h}, cropped")
    return {
        (h, w): how
        for (h, w), how in found.items()
        if h >= height and w >= width and (h, w) != (height, width)
    }


def _paddings(rows: int, columns: int, height: int, width: int) -> list[tuple[slice, slice]]:
    """Where a picture of its own proportions may lie."""
    scale = min(height / rows, width / columns)
    found: dict[tuple[int, int, int, int], None] = {}
    # img_tool::resize in llama.cpp's tools/mtmd/mtmd-image.cpp rounds up or to the nearest;
    # Transformers' pad_to_square and others cut.
    cuts: tuple[Callable[[float], int], ...] = (math.ceil, round, math.floor)
    for cut, middle in product(cuts, (True, False)):
        h = min(max(1, cut(rows * scale)), height)
        w = min(max(1, cut(columns * scale)), width)
        top, left = ((height - h) // 2, (width - w) // 2) if middle else (0, 0)
        found[(top, left, h, w)] = None
    return [
        (slice(top, top + h), slice(left, left + w))
        for top, left, h, w in found
        if (h, w) != (height, width)
    ]


_PILLOW = ("bilinear", "bicubic", "Lanczos", "nearest", "box")
# img_tool::resize_pillow in llama.cpp's tools/mtmd/mtmd-image.cpp goes along rows first; Pillow
# down columns where that is less to do.
_ROWS_FIRST = {f"{name}, rows first": name for name in _PILLOW[:3]}
FILTERS = (*_PILLOW[:3], *_ROWS_FIRST, *TENSOR_RESIZES, *_PILLOW[3:])
"""Ways to resize, in words, usual ones first."""


def _resize(levels: Levels, height: int, width: int, how: str) -> NDArray[Any]:
    if how in TENSOR_RESIZES:
        return resize_tensor(levels, height, width, how)
    image_module = _pillow()
    image: Image = image_module.fromarray(levels)
    filter_ = image_module.Resampling[_ROWS_FIRST.get(how, how).upper()]
    if how in _ROWS_FIRST:
        image = image.resize((width, image.height), filter_)
    return np.asarray(image.resize((width, height), filter_))


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError(
            f"this needs Pillow, which is not installed: {INSTALL_HINT}"
        ) from error
    return Image
