"""What a drift run found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.engine import Circumstance, Engine, KernelError
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.metrics import Difference, Peak
from ggufnorm.core.model import NormKind, Skipped
from ggufnorm.core.result import Result


@dataclass(frozen=True)
class NormSplit:
    """What a norm's drift is made of: each part's own effect on the result, as relative L2.

    Each is computed in NumPy with that part from the model under test and everything else
    from the reference. None where it could not be computed.

    Attributes:
        weight: of weight and bias.
        epsilon: of the epsilon used.
        input: of the hidden state.
        kernel: distance between llama.cpp's result and NumPy's in the model under test.
    """

    weight: float | None
    epsilon: float | None
    input: float | None
    kernel: float | None


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
        epsilon_used: what llama.cpp used in the second model, from the graph; None for
            infinity, which ggml takes.
        epsilon_used_ref: what it used in the reference, likewise.
        input: cumulative drift of the hidden state that is normalized.
        output: cumulative drift of the weighted result.
        local: drift of the result when the input is the reference's: the norm's own
            share, exactly zero if weight, bias and epsilon are the reference's.
        weight: drift of the weight between the files; None for a norm without one, or
            where its shapes differ.
        bias: the same of the bias.
        split: what the drift of the result is made of.
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
    epsilon_used: float | None
    epsilon_used_ref: float | None
    input: Difference
    output: Difference
    local: Difference
    weight: Difference | None
    bias: Difference | None
    split: NormSplit
    recompute_residual: float | None
    recompute_residual_ref: float | None


@dataclass(frozen=True)
class OperationDrift:
    """One observed node in both runs, in graph order.

    Attributes:
        node: llama.cpp's label, ``@k`` behind it for the k-th of that label.
        op: ggml's name of the operation.
        role: what it does: ``embedding``, ``matmul``, ``bias``, ``attention``,
            ``recurrent``, ``activation``, ``norm``, ``residual``, ``norm_input``,
            ``output``, ``other``.
        tensor: the file's tensor that it reads, None if it reads none.
        layer: block number, None outside the blocks.
        dtype: the tensor's type in the second file.
        dtype_ref: and in the reference.
        cumulative: drift in the free run: everything upstream counts.
        local: drift when everything upstream is the reference's: this operation's own.
        peak: largest value in the model under test.
        peak_ref: largest value in the reference.
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
    peak: Peak | None
    peak_ref: Peak | None


@dataclass(frozen=True)
class ExpertDrift:
    """One expert of a tensor that stacks several.

    Attributes:
        tensor: of all experts.
        node: llama.cpp's label of the product.
        layer: block number.
        expert: its number.
        rows: that were routed to it: 0 where the text did not use it.
        local: own error of its rows, relative L2, with the reference's input and routing;
            None where it has none.
    """

    tensor: str
    node: str
    layer: int | None
    expert: int
    rows: int
    local: float | None


@dataclass(frozen=True)
class Place:
    """A value in the graph.

    Attributes:
        node: llama.cpp's label.
        tensor: that is read there, None if none is.
        layer: block number, None outside the blocks.
        token: counted from 0 over the whole run, None if all are meant.
        channel: within a row, None if all are meant.
        value: what stands out there; see where it is used.
    """

    node: str
    tensor: str | None
    layer: int | None
    token: int | None
    channel: int | None
    value: float | None


@dataclass(frozen=True)
class LayerDrift:
    """Drift of the hidden state that leaves a layer.

    Attributes:
        layer: block number.
        node: at which it was taken: the layer's last residual sum.
        rel_l2: cumulative drift.
        growth: ``rel_l2`` divided by the layer's before; below 1 drift heals. None in the
            first layer, or where the layer before has none.
    """

    layer: int
    node: str
    rel_l2: float
    growth: float | None


@dataclass(frozen=True)
class TokenDrift:
    """A token whose prediction drifted most.

    Attributes:
        token: counted from 0 over the whole run.
        text: of the token.
        context: text of the tokens before it.
        kld: KL divergence of its prediction, nats.
        p_ref: probability that the reference gave it.
        p_quant: probability that the model under test gave it.
    """

    token: int
    text: str
    context: str
    kld: float
    p_ref: float
    p_quant: float


@dataclass(frozen=True)
class ChannelDrift:
    """A channel of the hidden state that stands out.

    Attributes:
        layer: block number of ``node``.
        node: the residual sum at which it is largest.
        channel: its index.
        error_share: its share of the squared error there, 0 to 1.
        energy_share: its share of the reference's squares there, 0 to 1.
    """

    layer: int | None
    node: str
    channel: int
    error_share: float
    energy_share: float


@dataclass(frozen=True)
class Localisation:
    """Where in layers, tokens and channels the drift is.

    Attributes:
        first_non_finite: the first NaN or infinity in the model under test.
        first_jump: the first operation out of line with the same role in other layers; its
            ``value`` is the robust z-score of its local error's logarithm.
        layers: the hidden state after each layer.
        worst_tokens: by KL divergence, the worst first.
        outlier_channels: by share of the error, the worst first.
        peak: the largest value in the model under test; its ``value``.
        f16_headroom: 65504 divided by that: how far from overflowing in half precision.
    """

    first_non_finite: Place | None
    first_jump: Place | None
    layers: tuple[LayerDrift, ...]
    worst_tokens: tuple[TokenDrift, ...]
    outlier_channels: tuple[ChannelDrift, ...]
    peak: Place | None
    f16_headroom: float | None


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
        fingerprint: digest of the size, the header and a sample of the data.
    """

    path: str
    architecture: str
    name: str | None
    file_type: str | None
    n_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class SideFacts:
    """How one side was run, in llama.cpp's words.

    Attributes:
        flash_attention: ``-fa``: auto, on or off.
        cache_type_k: ``-ctk``.
        cache_type_v: ``-ctv``.
        use_extra_bufts: whether weights were repacked for production kernels.
        unfused_norms: whether norms were observed inside, which keeps them unfused.
        n_ubatch: ``-ub``: most tokens in one decode.
    """

    flash_attention: str
    cache_type_k: str
    cache_type_v: str
    use_extra_bufts: bool
    unfused_norms: bool
    n_ubatch: int = 512


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
        reference: options of the reference.
        quant: options of the model under test.
        cut: why fewer chunks were run than planned: interrupted, or the time budget; None if
            all were.
        engine_ref: the build of llama.cpp that ran the reference, and where; None for a trace.
        engine_quant: the same of the model under test.
    """

    engine: str
    text: str
    n_text_tokens: int
    n_ctx: int
    n_chunks: int
    n_chunks_planned: int
    n_threads: int
    n_gpu_layers: int
    reference: SideFacts
    quant: SideFacts
    cut: str | None = None
    engine_ref: Engine | None = None
    engine_quant: Engine | None = None


@dataclass(frozen=True)
class RunCost:
    """What a run took. Differs from run to run, so it stands in no document.

    Attributes:
        seconds: of the lockstep walk, this time.
        tokens_per_second: of text, this time.
        peak_memory: most resident memory of the engine's process, in bytes; None where the
            system does not tell.
    """

    seconds: float
    tokens_per_second: float
    peak_memory: int | None


@dataclass(frozen=True)
class DriftReport(Result):
    """All that a drift run found.

    Attributes:
        reference: the model that is right by definition.
        quant: the model under test.
        norms: in graph order.
        operations: every observed node, in graph order.
        logits: what drift does to the predictions; None for a model that makes none (an
            embedding model).
        floor: the same of the reference against itself, if asked for: what the engine's own
            noise does.
        embedding: drift of the pooled output; None for a model without one.
        localisation: where the drift is.
        culprit: the one thing that is out of line; None if nothing is.
        verdict: one or two sentences: where drift enters, and whether a norm is at fault.
        skipped: what was not observed or not computed, and why.
        run: how it was run.
        experts: each expert of each product with stacked experts, in graph order.
        cost: what that took; None in a report that was read from a document.
        kernels: for one file in two engines: each kind of operation beside what llama.cpp's
            own tests allow, in graph order; empty otherwise.
        circumstances: for one file in two engines: the same in other batches, and with each
            operation computed by itself.
    """

    reference: ModelFacts
    quant: ModelFacts
    norms: tuple[NormDrift, ...]
    operations: tuple[OperationDrift, ...]
    logits: LogitStatistics | None
    floor: LogitStatistics | None
    embedding: Difference | None
    localisation: Localisation
    culprit: Culprit | None
    verdict: str
    skipped: tuple[Skipped, ...]
    run: RunFacts
    experts: tuple[ExpertDrift, ...] = ()
    cost: RunCost | None = None
    kernels: tuple[KernelError, ...] = ()
    circumstances: tuple[Circumstance, ...] = ()


@dataclass(frozen=True)
class DriftSet(Result):
    """Several models under test, side by side.

    Attributes:
        reports: as they were given.
    """

    reports: tuple[DriftReport, ...]
