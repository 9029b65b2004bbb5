"""One run of an image encoder in mtmd, in which every row of every norm is kept."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.crosscheck.llama import norm_ends, norm_facts, observed_run
from ggufnorm.analysis.drift.run import require_memory
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedRun
from ggufnorm.core.plain import to_plain
from ggufnorm.engines.child import Emit, run_in_child
from ggufnorm.engines.images import Levels
from ggufnorm.engines.llama.binding import engine_version
from ggufnorm.engines.llama.mtmd import Encoder, input_leaf
from ggufnorm.engines.llama.vision import picture_bitmap, read_pixels, write_pixels
from ggufnorm.engines.llama.watch import GraphWatch
from ggufnorm.errors import EngineError, InputError
from ggufnorm.formats.location import local_path, open_model

Pixels = NDArray[np.float32]


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
    with open_model(path) as file, tempfile.TemporaryDirectory(prefix="ggufnorm-") as folder:
        if check_memory:
            require_memory([file], 0, 1)
        np.save(Path(folder) / "picture.npy", np.ascontiguousarray(picture, np.uint8))
        if pixels is not None:
            np.save(Path(folder) / "pixels.npy", pixels)
        job = {"mmproj": os.fspath(path), "folder": folder, "n_threads": n_threads}
        facts = run_in_child(observe, job, lambda _message: None)
        with np.load(Path(folder) / "rows.npz", allow_pickle=False) as rows:
            return observed_run(file, os.fspath(location), facts, rows, 0), rows["made"]


def observe(job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    """The child's part of :func:`run_encoder`.

    Args:
        job: ``picture.npy`` of ``folder`` is given to the encoder of ``mmproj``, and fed
            ``pixels.npy`` if that is there. ``rows.npz`` gets the values.
    """
    path, folder = job["mmproj"], Path(job["folder"])
    given = folder / "pixels.npy"
    feed = _Feed(path, np.load(given) if given.exists() else None)
    with open_model(path) as file:
        watch = GraphWatch(path, frozenset(file.tensors), on_node=feed.on_node)
        with Encoder(path, watch.on_eval, job["n_threads"]) as encoder:
            chunks = encoder.cut(picture_bitmap(path, np.load(folder / "picture.npy")))
            encoded = []

            def encode() -> None:
                encoded.append(encoder.encode(chunks[0]))

            graph = watch.plan(encode)
            values = norm_ends(graph, lambda at, on_stop: watch.walk(graph, at, encode, on_stop))
        if not all(encoded) or feed.made is None:
            raise EngineError(f"{path}: mtmd_encode_chunk failed")
        np.savez(folder / "rows.npz", allow_pickle=False, made=feed.made, **values)
        more = Skipped("tiles", f"mtmd cuts the picture into {len(chunks)} parts: the first is run")
        return {
            "engine": engine_version(),
            "norms": [norm_facts(file, graph, norm) for norm in graph.norms],
            "skipped": to_plain((*graph.skipped, *([more] if len(chunks) > 1 else []))),
        }


class _Feed:
    """Keeps mtmd's pixels, and puts others in their place.

    Attributes:
        made: mtmd's own; None before the first run.
    """

    def __init__(self, path: str, given: Pixels | None) -> None:
        self._path, self._given = path, given
        self.made: Pixels | None = None

    def on_node(self, address: int) -> None:
        leaf = input_leaf(address)
        if leaf is None:
            return
        if self.made is None:
            self.made = read_pixels(leaf)
        if self._given is None:
            return
        if self._given.shape != self.made.shape:
            sizes = ("×".join(map(str, v.shape)) for v in (self.made, self._given))
            raise InputError(
                f"{self._path}: its pixels are {next(sizes)}, another encoder's {next(sizes)}"
                " (pictures, height, width, channels)"
            )
        write_pixels(leaf, self._given)
