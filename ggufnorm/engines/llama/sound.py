"""The log-mel spectrograms that llama.cpp feeds an audio encoder: mtmd computes them."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.child import Emit
from ggufnorm.engines.llama.mtmd import inputs_in_child, save_inputs
from ggufnorm.errors import InputError

Spectrogram = NDArray[np.float32]


def capture_sound(
    mmproj: str | os.PathLike[str], samples: NDArray[np.floating], rate: int
) -> list[Spectrogram]:
    """What llama.cpp makes of a sound for the encoder of ``mmproj``, in a child process.

    No language model is needed: a vocabulary of bytes stands in for it.

    Args:
        mmproj: the encoder's file, on this machine.
        samples: of one channel, from -1 to 1; at least one.
        rate: of the samples, in Hz.

    Returns:
        One array ``(mel bins, frames)`` per run of the encoder; more than one where
        llama.cpp cuts a long sound.

    Raises:
        EngineMissingError: llama-cpp-python is not installed, or lacks mtmd.
        EngineError: llama.cpp does not load the file, or fails or crashes with it.
        InputError: the file holds no audio encoder, or one for sounds of another rate.
    """
    runs = inputs_in_child(watch, mmproj, np.ascontiguousarray(samples, np.float32), rate=rate)
    return [run[0, 0] for run in runs]


def watch(job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    """The child's part of :func:`capture_sound`: see :func:`.mtmd.save_inputs`."""
    samples, rate = np.load(Path(job["folder"]) / "given.npy"), job["rate"]

    def bitmap(mtmd: Any, context: Any) -> int:
        takes = mtmd.mtmd_get_audio_sample_rate(context)
        if takes < 0:
            raise InputError(
                f"{job['mmproj']}: no audio encoder: give the mmproj file of an audio model"
            )
        if takes != rate:
            raise InputError(f"{job['mmproj']}: takes sounds of {takes:,} Hz, not {rate:,} Hz")
        data = samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        made: int = mtmd.mtmd_bitmap_init_from_audio(len(samples), data)
        return made

    return save_inputs(job, bitmap)
