"""Pixels that a user's own pipeline wrote down."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.npy import read_numbers


def read_array(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Pictures of a ``.npy`` file: NCHW, NHWC, CHW or HWC, of any type of number.

    Returns:
        ``(pictures, height, width, 3)``.

    Raises:
        InputError: the file cannot be read, or holds no pictures of three channels.
    """
    values = read_numbers(path)
    batch = values[None] if values.ndim == 3 else values
    if batch.ndim == 4 and batch.size and 3 in (batch.shape[1], batch.shape[3]):
        channels_first = batch.shape[1] == 3
        return np.asarray(np.moveaxis(batch, 1, -1) if channels_first else batch, np.float64)
    raise InputError(
        f"{os.fspath(path)}: shape {values.shape} is none of NCHW, NHWC, CHW or HWC with three"
        " channels"
    )
