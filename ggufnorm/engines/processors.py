"""The Hugging Face image processor of a folder, as Transformers runs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.pixels import Normalization, Three
from ggufnorm.engines.images import INSTALL_HINT, Levels
from ggufnorm.engines.pretrained import first_line, load_pretrained, quiet
from ggufnorm.errors import InputError

Pictures = NDArray[np.float32]

_DIGIT = 200
"""Coordinates are written in this base, as one level per digit."""


class Processor:
    """The image processor that ``AutoImageProcessor`` makes of a folder.

    Code of the folder's own is not run, and nothing is fetched.

    Raises:
        MissingPackageError: Transformers is not installed.
        InputError: the folder has no image processor that Transformers can load.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = os.fspath(folder)
        self._processor: Any = load_pretrained(
            "AutoImageProcessor", folder, "an image processor", INSTALL_HINT
        )
        self.name: str = type(self._processor).__name__

    @property
    def normalization(self) -> Normalization:
        """What its configuration says.

        Raises:
            InputError: it says nothing that one can normalize with.
        """
        p = self._processor
        scale = float(p.rescale_factor) if getattr(p, "do_rescale", True) else 1.0
        if not getattr(p, "do_normalize", True):
            return Normalization((0.0,) * 3, (1.0,) * 3, scale)
        mean, std = (self._three(name) for name in ("image_mean", "image_std"))
        if not all(s > 0 for s in std):
            raise InputError(f"{self.path}: image_std is {list(std)}: all must be above 0")
        return Normalization(mean, std, scale)

    def _three(self, name: str) -> Three:
        value = getattr(self._processor, name, None)
        values = list(value) if isinstance(value, (list, tuple)) else [value] * 3
        numbers = [float(n) for n in values if isinstance(n, (int, float))]
        if len(values) != 3 or len(numbers) != 3:
            raise InputError(f"{self.path}: {name} is {value}, not three numbers")
        return numbers[0], numbers[1], numbers[2]

    def feed(self, levels: Levels) -> Pictures:
        """What it makes of a picture, ``(pictures, height, width, 3)``; more than one if cut.

        Raises:
            InputError: it fails, or gives something that is no pictures.
        """
        return self._run(levels)

    def resized(self, levels: Levels) -> NDArray[np.float32]:
        """The same, but neither scaled nor normalized: levels from 0 to 255."""
        return self._run(levels, do_rescale=False, do_normalize=False)

    def _run(self, levels: Levels, **options: bool) -> Pictures:
        out = self._call(levels, **options)
        values = np.asarray(out["pixel_values"], np.float32)
        if values.ndim in (4, 5) and values.shape[-3] == 3:
            return np.moveaxis(values.reshape(-1, *values.shape[-3:]), 1, -1)
        if values.ndim in (4, 5) and values.shape[-1] == 3:
            return values.reshape(-1, *values.shape[-3:])
        return self._whole(values, self._grid(out))[None]

    def _call(self, levels: Levels, **options: bool) -> Mapping[str, Any]:
        from PIL import Image

        with quiet():
            try:
                out: Mapping[str, Any] = self._processor(
                    images=Image.fromarray(levels), return_tensors="np", **options
                )
            except Exception as error:
                raise InputError(f"{self.path}: {self.name} fails: {first_line(error)}") from None
        if "pixel_values" not in out:
            raise InputError(f"{self.path}: {self.name} gives no pixel_values")
        return out

    def _grid(self, out: Mapping[str, Any]) -> tuple[int, int]:
        """Rows and columns of the picture whose patches the processor gave."""
        size = int(getattr(self._processor, "patch_size", 0) or 0)
        if "image_grid_thw" in out:  # Qwen2-VL and its kin
            _time, h, w = np.asarray(out["image_grid_thw"])[0]
        elif "spatial_shapes" in out:  # SigLIP 2
            h, w = np.asarray(out["spatial_shapes"])[0]
        elif "image_position_ids" in out:  # Gemma 4
            w, h = np.asarray(out["image_position_ids"])[0].max(axis=0) + 1
        else:
            h = w = 0
        if h * w * size == 0:
            raise InputError(
                f"{self.path}: {self.name} gives pixel_values of shape"
                f" {np.shape(out['pixel_values'])}, in which no pictures can be told"
            )
        return int(h) * size, int(w) * size

    def _whole(self, values: Pictures, shape: tuple[int, int]) -> Pictures:
        """Put a picture together again that the processor cut into patches.

        Pictures whose levels are their pixels' coordinates go the same way: what comes
        out tells where each value is from, whatever the patches' order.
        """
        rows, columns = np.indices(shape)
        tracers = (rows // _DIGIT, rows % _DIGIT, columns // _DIGIT, columns % _DIGIT)
        plain = {"do_resize": False, "do_rescale": False, "do_normalize": False}
        codes = []
        for tracer in (*(np.stack([t] * 3, axis=-1) for t in tracers), _channel_picture(shape)):
            # One more, as padding is 0.
            out = self._call((tracer + 1).astype(np.uint8), **plain)
            codes.append(np.round(np.asarray(out["pixel_values"], np.float32)).astype(int) - 1)
        if any(code.shape != values.shape for code in codes):
            raise InputError(f"{self.path}: {self.name}: the order of its patches cannot be told")
        known = np.min(codes, axis=0) >= 0
        row_high, row_low, column_high, column_low, channel = (code[known] for code in codes)
        at = row_high * _DIGIT + row_low, column_high * _DIGIT + column_low, channel
        picture = np.full((*shape, 3), np.nan, np.float32)
        picture[at] = values[known]
        if np.isnan(picture).any():
            raise InputError(f"{self.path}: {self.name}: its patches are not all of the picture")
        return picture


def _channel_picture(shape: tuple[int, int]) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(3), (*shape, 3))
