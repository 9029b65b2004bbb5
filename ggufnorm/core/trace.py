"""What a trace says of itself: everything but the values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ggufnorm.core.drift import ModelFacts, SideFacts
from ggufnorm.core.engine import Engine
from ggufnorm.core.model import NormKind, Skipped

SCHEMA, VERSION = "ggufnorm/trace", "1"
"""What the metadata of a trace's file say under ``schema`` and ``version``."""

TraceType = Literal["f32", "f16"]
"""How the values at the hook points are stored."""


@dataclass(frozen=True)
class NetworkFacts:
    """What two files must have in common to be versions of one network.

    Attributes:
        architecture: ``general.architecture``.
        n_layers: ``{architecture}.block_count``.
        n_embd: ``{architecture}.embedding_length``.
        n_vocab: tokens in the vocabulary, 0 if there is none.
        vocabulary: digest of their texts.
    """

    architecture: str
    n_layers: int | None
    n_embd: int | None
    n_vocab: int
    vocabulary: str


@dataclass(frozen=True)
class StopFacts:
    """One hook point of a trace.

    Attributes:
        key: llama.cpp's label, ``@k`` behind it for the k-th of that label.
        op: ggml's name of the operation.
        role: as in :class:`~ggufnorm.core.drift.OperationDrift`.
        tensor: the file's tensor that it reads, None if it reads none.
        dtype: that tensor's type.
        layer: block number, None outside the blocks.
        shape: of the whole value in the run, in ggml's order.
        first: the first token that it shows, counted from 0 in the chunk.
        n_tokens: how many it shows, before tokens are chosen.
        rows: rows of one token (several at a per-head norm).
        channels: values of a row.
    """

    key: str
    op: str
    role: str
    tensor: str | None
    dtype: str | None
    layer: int | None
    shape: tuple[int, ...]
    first: int
    n_tokens: int
    rows: int
    channels: int


@dataclass(frozen=True)
class NormFacts:
    """One norm of a trace.

    Attributes:
        key: name of the weight's tensor, or the result's label for a norm without one.
        kind: the formula that llama.cpp ran.
        epsilon: that it used; None for infinity (ggml takes nothing else that is not finite).
        epsilon_metadata: what the file's metadata says, None if it says nothing.
        layer: block number, None outside the blocks.
        role: as in :class:`~ggufnorm.core.model.NormSite`.
        groups: of a GroupNorm.
        weight: tensor name, None for none.
        bias: tensor name, None for none.
        input: key of the hook point that holds the input.
        output: key of the hook point that holds the result.
    """

    key: str
    kind: NormKind
    epsilon: float | None
    epsilon_metadata: float | None
    layer: int | None
    role: str
    groups: int | None
    weight: str | None
    bias: str | None
    input: str
    output: str


@dataclass(frozen=True)
class BatchFacts:
    """One decode of a chunk: long chunks take several, each with a graph of its own.

    Attributes:
        first_scored: the first token whose logits are there, counted from 0 in the chunk.
        n_scored: how many have logits, before tokens are chosen.
        stops: in graph order.
        norms: in graph order.
    """

    first_scored: int
    n_scored: int
    stops: tuple[StopFacts, ...]
    norms: tuple[NormFacts, ...]


@dataclass(frozen=True)
class TraceFacts:
    """All that a trace says of itself.

    Token ``t`` of a chunk, counted from 0, is kept where ``(t + 1) % stride == 0``; at a hook point
    that shows one token only it always is.

    Attributes:
        model: which file was run.
        network: what a model or trace must share to be compared.
        engine: which llama.cpp.
        options: how it was run.
        n_threads: CPU threads.
        n_gpu_layers: as asked for.
        text: where the text came from.
        n_text_tokens: tokens in the text.
        n_ctx: tokens of a chunk.
        n_chunks: chunks that were run.
        start: the token that replaces a chunk's first (or starts a decoder), None for none.
        stride: one of so many tokens is kept.
        dtype: how values are stored; logits are always F32.
        n_vocab: logits of a position.
        predicts: whether the model makes next-token predictions.
        logits: whether they are stored.
        batches: of each chunk.
        skipped: what was not observed, and why.
        pieces: token id, as text, to the token's text.
        build: the build of llama.cpp, and where it ran; None for another engine.
        layers: how many of the first layers were run; None for all.
    """

    model: ModelFacts
    network: NetworkFacts
    engine: str
    options: SideFacts
    n_threads: int
    n_gpu_layers: int
    text: str
    n_text_tokens: int
    n_ctx: int
    n_chunks: int
    start: int | None
    stride: int
    dtype: TraceType
    n_vocab: int
    predicts: bool
    logits: bool
    batches: tuple[BatchFacts, ...]
    skipped: tuple[Skipped, ...]
    pieces: dict[str, str]
    build: Engine | None = None
    layers: int | None = None


def kept(first: int, n_tokens: int, stride: int) -> range:
    """Which of a chunk's tokens ``first … first + n_tokens - 1`` a trace keeps at a hook point."""
    return every(first, n_tokens, stride if n_tokens > 1 else 1)


def every(first: int, n_tokens: int, stride: int) -> range:
    """Those of the tokens ``first … first + n_tokens - 1`` with ``(t + 1) % stride == 0``."""
    return range(first + (-(first + 1)) % stride, first + n_tokens, stride)
