"""Inspections as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.report.text import (
    NORM_COLUMNS,
    counted,
    norm_row,
    notes,
    printable,
    summary,
    title,
)

_COLUMNS = ("Tensor", *(c for c in NORM_COLUMNS if c != "Tensor"))
_LEFT = ("Tensor", "Norm", "Kind", "Type", "Weights", "Outlier")


def to_markdown(result: Inspection | InspectionSet) -> str:
    """One section per model: a table of its norms, and what is to be said of them."""
    models = (result,) if isinstance(result, Inspection) else result.models
    return "\n".join("\n".join(_section(m)) + "\n" for m in models)


def _section(model: Inspection) -> Iterator[str]:
    yield f"## {escape(title(model))}"
    yield ""
    if model.norms:
        rows = [norm_row(n) for n in model.norms]
        yield from table(_COLUMNS, ([row[c] for c in _COLUMNS] for row in rows), left=_LEFT)
        yield ""
    yield from (f"- {escape(line)}" for line in (*summary(model), *notes(model)))
    if model.skipped:
        skipped = (f"- {escape(printable(f'{s.what}: {s.reason}'))}" for s in model.skipped)
        yield from ("", f"Skipped: {len(model.skipped)}", "", *skipped)
    if model.tensors is not None:
        yield from ("", counted(len(model.tensors), "tensor"), "")
        facts = (
            [printable(t.name), t.dtype, "×".join(map(str, t.shape)), f"{t.n_bytes}", f"{t.offset}"]
            for t in model.tensors
        )
        columns = ("Tensor", "Type", "Shape", "Bytes", "Offset")
        yield from table(columns, facts, left=("Tensor", "Type"))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str]
) -> Iterator[str]:
    """A table; the columns that are not ``left`` are aligned to the right."""
    yield _line(columns)
    yield _line(["---" if c in left else "--:" for c in columns])
    yield from (_line(map(escape, row)) for row in rows)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Text without Markdown: tensor names are full of underscores."""
    return re.sub(r"([\\`*_\[\]<>|&#~])", r"\\\1", text)
