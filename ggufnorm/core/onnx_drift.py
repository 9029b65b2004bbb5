"""What a drift run of two ONNX files found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ggufnorm.core.drift import Culprit
from ggufnorm.core.metrics import Difference
from ggufnorm.core.model import Skipped
from ggufnorm.core.result import Result

Scheme = Literal["dynamic", "static", "weights", "half", "float"]
"""How the file under test was made: integers with scales taken from each input, integers with
stored scales, integers in the matrices alone, half precision, or neither."""


@dataclass(frozen=True)
class OutlierChannel:
    """A channel that stretches the range that all channels share.

    Attributes:
        of: what it is a channel of: ``output`` or ``input`` of the matrix, or ``activation``.
        channel: its index.
        ratio: its largest magnitude, divided by the median channel's.
    """

    of: Literal["output", "input", "activation"]
    channel: int
    ratio: float


@dataclass(frozen=True)
class OnnxOperation:
    """One operation of the file under test, and the reference's that stands for it.

    Attributes:
        node: the reference's node, by name or by its result: what ``nodes_to_exclude`` takes.
        value: name of the result in the file under test.
        op: ONNX's name of the reference's operation.
        op_quant: of the operations in the file under test that stand for it, in order.
        layer: block number, None outside the blocks.
        dtype: of its matrix in the file under test, or of the result where it reads none.
        dtype_ref: in the reference.
        local: own error: the result from the reference's input.
        cumulative: error along the file's own run.
        expected: relative L2 of the own error if matrix and input were quantized afresh, in the
            same scheme; None where it reads no integers, or for small own errors.
        weight_error: relative L2 of the matrix from the reference's; None where it reads none.
        weight_expected: the same of a fresh quantization.
        input_value: the value that is rounded by the stored scale that loses most.
        input_error: relative L2 of that value, rounded; None without stored scales.
        input_expected: the same with scales of the input's own range.
        share: of the output's squared error, what this operation's own error alone makes when
            the reference runs with it; None where it was not measured.
        saturated: relative L2 that a product loses besides on x86 without VNNI, where sums of two
            products are cut to 16 bits; None for other operations.
        outliers: channels that stretch a range, the worst first.
        change: what differs in the graph: another attribute or constant; empty for nothing.
        together: other operations of the reference that are compared with it, because their
            results have no partner in the file under test.
    """

    node: str
    value: str
    op: str
    op_quant: tuple[str, ...]
    layer: int | None
    dtype: str
    dtype_ref: str
    local: Difference
    cumulative: Difference
    expected: float | None = None
    weight_error: float | None = None
    weight_expected: float | None = None
    input_value: str | None = None
    input_error: float | None = None
    input_expected: float | None = None
    share: float | None = None
    saturated: float | None = None
    outliers: tuple[OutlierChannel, ...] = ()
    change: str = ""
    together: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputDrift:
    """A float output of both files.

    Attributes:
        name: in the file under test.
        shape: of the first run.
        difference: of the file under test, as its graph says.
        optimized: of the file under test with ONNX Runtime's optimizations, as users run it.
        main: whether shares are shares of this output's error: most of the graph leads to it.
    """

    name: str
    shape: tuple[int, ...]
    difference: Difference
    optimized: Difference | None
    main: bool


@dataclass(frozen=True)
class Remedy:
    """A setting of the quantizer, and what the main output's error is with it: measured.

    Attributes:
        setting: in the quantizer's words: ``per_channel=True``, ``nodes_to_exclude=[…]``.
        nodes: whose results it changes.
        rel_l2: error of the main output with it, None if that is not finite.
        cosine_distance: likewise, ``1 - cosine``.
        bytes: what the file grows by.
    """

    setting: str
    nodes: tuple[str, ...]
    rel_l2: float | None
    cosine_distance: float | None
    bytes: int


@dataclass(frozen=True)
class OnnxFacts:
    """Which file was run.

    Attributes:
        path: as given.
        producer: who wrote it.
        opset: of ONNX's own operations.
        n_bytes: with the files beside it that hold its weights.
        n_nodes: in the main graph.
    """

    path: str
    producer: str
    opset: int
    n_bytes: int
    n_nodes: int


@dataclass(frozen=True)
class OnnxRunFacts:
    """How it was run.

    Attributes:
        engine: which ONNX Runtime.
        inputs: what they were.
        n_runs: inputs that were run, one after the other.
        n_threads: CPU threads, None for the runtime's choice.
        n_groups: passes over the graph, so that what is held stays within ``held_bytes``.
        held_bytes: of activations, at most.
        paired_by: names, or weights and topology.
    """

    engine: str
    inputs: str
    n_runs: int
    n_threads: int | None
    n_groups: int
    held_bytes: int
    paired_by: str


@dataclass(frozen=True)
class OnnxDriftReport(Result):
    """All that a drift run of two ONNX files found.

    Attributes:
        reference: the file that is right by definition.
        quant: the file under test.
        scheme: how it was made.
        operations: paired ones, in graph order.
        outputs: all float outputs.
        remedies: settings that were tried, the best first.
        culprit: the one operation that is out of line; None if none is.
        verdict: where drift enters, and what to do.
        skipped: what has no partner or was not measured, and why.
        run: how it was run.
    """

    reference: OnnxFacts
    quant: OnnxFacts
    scheme: Scheme
    operations: tuple[OnnxOperation, ...]
    outputs: tuple[OutputDrift, ...]
    remedies: tuple[Remedy, ...]
    culprit: Culprit | None
    verdict: str
    skipped: tuple[Skipped, ...]
    run: OnnxRunFacts
