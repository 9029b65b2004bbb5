"""One run of an image encoder in mtmd, in which every row of every norm is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.crosscheck.kept import KeptRun, keep_norms
from ggufnorm.analysis.crosscheck.llama import observed_run
from ggufnorm.core.observed import ObservedRun
from ggufnorm.engines import worker
from ggufnorm.engines.images import Levels
from ggufnorm.engines.llama.encoder import EncoderRunner
from ggufnorm.engines.llama.vision import picture_bitmap
from ggufnorm.engines.row_file import RowFile
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.runs.checks import require_memory

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class EncodeJob:
    """A picture to encode, and the file that rows go to; see :func:`run_encoder`."""

    mmproj: str
    rows: str
    picture: NDArray[np.uint8]
    pixels: Pixels | None
    n_threads: int | None


@dataclass(frozen=True)
class EncoderRun:
    """What a run showed, and what mtmd made of the picture."""

    kept: KeptRun
    pixels: Pixels


def run_encoder(
    location: str | os.PathLike[str],
    picture: Levels,
    *,
    pixels: Pixels | None = None,
    n_threads: int | None = None,
    check_memory: bool = True,
) -> tuple[ObservedRun, Pixels]:
    """Run an encoder once and keep what goes into its norms and what comes out.

    Of a picture that mtmd cuts into tiles the first part is run.

    Args:
        location: of the mmproj file; it must be on this machine.
        picture: levels, ``(height, width, 3)``.
        pixels: what the encoder is fed in the place of mtmd's pixels, of the same shape.
        n_threads: CPU threads; None for all.
        check_memory: refuse a file that does not fit into the memory that is free.

    Returns:
        What was observed, and mtmd's own pixels, ``(pictures, height, width, 3)``.

    Raises:
        InputError: the file cannot be opened or holds no image encoder, or ``pixels`` are of
            another shape than mtmd's.
        EngineMissingError: llama-cpp-python is not installed, or lacks mtmd.
        EngineError: llama.cpp does not load the file, or fails or crashes with it.
    """
    path = local_path(location)
    with open_model(path) as file:
        if check_memory:
            require_memory([file], 0, 1)
        levels = np.ascontiguousarray(picture, np.uint8)
        rows = RowFile()
        job = EncodeJob(os.fspath(path), rows.name, levels, pixels, n_threads)
        found = worker.call(encode, job, descriptors=rows.descriptors)
        return observed_run(file, os.fspath(location), found.kept, rows, 0), found.pixels


def encode(job: EncodeJob, _channel: Channel) -> EncoderRun:
    """The child's part of :func:`run_encoder`."""
    with (
        open_model(job.mmproj) as file,
        EncoderRunner(
            file, picture_bitmap(file.path, job.picture), job.pixels, job.n_threads
        ) as runner,
    ):
        (batch,) = runner.batches(np.empty(0, np.int32), 0)
        runner.plan([batch])
        return EncoderRun(keep_norms(runner, RowFile(job.rows), batch), runner.pixels)
