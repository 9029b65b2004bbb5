"""What one run of one model showed, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ggufnorm.core.engine import Engine
from ggufnorm.core.formula import Formula
from ggufnorm.core.model import NormKind, Skipped

NonFinite = Literal["NaN", "infinity", "-infinity"]
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Sample:
    """Some rows of a norm, all ``(rows, channels)``.

    Attributes:
        input: what went in.
        output: llama.cpp's result.
        weight: the file's weight as each row meets it; None without one.
        bias: the same of the bias.
    """

    input: Rows
    output: Rows
    weight: Rows | None
    bias: Rows | None


@dataclass(frozen=True)
class Spread:
    """What epsilon is added to: a row's mean square, or variance where the mean is taken off.

    Rows that are zero throughout are left out: no epsilon changes their result.

    Attributes:
        smallest: over all rows.
        token: of that row, counted from 0.
        median: over all rows.
    """

    smallest: float
    token: int
    median: float


@dataclass(frozen=True)
class NormCapture:
    """One norm in the run.

    Attributes:
        tensor: name of the weight's tensor, None for a norm without one.
        bias: name of the bias's tensor, None for a norm without one.
        node: llama.cpp's label of the node that holds the norm's result.
        layer: block number, None outside the blocks.
        role: what it normalizes: ``attn``, ``ffn``, ``q``, ``k``, ``output`` …
        kind: the formula that llama.cpp runs.
        epsilon: that llama.cpp uses (``op_params``), float32; None if it is infinite.
        groups: of a GroupNorm.
        n_rows: rows seen; a norm over each head has several for a token.
        zero_inputs: how many of them were zero throughout.
        zero_outputs: how many of the results were.
        spread: None for an L2 norm and a GroupNorm, and if no row was finite and not zero.
        residual: relative L2 distance of llama.cpp's result from NumPy's with the same
            input and epsilon and the file's weight and bias; None if it could not be
            computed.
        sample: only where the residual tells of another formula.
    """

    tensor: str | None
    bias: str | None
    node: str
    layer: int | None
    role: str
    kind: NormKind
    epsilon: float | None
    groups: int | None
    n_rows: int
    zero_inputs: int
    zero_outputs: int
    spread: Spread | None
    residual: float | None
    sample: Sample | None

    @property
    def formula(self) -> Formula:
        """What llama.cpp states to compute."""
        return Formula.stated(self.kind, self.epsilon, self.groups)


@dataclass(frozen=True)
class Sighting:
    """A value in the graph.

    Attributes:
        node: llama.cpp's label.
        op: ggml's name of the operation.
        tensor: the file's tensor that is read there, None if none is.
        layer: block number, None outside the blocks.
        token: counted from 0.
        channel: within its row.
        value: of the element; None if it is not finite.
        non_finite: what it is then.
        in_f16: whether llama.cpp keeps or converts the value to half precision: a node of
            that type, an operand of a product with an F16 matrix, an entry of an F16 cache.
    """

    node: str
    op: str
    tensor: str | None
    layer: int | None
    token: int
    channel: int
    value: float | None
    non_finite: NonFinite | None
    in_f16: bool


@dataclass(frozen=True)
class Capture:
    """All that a run showed.

    Attributes:
        norms: every norm of the graph, in graph order.
        tensors: the file's tensors that the graph reads.
        first_non_finite: the first NaN or infinity, None if all values are finite.
        peaks: the largest value of each node where half precision has less than two bits of
            room above it, in graph order.
        skipped: norms that were not seen or not recomputed, and why.
        n_tokens: length of the text.
        engine: what ran it.
        build: which llama.cpp that was, and where.
    """

    norms: tuple[NormCapture, ...]
    tensors: tuple[str, ...]
    first_non_finite: Sighting | None
    peaks: tuple[Sighting, ...]
    skipped: tuple[Skipped, ...]
    n_tokens: int
    engine: str
    build: Engine | None = None
