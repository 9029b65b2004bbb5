"""Sounds of WAV files (RIFF), of 16 or 32 bits or of floats."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.files import read_regular

# WAVE_FORMAT_PCM, WAVE_FORMAT_IEEE_FLOAT and WAVE_FORMAT_EXTENSIBLE of mmreg.h.
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_TYPES = {(_PCM, 16): "<i2", (_PCM, 32): "<i4", (_FLOAT, 32): "<f4", (_FLOAT, 64): "<f8"}
_LEAST_RATE, _MOST_RATE = 1_000, 1_000_000
_MOST_SECONDS = 3_600
"""A small file at a low rate becomes a large one at the rate of a model."""
_MOST_BYTES = 1 << 29
_LARGEST = 1e9
"""Floats should be below 1 and may be those of integers."""


@dataclass(frozen=True)
class Sound:
    """A sound file's content.

    Attributes:
        path: of the file.
        channels: ``(channels, samples)`` from -1 to 1, which floats may exceed; at least one
            sample.
        rate: samples a second.
    """

    path: str
    channels: NDArray[np.float64]
    rate: int


def read_sound(path: str | os.PathLike[str]) -> Sound:
    """Decode a WAV file; integers are divided by their range, as soundfile does.

    Raises:
        InputError: the file cannot be read, is no WAV file, is of another kind than 16 or 32
            bits of PCM or 32 or 64 bits of floats, or holds no sound.
    """
    name = os.fspath(path)
    try:
        data = read_regular(name, _MOST_BYTES)
    except OSError as error:
        raise InputError(f"cannot read the sound {name}: {error.strerror}") from None
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise InputError(f"{name} is no WAV file: convert it, as with ffmpeg -i IN OUT.wav")
    parts = dict(_chunks(data))
    if b"fmt " not in parts or len(parts[b"fmt "]) < 16 or b"data" not in parts:
        raise InputError(f"{name}: damaged WAV file: it has no fmt or no data chunk")
    code, n_channels, rate, _, _, bits = struct.unpack("<HHIIHH", parts[b"fmt "][:16])
    if code == _EXTENSIBLE:
        (code,) = struct.unpack("<H", parts[b"fmt "][24:26].ljust(2, b"\0"))
    if (code, bits) not in _TYPES:
        raise InputError(
            f"{name}: samples of {bits} bits in format {code} are not read: convert them to PCM"
            " of 16 bits, as with ffmpeg -i IN -c:a pcm_s16le OUT.wav"
        )
    if not n_channels or not _LEAST_RATE <= rate <= _MOST_RATE:
        raise InputError(f"{name}: damaged WAV file: {n_channels} channels at {rate} Hz")
    channels = _decode(parts[b"data"], np.dtype(_TYPES[code, bits]), n_channels)
    if channels.shape[1] > _MOST_SECONDS * rate:
        seconds = channels.shape[1] // rate
        raise InputError(f"{name}: {seconds:,} s of sound are more than {_MOST_SECONDS:,}: cut it")
    if not channels.size:
        raise InputError(f"{name}: there is no sound in it")
    if not (np.abs(channels) < _LARGEST).all():
        raise InputError(f"{name}: samples are NaN, infinite or beyond all measure")
    return Sound(name, channels, rate)


def _decode(data: bytes, dtype: np.dtype[np.generic], n_channels: int) -> NDArray[np.float64]:
    whole = len(data) // (n_channels * dtype.itemsize)
    flat = np.frombuffer(data, dtype, whole * n_channels)
    top = 2.0 ** (8 * dtype.itemsize - 1) if dtype.kind == "i" else 1.0
    return np.ascontiguousarray(flat.astype(np.float64).reshape(whole, n_channels).T / top)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents; a size that is too large, as of a stream, ends with the file."""
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        yield name, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
