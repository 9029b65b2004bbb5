"""The log-mel spectrograms that llama.cpp feeds an audio encoder: mtmd computes them."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines import worker
from ggufnorm.engines.llama.mtmd import InputJob, Inputs, MakeBitmap, capture_inputs
from ggufnorm.engines.worker import Channel
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
    job = InputJob(os.fspath(mmproj), np.ascontiguousarray(samples, np.float32), rate)
    return [run[0, 0] for run in worker.call(watch_sound, job).runs]


def watch_sound(job: InputJob, _channel: Channel) -> Inputs:
    """The child's part of :func:`capture_sound`."""
    return capture_inputs(job.mmproj, sound_bitmap(job.mmproj, job.given, job.rate))


def sound_bitmap(mmproj: str, samples: NDArray[np.float32], rate: int) -> MakeBitmap:
    """How mtmd takes a sound of one channel.

    What is returned raises InputError if the file holds no audio encoder, or one for sounds of
    another rate.
    """

    def bitmap(mtmd: Any, context: Any) -> int:
        takes = mtmd.mtmd_get_audio_sample_rate(context)
        if takes < 0:
            raise InputError(f"{mmproj}: no audio encoder: give the mmproj file of an audio model")
        if takes != rate:
            raise InputError(f"{mmproj}: takes sounds of {takes:,} Hz, not {rate:,} Hz")
        data = samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        made: int = mtmd.mtmd_bitmap_init_from_audio(len(samples), data)
        return made

    return bitmap
