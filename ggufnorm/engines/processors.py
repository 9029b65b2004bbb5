"""The Hugging Face image processor of a folder, as Transformers runs it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.pixels import Normalization, Three
from ggufnorm.engines.images import INSTALL_HINT, Levels
from ggufnorm.errors import EngineMissingError, InputError

Pictures = NDArray[np.float32]


class Processor:
    """The image processor that ``AutoImageProcessor`` makes of a folder.

    Code of the folder's own is not run, and nothing is fetched.

    Raises:
        EngineMissingError: Transformers is not installed.
        InputError: the folder has no image processor that Transformers can load.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = os.fspath(folder)
        if not Path(self.path).is_dir():
            raise InputError(f"{self.path}: no such folder: give one with preprocessor_config.json")
        auto = _auto_image_processor()
        with _quiet():
            try:
                self._processor: Any = auto.from_pretrained(
                    self.path, local_files_only=True, trust_remote_code=False
                )
            except Exception as error:  # whatever a config can make it raise
                raise InputError(
                    f"{self.path}: Transformers cannot load an image processor: {_line(error)}"
                ) from None
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
        from PIL import Image

        with _quiet():
            try:
                out = self._processor(
                    images=Image.fromarray(levels), return_tensors="np", **options
                )
            except Exception as error:
                raise InputError(f"{self.path}: {self.name} fails: {_line(error)}") from None
        return self._pictures(out)

    def _pictures(self, out: Mapping[str, Any]) -> Pictures:
        if "pixel_values" not in out:
            raise InputError(f"{self.path}: {self.name} gives no pixel_values")
        values = np.asarray(out["pixel_values"], np.float32)
        grid = out.get("image_grid_thw")
        if values.ndim == 2 and grid is not None:
            return self._from_patches(values, np.asarray(grid)[0])
        if values.ndim in (4, 5) and values.shape[-3] == 3:
            return np.moveaxis(values.reshape(-1, *values.shape[-3:]), 1, -1)
        if values.ndim in (4, 5) and values.shape[-1] == 3:
            return values.reshape(-1, *values.shape[-3:])
        raise InputError(
            f"{self.path}: {self.name} gives pixel_values of shape {values.shape}, in which"
            " pictures of three channels cannot be told"
        )

    def _from_patches(self, values: Pictures, grid: NDArray[Any]) -> Pictures:
        """Patches as Qwen2VLImageProcessor lays them out, put together again."""
        p = self._processor
        t, h, w = (int(n) for n in grid)
        m, size, frames = p.merge_size, p.patch_size, p.temporal_patch_size
        if values.size != t * h * w * 3 * frames * size * size:
            raise InputError(f"{self.path}: {self.name} gives patches of shape {values.shape}")
        parts = values.reshape(t, h // m, w // m, m, m, 3, frames, size, size)
        # → time, frame, rows (block, patch, pixel), columns (block, patch, pixel), channel
        whole = parts.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
        return np.ascontiguousarray(whole).reshape(t * frames, h * size, w * size, 3)[:1]


def _auto_image_processor() -> Any:
    with _quiet():
        try:
            from transformers import AutoImageProcessor
        except ImportError as error:
            raise EngineMissingError(
                f"this needs Transformers, which is not installed: {INSTALL_HINT}"
            ) from error
    return AutoImageProcessor


def _line(error: Exception) -> str:
    """An error's first line, as far as it is one."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Transformers warns of while it loads and runs."""
    import logging

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
