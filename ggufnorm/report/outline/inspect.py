"""The outline of an inspection."""

from __future__ import annotations

from ggufnorm.core.model import Inspection, TensorFacts
from ggufnorm.report.outline.parts import Outline, Section, Table, skipped_section
from ggufnorm.report.text import NORM_COLUMNS, counted, norm_row, notes, summary, title

_COLUMNS = ("Tensor", *(c for c in NORM_COLUMNS if c != "Tensor"))
_LEFT = ("Tensor", "Norm", "Kind", "Type", "Weights", "Outlier")


def inspect_outline(model: Inspection) -> Outline:
    """The norms of a file, and what is to be said of them."""
    rows = tuple({c: row[c] for c in _COLUMNS} for row in map(norm_row, model.norms))
    broken = frozenset(
        i for i, n in enumerate(model.norms) if n.weight is not None and n.weight.non_finite
    )
    norms = (Section("Norms", table=Table(rows, _LEFT, broken)),) if rows else ()
    said = (*summary(model), *notes(model))
    tensors = () if model.tensors is None else (_tensors(model.tensors),)
    return Outline(
        title(model),
        sections=(
            Section("", lines=said, charts=("weights",)),
            *norms,
            *skipped_section(tuple(f"{s.what}: {s.reason}" for s in model.skipped)),
            *tensors,
        ),
    )


def _tensors(tensors: tuple[TensorFacts, ...]) -> Section:
    rows = tuple(
        {
            "Tensor": t.name,
            "Type": t.dtype,
            "Shape": "×".join(map(str, t.shape)),
            "Bytes": f"{t.n_bytes}",
            "Offset": f"{t.offset}",
        }
        for t in tensors
    )
    table = Table(rows, left=("Tensor", "Type")) if rows else None
    return Section(counted(len(tensors), "tensor"), table=table)
