"""The pixels that llama.cpp feeds an image encoder: mtmd resizes, cuts and normalizes them."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines import worker
from ggufnorm.engines.llama.binding import read_node, write_node
from ggufnorm.engines.llama.mtmd import InputJob, Inputs, MakeBitmap, capture_inputs
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import InputError

Pictures = NDArray[np.float32]


def capture_pixels(mmproj: str | os.PathLike[str], picture: NDArray[np.uint8]) -> list[Pictures]:
    """What llama.cpp makes of a picture for the encoder of ``mmproj``, in a child process.

    No language model is needed: a vocabulary of bytes stands in for it.

    Args:
        mmproj: the encoder's file, on this machine.
        picture: levels, ``(height, width, 3)``.

    Returns:
        One array ``(pictures, height, width, 3)`` per run of the encoder; more than one
        where llama.cpp cuts the picture into tiles.

    Raises:
        EngineMissingError: llama-cpp-python is not installed, or lacks mtmd.
        EngineError: llama.cpp does not load the file, or fails or crashes with it.
        InputError: the file holds no image encoder.
    """
    job = InputJob(os.fspath(mmproj), np.ascontiguousarray(picture, np.uint8))
    return [np.moveaxis(run, 1, -1) for run in worker.call(watch_picture, job).runs]


def watch_picture(job: InputJob, _channel: Channel) -> Inputs:
    """The child's part of :func:`capture_pixels`."""
    return capture_inputs(job.mmproj, picture_bitmap(job.mmproj, job.given))


def picture_bitmap(mmproj: str, picture: NDArray[np.uint8]) -> MakeBitmap:
    """How mtmd takes a picture of levels, ``(height, width, 3)``.

    What is returned raises InputError if the file holds no image encoder.
    """

    def bitmap(mtmd: Any, context: Any) -> int:
        if not mtmd.mtmd_support_vision(context):
            raise InputError(f"{mmproj}: no image encoder: give the mmproj file of a vision model")
        height, width, _channels = picture.shape
        data = picture.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        made: int = mtmd.mtmd_bitmap_init(width, height, data)
        return made

    return bitmap


def read_pixels(leaf: int) -> Pictures:
    """What the encoder is fed, ``(pictures, height, width, 3)``."""
    # ggml's (width, height, channel, picture) is NumPy's (picture, c, h, w).
    return np.moveaxis(read_node(leaf), 1, -1).copy()


def write_pixels(leaf: int, pictures: Pictures) -> None:
    """Feed the encoder something else of the same shape, as :func:`read_pixels` gives it."""
    write_node(leaf, np.moveaxis(pictures, -1, 1))
