"""WAV files and arrays of samples."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ggufnorm.errors import InputError
from ggufnorm.formats.wav import read_sound
from tests.sounds import sound, write_wav


@pytest.mark.parametrize(("dtype", "step"), [("<i2", 2**-15), ("<i4", 2**-31), ("<f4", 1e-7)])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files_are_read(dtype: str, step: float, channels: int, tmp_path: Path) -> None:
    samples = np.stack([sound(0.1, seed=i) for i in range(channels)], axis=1)
    read = read_sound(write_wav(tmp_path / "s.wav", samples, 22_050, dtype))
    assert read.rate == 22_050
    assert np.abs(read.channels - samples.T).max() <= step


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda b: b"OggS" + b[4:], "is no WAV file"),
        (lambda b: b[:30], "no fmt or no data chunk"),
        (lambda b: b[:20] + struct.pack("<H", 17) + b[22:], "16 bits in format 17"),
        (lambda b: b[:34] + struct.pack("<H", 24) + b[36:], "24 bits in format 1"),
        (lambda b: b[:22] + struct.pack("<H", 0) + b[24:], "damaged WAV file: 0 channels"),
        (lambda b: b[:24] + struct.pack("<I", 0) + b[28:], "at 0 Hz"),
        (lambda b: b[: b.index(b"data") + 8], "no sound in it"),
    ],
)
def test_sounds_that_cannot_be_read_are_input_errors(
    change: Callable[[bytes], bytes], problem: str, tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "s.wav", sound(0.1))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=problem):
        read_sound(path)


def test_sounds_of_no_numbers_or_no_file_are_input_errors(tmp_path: Path) -> None:
    for bad in (np.nan, np.inf, -1e30):
        samples = np.where(np.arange(99) == 5, bad, 0.1)
        with pytest.raises(InputError, match="NaN, infinite or beyond"):
            read_sound(write_wav(tmp_path / "s.wav", samples, dtype="<f4"))
    for path in (tmp_path / "absent.wav", tmp_path):
        with pytest.raises(InputError, match="cannot read the sound"):
            read_sound(path)
