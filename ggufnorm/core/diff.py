"""What a comparison of two files found, as plain data.

Figures are of file ``b`` against file ``a``: with their values ``a`` and ``b`` and
``d = b - a``, over all elements of a tensor,

- relative L2 ``‖d‖ / ‖a‖``,
- MSE ``mean(d²)``, and NMSE ``mean(d²) / mean(a²)``, the square of the relative L2,
- SQNR ``10 log10(mean(a²) / mean(d²))``, in dB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ggufnorm.core.drift import ModelFacts
from ggufnorm.core.model import Skipped
from ggufnorm.core.result import Result

Side = Literal["a", "b"]


@dataclass(frozen=True)
class MetadataDifference:
    """A metadata key whose value is not the same in both files.

    Attributes:
        key: as in the files.
        affects: what follows from it: ``forward`` pass, ``tokens`` (how text becomes
            token ids), or ``nothing`` that llama.cpp computes.
        a: the value in the first file, None if it has none. Of two arrays the elements
            at ``index``.
        b: the same in the second.
        index: of two arrays: where they differ first; else None.
        n_differing: of two arrays: how many elements differ, those that only one of them
            has among them; else None.
    """

    key: str
    affects: Literal["forward", "tokens", "nothing"]
    a: Any
    b: Any
    index: int | None
    n_differing: int | None


@dataclass(frozen=True)
class NormDifference:
    """A norm's weight or bias in both files, compared exactly, as float32.

    Attributes:
        tensor: its name.
        layer: block number, None outside the blocks.
        role: what it normalizes: ``attn``, ``ffn``, ``q``, ``k``, ``output`` …
        dtype_a: its type in the first file.
        dtype_b: and in the second.
        n_elements: compared.
        n_differing: elements whose bits differ.
        max_ulp: largest distance, counted in float32 values; None if a NaN is among the
            elements that differ.
        max_abs: largest ``|d|``; None if nothing finite was compared.
        max_abs_row: where it stands.
        max_abs_column: and where in that row.
        rel_l2: relative L2; None if undefined.
    """

    tensor: str
    layer: int | None
    role: str
    dtype_a: str
    dtype_b: str
    n_elements: int
    n_differing: int
    max_ulp: int | None
    max_abs: float | None
    max_abs_row: int | None
    max_abs_column: int | None
    rel_l2: float | None


@dataclass(frozen=True)
class NonFinite:
    """Where a tensor of one file holds NaN or infinity.

    Attributes:
        tensor: its name.
        side: the file.
        count: elements that are NaN or infinite.
        n_rows: rows that hold one. Neither file's row is compared then.
        row: the first such row.
        column: the first in that row.
        block: number of its quantization block within the row (``column`` for a type
            without blocks).
    """

    tensor: str
    side: Side
    count: int
    n_rows: int
    row: int
    column: int
    block: int


@dataclass(frozen=True)
class TensorDifference:
    """A tensor in both files, dequantized; rows with NaN or infinity are left out.

    Attributes:
        tensor: its name.
        layer: block number, None outside the blocks.
        role: what it is in its block: ``ffn_down``, ``attn_q`` …
        shape: ggml's ``ne``: ``shape[0]`` is the length of a row.
        dtype_a: its type in the first file.
        dtype_b: and in the second.
        share: its part of the second file's size, 0 to 1.
        n_compared: elements compared.
        identical: every value is the same, NaN for NaN.
        rel_l2: relative L2; None if undefined (``a`` is all zero and ``b`` is not, or
            nothing finite was compared).
        mse: ``mean(d²)``; None if nothing was compared.
        mean_square: ``mean(a²)``, the denominator of ``nmse``.
        nmse: normalized MSE; None where ``rel_l2`` is.
        sqnr_db: in dB; None where ``rel_l2`` is, and if nothing differs.
        cosine: cosine similarity; None where it is undefined.
        max_abs: largest ``|d|``; None if nothing was compared.
        max_abs_row: where it stands.
        max_abs_column: and where in that row.
    """

    tensor: str
    layer: int | None
    role: str
    shape: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    share: float
    n_compared: int
    identical: bool
    rel_l2: float | None
    mse: float | None
    mean_square: float | None
    nmse: float | None
    sqnr_db: float | None
    cosine: float | None
    max_abs: float | None
    max_abs_row: int | None
    max_abs_column: int | None


@dataclass(frozen=True)
class GroupDifference:
    """Tensors taken together: of one layer, one role, or one pair of types.

    Attributes:
        group: the layer's number (``–`` for tensors outside the blocks), the role, or the
            types, for example ``F16→Q4_K``.
        n_tensors: how many.
        share: their part of the second file's size, 0 to 1.
        rel_l2: relative L2 over all their elements; None if undefined.
        sqnr_db: in dB; None where ``rel_l2`` is, and if nothing differs.
        worst: the tensor with the largest relative L2.
    """

    group: str
    n_tensors: int
    share: float
    rel_l2: float | None
    sqnr_db: float | None
    worst: str


@dataclass(frozen=True)
class Unmatched:
    """A tensor that cannot be compared.

    Attributes:
        tensor: its name.
        shape_a: its shape in the first file, None if it is not there.
        shape_b: and in the second.
    """

    tensor: str
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None


@dataclass(frozen=True)
class DiffReport(Result):
    """All that a comparison of two files found.

    Attributes:
        a: the first file; relative figures are relative to it.
        b: the second.
        metadata: what differs, what affects most first.
        norms: every weight and bias of a norm that both have, in the first file's order.
        tensors: every other tensor that both have, the worst first.
        layers: the same by layer, the worst first.
        roles: by role, the worst first.
        types: by pair of types, the worst first.
        non_finite: NaN and infinities, in the first file's order.
        unmatched: tensors that one file lacks or has in another shape.
        skipped: tensors that could not be read, and why.
        identical: nothing that affects anything differs: neither tensors nor metadata.
        different_checkpoints: every tensor differs wholly.
        verdict: in words.
        n_weights: elements compared, norms' among them.
        seconds: duration of the comparison.
    """

    a: ModelFacts
    b: ModelFacts
    metadata: tuple[MetadataDifference, ...]
    norms: tuple[NormDifference, ...]
    tensors: tuple[TensorDifference, ...]
    layers: tuple[GroupDifference, ...]
    roles: tuple[GroupDifference, ...]
    types: tuple[GroupDifference, ...]
    non_finite: tuple[NonFinite, ...]
    unmatched: tuple[Unmatched, ...]
    skipped: tuple[Skipped, ...]
    identical: bool
    different_checkpoints: bool
    verdict: str
    n_weights: int
    seconds: float
