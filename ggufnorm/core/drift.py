"""What a drift run found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.metrics import Difference, LogitStatistics
from ggufnorm.core.model import NormKind, Skipped


@dataclass(frozen=True)
class NormDrift:
    """One norm in both runs.

    Attributes:
        tensor: name of the weight's tensor, None for a norm without one.
        node: llama.cpp's label of the node that holds the norm's result.
        layer: block number, None outside the blocks.
        role: what it normalizes: ``attn``, ``ffn``, ``q``, ``k``, ``output`` …
        kind: the formula that llama.cpp runs.
        epsilon_metadata: what the second file's metadata says, None if it says nothing.
        epsilon_used: what llama.cpp used in the second model, from the graph.
        epsilon_used_ref: what it used in the reference.
        input: cumulative drift of the hidden state that is normalized.
        output: cumulative drift of the weighted result.
        local: drift of the result when the input is the reference's: the norm's own
            share, exactly zero if weight, bias and epsilon are the reference's.
        weight: drift of the weight between the files; None for a norm without one, or
            where its shapes differ.
        bias: the same of the bias.
        recompute_residual: relative L2 distance of llama.cpp's result in the second model
            from NumPy's, computed from the captured input, the file's weight and bias and
            the epsilon used; None if it could not be computed.
        recompute_residual_ref: the same in the reference.
    """

    tensor: str | None
    node: str
    layer: int | None
    role: str
    kind: NormKind
    epsilon_metadata: float | None
    epsilon_used: float
    epsilon_used_ref: float
    input: Difference
    output: Difference
    local: Difference
    weight: Difference | None
    bias: Difference | None
    recompute_residual: float | None
    recompute_residual_ref: float | None


@dataclass(frozen=True)
class OperationDrift:
    """One watched node in both runs, in graph order.

    Attributes:
        node: llama.cpp's label, ``@k`` behind it for the k-th of that label.
        op: ggml's name of the operation.
        role: ``embedding``, ``matmul``, ``attention``, ``norm``, ``norm_input``, ``other``.
        tensor: the file's tensor that it reads, None if it reads none.
        layer: block number, None outside the blocks.
        dtype: the tensor's type in the second file.
        dtype_ref: and in the reference.
        cumulative: drift in the free run: everything upstream counts.
        local: drift when everything upstream is the reference's: this operation's own.
    """

    node: str
    op: str
    role: str
    tensor: str | None
    layer: int | None
    dtype: str | None
    dtype_ref: str | None
    cumulative: Difference
    local: Difference


@dataclass(frozen=True)
class Culprit:
    """Where the first wrong thing stands.

    Attributes:
        tensor: the tensor that is read there, None if none is.
        node: llama.cpp's label.
        layer: block number, None outside the blocks.
        reason: one sentence.
    """

    tensor: str | None
    node: str
    layer: int | None
    reason: str


@dataclass(frozen=True)
class ModelFacts:
    """Which file was run.

    Attributes:
        path: as given.
        architecture: ``general.architecture``.
        name: ``general.name``.
        file_type: the mix the file claims, for example ``MOSTLY_Q4_K_M``.
        n_bytes: size of the file.
    """

    path: str
    architecture: str
    name: str | None
    file_type: str | None
    n_bytes: int


@dataclass(frozen=True)
class RunFacts:
    """How it was run.

    Attributes:
        engine: which llama.cpp.
        text: where the text came from.
        n_text_tokens: tokens in the text.
        n_ctx: tokens of a chunk.
        n_chunks: chunks that were run; the rest of the text was not.
        n_chunks_planned: chunks that were asked for (more, if the run was interrupted).
        n_threads: CPU threads.
        n_gpu_layers: as asked for.
        seconds: duration of the lockstep walk.
        peak_memory: most resident memory of the engine's process, in bytes; None where the
            system does not tell.
    """

    engine: str
    text: str
    n_text_tokens: int
    n_ctx: int
    n_chunks: int
    n_chunks_planned: int
    n_threads: int
    n_gpu_layers: int
    seconds: float
    peak_memory: int | None


@dataclass(frozen=True)
class DriftReport:
    """All that a drift run found.

    Attributes:
        reference: the model that is right by definition.
        quant: the model under test.
        norms: in graph order.
        operations: every watched node, in graph order.
        logits: what drift does to the predictions; None for a model that makes none (an
            embedding model).
        culprit: the one thing that is out of line; None if nothing is.
        verdict: one or two sentences: where drift enters, and whether a norm is at fault.
        skipped: what was not watched or not computed, and why.
        run: how it was run.
    """

    reference: ModelFacts
    quant: ModelFacts
    norms: tuple[NormDrift, ...]
    operations: tuple[OperationDrift, ...]
    logits: LogitStatistics | None
    culprit: Culprit | None
    verdict: str
    skipped: tuple[Skipped, ...]
    run: RunFacts
