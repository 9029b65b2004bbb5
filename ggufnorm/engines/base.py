"""What every engine offers: a model that runs token ids and shows values at hook points.

A :class:`Runner` runs one model in one engine. Before the first run it learns where it can be
observed (:meth:`Runner.plan`); then :meth:`Runner.forward` runs one batch and calls back at the
hook points that were asked for. :mod:`ggufnorm.runs` puts runners side by side and probes on
their hook points; no engine knows of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.drift import SideFacts
from ggufnorm.core.engine import Engine
from ggufnorm.core.model import NormKind, Skipped
from ggufnorm.core.rows import Rows
from ggufnorm.core.tokens import token_rows
from ggufnorm.core.trace import every

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]

OperationRole = Literal[
    "embedding",
    "matmul",
    "bias",
    "attention",
    "recurrent",
    "activation",
    "norm",
    "residual",
    "norm_input",
    "output",
    "other",
]
"""What a hooked operation does; ``norm_input`` only where none of the others fits."""


@dataclass(frozen=True)
class HookPoint:
    """An operation whose result can be observed.

    Attributes:
        index: of the node in its graph.
        key: its label, the same in every run of one architecture.
        op: the engine's name of the operation.
        tensor: the file's tensor that it reads, None for none.
        layer: block number, None outside the blocks.
        pin: whether its value can be replaced (a view has no value of its own).
    """

    index: int
    key: str
    op: str
    role: OperationRole
    tensor: str | None
    layer: int | None
    pin: bool


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        key: its label, with ``@k`` behind it for the k-th repetition of that label: the
            same in every run of one architecture, whatever the options.
        shape: ggml's ``ne`` without trailing ones.
        params: the raw bytes of ``op_params``.
        sources: for each source the index of a node, or the name of a leaf (a weight,
            an input, a cache).
        source_shapes: ggml's ``ne`` of each source.
    """

    index: int
    key: str
    name: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    params: bytes
    sources: tuple[int | str, ...]
    source_shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class NormPlan:
    """A norm in a graph: which nodes hold its input and its output.

    Attributes:
        key: name of the weight's tensor, or the output node's key for a norm without one.
        epsilon: that the operation really uses, float32.
        groups: of a GroupNorm.
        input: index of the node whose value is the hidden state.
        norm: index of the norm operation itself.
        output: index of the last node of norm, weight and bias.
        weight: tensor name, None for none.
        weight_shape: ggml's ``ne`` of the weight as the graph multiplies it.
        bias: tensor name, None for none.
        bias_shape: ggml's ``ne`` of the bias as the graph adds it.
    """

    key: str
    kind: NormKind
    epsilon: float
    groups: int | None
    input: int
    norm: int
    output: int
    weight: str | None
    weight_shape: tuple[int, ...]
    bias: str | None
    bias_shape: tuple[int, ...]


@dataclass(frozen=True)
class StatedNorm:
    """What a file says of a norm that is run.

    Attributes:
        layer: block number, None outside the blocks.
        role: as in :class:`~ggufnorm.core.model.NormSite`.
        epsilon: by the metadata, None if they say nothing.
    """

    layer: int | None
    role: str
    epsilon: float | None


@dataclass(frozen=True)
class Graph:
    """The operations of one forward pass, and what they mean."""

    nodes: tuple[Node, ...]
    norms: tuple[NormPlan, ...]
    hooks: tuple[HookPoint, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Batch:
    """What one forward pass runs.

    Attributes:
        tokens: ids.
        position: of the first of them in its sequence.
        n_outputs: how many tokens at the end give an output (logits).
        following: the token that really follows each output; the last may have none.
        first: number of the first token in the whole text.
        chunk_start: number of its chunk's first token in the whole text.
        scored_from: number of the token whose logits are the first, in the whole text.
        encode: run the encoder instead of the decoder.
    """

    tokens: Tokens
    position: int
    n_outputs: int
    following: Tokens
    first: int
    chunk_start: int
    scored_from: int
    encode: bool = False

    def scored(self, stride: int = 1) -> range:
        """Numbers of the tokens with logits that a token follows, one of each ``stride``."""
        start = self.chunk_start
        kept = every(self.scored_from - start, len(self.following), stride)
        return range(kept.start + start, kept.stop + start, kept.step)

    def next_tokens(self, positions: range) -> Tokens:
        """The tokens that follow those at ``positions``, of :meth:`scored`."""
        return self.following[np.asarray(positions, np.intp) - self.scored_from]


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do beside showing values.

    Attributes:
        pin: values can be replaced while the model runs.
        add: values can be changed for one of several sequences that run side by side.
        predicts: the model makes next-token predictions.
        logits: they can be read.
        weights: the model's file is there to read weights from.
    """

    pin: bool
    add: bool
    predicts: bool
    logits: bool
    weights: bool


@dataclass(frozen=True)
class EngineInfo:
    """What a report says of an engine.

    Attributes:
        engine: its name and version.
        options: how it runs the model.
        n_threads: CPU threads.
        n_gpu_layers: as asked for.
        build: which build of llama.cpp, and the devices it ran on; None for other engines.
    """

    engine: str
    options: SideFacts
    n_threads: int
    n_gpu_layers: int
    build: Engine | None = None


class Activation(Protocol):
    """A value at a hook point, good until the callback returns: copy what is kept."""

    @property
    def value(self) -> Array:
        """The whole value, ``(ne[3], ne[2], ne[1], ne[0])``; a trace does not keep it."""

    def rows(self, stride: int = 1) -> Rows:
        """Its rows, of every ``stride``-th token (:func:`ggufnorm.core.trace.every`)."""

    def replace(self, values: Array) -> None:
        """Go on with other values; on a device, a value that has gaps in memory stays."""


OnActivation = Callable[[int, Activation], bool]
"""``(k, value at the k-th hook point) -> go on``."""


class Runner(Protocol):
    """One model in one engine. A context manager.

    Attributes:
        path: of the model or trace, for messages.
        graphs: one per batch of a chunk (a later batch may build another graph); empty
            before :meth:`plan`.
        dtypes: the types of the file's tensors by name.
        n_vocab: logits of a position.
        start: the token that a chunk starts with whatever the text says, None for none.
    """

    path: str
    graphs: list[Graph]
    dtypes: dict[str, str]
    n_vocab: int
    start: int | None

    @property
    def info(self) -> EngineInfo:
        """Which engine, and how it runs the model."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    def stated(self, plan: NormPlan, output_key: str) -> StatedNorm:
        """What the file says of a norm.

        Args:
            plan: the norm in its graph.
            output_key: of the node that holds its result.
        """

    def piece(self, token: int) -> str:
        """The text of a token id."""

    def batches(self, tokens: Tokens, first: int) -> list[Batch]:
        """Cut a chunk into the batches that the model wants.

        Args:
            tokens: of the chunk.
            first: number of the chunk's first token in the whole text.
        """

    def plan(self, chunk: Sequence[Batch]) -> None:
        """Learn the graph of each of a chunk's batches, by a run that need not have results."""

    def begin_chunk(self) -> None:
        """Forget all tokens."""

    def forward(self, k: int, batch: Batch, at: Sequence[int], on_activation: OnActivation) -> None:
        """Run the chunk's k-th batch and call back at some of its nodes.

        Args:
            k: which graph.
            batch: to run.
            at: indices of nodes, ascending.
            on_activation: called at each, in order; the run ends where it says False.

        Raises:
            EngineError: the run failed, or the graph is not the one that was planned.
        """

    def logits(self, k: int, batch: Batch, positions: range) -> Array:
        """Logits of the last batch, ``(positions, vocabulary)``: good until the next run.

        Args:
            k: which batch of its chunk it was.
            batch: that batch.
            positions: numbers of tokens in the whole text.
        """


def rows_of(value: Array, batch: Batch) -> Rows:
    """All rows of a value, ``(ne[3], ne[2], ne[1], ne[0])``, that a batch gave."""
    n_tokens, first = tokens_of(value.shape, batch)
    return Rows(token_rows(value, n_tokens), batch.first + first, n_tokens)


def tokens_of(shape: tuple[int, ...], batch: Batch) -> tuple[int, int]:
    """How many tokens a value covers, and the first of them within its batch.

    After the last layer's attention only the rows that give logits are left; those are
    the batch's last ones.
    """
    n = len(batch.tokens)
    if n in shape[:-1]:
        return n, 0
    if batch.n_outputs and batch.n_outputs in shape[:-1]:
        return batch.n_outputs, n - batch.n_outputs
    return 1, 0


def predicts(graph: Graph) -> bool:
    """Whether a graph ends in next-token logits (llm_graph_result::t_logits)."""
    return any(n.name == "result_output" for n in graph.nodes)
