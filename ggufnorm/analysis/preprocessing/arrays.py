"""Pixels, spectrograms and waveforms that a user's own pipeline wrote down."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.npy import read_numbers


def read_pictures(path: str | os.PathLike[str]) -> NDArray[np.float64]:
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


def read_spectrograms(path: str | os.PathLike[str], n_mel: int) -> tuple[NDArray[np.float64], bool]:
    """Spectrograms of a ``.npy`` file, of any type of number.

    Args:
        path: of the file.
        n_mel: mel bins expected.

    Returns:
        ``(inputs, mel bins, frames)``, and whether its last two axes had to be exchanged
        for that.

    Raises:
        InputError: the file cannot be read, or holds no spectrograms.
    """
    values = read_numbers(path)
    batch = values[None] if values.ndim == 2 else values
    if batch.ndim != 3 or not batch.size:
        raise InputError(
            f"{os.fspath(path)}: shape {values.shape} is neither mel bins and frames nor several"
            " of those"
        )
    rows, columns = batch.shape[1:]
    exchanged = rows != n_mel and (columns == n_mel or columns < rows)
    return np.asarray(np.swapaxes(batch, 1, 2) if exchanged else batch, np.float64), exchanged


_MOST_CHANNELS = 8


def read_waveforms(
    path: str | os.PathLike[str], frame: int = 0
) -> tuple[NDArray[np.float64], bool]:
    """Waveforms of a ``.npy`` file, of any type of number.

    Args:
        path: of the file.
        frame: samples in a row of one waveform that is cut into rows; 0 if none is.

    Returns:
        ``(inputs, samples)``, and whether its last two axes had to be exchanged for that.

    Raises:
        InputError: the file cannot be read, or holds no waveforms.
    """
    values = read_numbers(path)
    batch = values[None] if values.ndim == 1 else values
    if frame and batch.ndim in (2, 3) and batch.shape[-1] == frame:
        batch = batch.reshape(1 if batch.ndim == 2 else len(batch), -1)
    if batch.ndim == 3 and 1 in batch.shape[1:]:  # (inputs, channels, samples) of one channel
        batch = batch.reshape(len(batch), -1)
    if batch.ndim == 3 and len(batch) == 1:
        batch = batch[0]
    if batch.ndim != 2 or not batch.size:
        raise InputError(
            f"{os.fspath(path)}: shape {values.shape} is neither samples nor several inputs of"
            " samples"
        )
    exchanged = batch.shape[1] <= _MOST_CHANNELS < batch.shape[0]
    return np.asarray(batch.T if exchanged else batch, np.float64), exchanged
