"""An encoder of pictures or sounds in mtmd as a runner: one input, one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.drift import SideFacts
from ggufnorm.core.engine import Engine
from ggufnorm.core.model import Skipped
from ggufnorm.engines.base import (
    Array,
    Batch,
    Capabilities,
    EngineInfo,
    Graph,
    NormPlan,
    OnActivation,
    StatedNorm,
    Tokens,
)
from ggufnorm.engines.llama.binding import build
from ggufnorm.engines.llama.mtmd import Encoder, MakeBitmap, input_leaf
from ggufnorm.engines.llama.runner import LlamaActivation
from ggufnorm.engines.llama.stated import stated_norm
from ggufnorm.engines.llama.vision import read_pixels, write_pixels
from ggufnorm.engines.llama.watch import GraphWatch
from ggufnorm.errors import EngineError, InputError
from ggufnorm.formats.model_file import ModelFile

Pixels = NDArray[np.float32]
_OPTIONS = SideFacts("off", "f32", "f32", use_extra_bufts=False, unfused_norms=False)


class EncoderRunner:
    """An encoder that runs one picture or one sound. A context manager.

    See :class:`~ggufnorm.engines.base.Runner`. Of an input that mtmd cuts into parts the first
    is run.

    Args:
        file: the mmproj file.
        bitmap: how mtmd takes the input
            (:func:`~ggufnorm.engines.llama.vision.picture_bitmap`,
            :func:`~ggufnorm.engines.llama.sound.sound_bitmap`).
        pixels: what the encoder is fed in the place of mtmd's pixels, of the same shape.
        n_threads: CPU threads; None for all.

    Raises:
        EngineMissingError: llama-cpp-python is not installed, or lacks mtmd.
        EngineError: llama.cpp does not load the file.
        InputError: the file holds no such encoder.
    """

    n_vocab = 0
    start: int | None = None

    def __init__(
        self,
        file: ModelFile,
        bitmap: MakeBitmap,
        pixels: Pixels | None,
        n_threads: int | None,
    ) -> None:
        self.path, self.file = file.path, file
        self.graphs: list[Graph] = []
        self.dtypes = {name: tensor.dtype for name, tensor in file.tensors.items()}
        self._n_threads = n_threads or 0
        self._feed = _Feed(file.path, pixels)
        self._watch = GraphWatch(file.path, frozenset(file.tensors), on_node=self._feed.on_node)
        self._encoder = Encoder(file.path, self._watch.on_eval, n_threads)
        self._parts = self._encoder.cut(bitmap)

    def __enter__(self) -> EncoderRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._encoder.__exit__(kind, error, trace)

    @property
    def pixels(self) -> Pixels:
        """What mtmd made of the picture, ``(pictures, height, width, 3)``; after a run."""
        assert self._feed.made is not None
        return self._feed.made

    @property
    def info(self) -> EngineInfo:
        """Which llama.cpp."""
        watch = self._watch
        engine = Engine(build(), 0, watch.devices, weights=watch.weights)
        return EngineInfo(build().name, _OPTIONS, self._n_threads, 0, engine)

    @property
    def capabilities(self) -> Capabilities:
        """It shows values."""
        return Capabilities(pin=True, add=False, predicts=False, logits=False, weights=True)

    def stated(self, plan: NormPlan, output_key: str) -> StatedNorm:
        """What the file says of a norm."""
        return stated_norm(self.file, plan, output_key)

    def piece(self, token: int) -> str:
        """There are no tokens."""
        return ""

    def batches(self, tokens: Tokens, first: int) -> list[Batch]:
        """The one input."""
        return [Batch(tokens[:0], 0, 0, tokens[:0], 0, 0, 0)]

    def plan(self, chunk: Sequence[Batch]) -> None:
        """Learn the graph of the input."""
        graph = self._watch.plan(self._encode)
        if len(self._parts) > 1:
            n = len(self._parts)
            tiles = Skipped("tiles", f"mtmd cuts the input into {n} parts: the first is run")
            graph = replace(graph, skipped=(*graph.skipped, tiles))
        self.graphs = [graph]

    def begin_chunk(self) -> None:
        """An encoder remembers nothing."""

    def forward(self, k: int, batch: Batch, at: Sequence[int], on_activation: OnActivation) -> None:
        """Run the input; see :meth:`ggufnorm.engines.base.Runner.forward`."""

        def on_node(n: int, address: int) -> bool:
            return on_activation(n, LlamaActivation(address, batch))

        self._watch.forward(self.graphs[k], at, self._encode, on_node)

    def logits(self, k: int, batch: Batch, positions: range) -> Array:
        """There are none."""
        raise EngineError(f"{self.path}: an encoder gives no logits")

    def _encode(self) -> None:
        if not self._encoder.encode(self._parts[0]) and not self._watch.failed:
            raise EngineError(f"{self.path}: mtmd_encode_chunk failed")


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
