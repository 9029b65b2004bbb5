"""The text of a comparison of two files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ggufnorm.core.diff import (
    DiffReport,
    GroupDifference,
    MetadataDifference,
    NonFinite,
    NormDifference,
    TensorDifference,
    Unmatched,
)
from ggufnorm.report.terminal.common import cells, fitted_table, new_table, skipped_lines
from ggufnorm.report.text import (
    decibels,
    model_line,
    norm_difference_row,
    number,
    printable,
    tensor_difference_row,
    value_cell,
)

_MOST_ROWS = 10
_MOST_GROUPS = 8


def diff_parts(report: DiffReport, width: int) -> Iterable[RenderableType]:
    """The parts of the text, from top to bottom, for ``width`` columns."""
    yield _facts(report)
    yield from _metadata(report.metadata)
    yield from _norms(report.norms, width)
    yield from _tensors(report.tensors, width)
    for title, groups in (
        ("type", report.types),
        ("role", report.roles),
        ("layer", report.layers),
    ):
        yield from _groups(title, groups)
    yield from _non_finite(report.non_finite)
    yield from _unmatched(report.unmatched)
    yield from skipped_lines(report.skipped)
    yield ""
    sound = report.identical and not report.non_finite
    yield Text(printable(report.verdict), style="bold green" if sound else "bold")


def _facts(report: DiffReport) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    speed = report.n_weights / max(report.seconds, 1e-9) / 1e6
    n = len(report.norms) + len(report.tensors)
    for row in (
        ("a", model_line(report.a)),
        ("b", model_line(report.b)),
        (
            "compared",
            f"{n} tensors, {report.n_weights:,} weights in {report.seconds:.1f} s"
            f" ({speed:,.0f} M weights/s)",
        ),
    ):
        grid.add_row(*cells(row))
    return grid


def _metadata(metadata: Sequence[MetadataDifference]) -> Iterable[RenderableType]:
    shown = [m for m in metadata if m.affects != "nothing"]
    if shown:
        yield Text("\nMetadata that change what is computed", style="bold")
        table = new_table("Key", "Affects", "a", "b", "Differ", left=("Key", "Affects", "a", "b"))
        table.columns[0].overflow = "ellipsis"
        for m in shown[:_MOST_ROWS]:
            where = "" if m.n_differing is None else f"{m.n_differing:,}, first {m.index}"
            affects = "forward pass" if m.affects == "forward" else "token ids"
            table.add_row(
                *cells([printable(m.key), affects, value_cell(m.a), value_cell(m.b), where])
            )
        yield table
        yield from _more(len(shown) - _MOST_ROWS)
    others = [m.key for m in metadata if m.affects == "nothing"]
    if others:
        yield Text(f"\nOther metadata that differ: {printable(', '.join(others))}")


def _norms(norms: Sequence[NormDifference], width: int) -> Iterable[RenderableType]:
    changed = [n for n in norms if n.n_differing]
    if not changed:
        return
    yield Text("\nNorms that differ, in file order", style="bold")
    rows = [norm_difference_row(n) for n in changed[:_MOST_ROWS]]
    yield fitted_table(
        rows, width, left=("Tensor", "Types"), dropped_first=("row:col", "Layer", "Max ulp")
    )
    yield from _more(len(changed) - _MOST_ROWS)


def _tensors(tensors: Sequence[TensorDifference], width: int) -> Iterable[RenderableType]:
    changed = [t for t in tensors if not t.identical]
    if not changed:
        return
    yield Text(
        f"\nLargest differences of {len(tensors)} other tensors"
        " (NMSE: mean square of b - a over that of a)",
        style="bold",
    )
    rows = [tensor_difference_row(t) for t in changed[:_MOST_ROWS]]
    yield fitted_table(
        rows,
        width,
        left=("Tensor", "Types"),
        dropped_first=("row:col", "NMSE", "Max |Δ|", "Cosine", "Size"),
    )
    yield from _more(len(changed) - _MOST_ROWS)


def _groups(title: str, groups: Sequence[GroupDifference]) -> Iterable[RenderableType]:
    if all(g.rel_l2 == 0 for g in groups):
        return
    yield Text(f"\nBy {title}, the worst first", style="bold")
    table = new_table(
        title.capitalize(), "Tensors", "Size", "Rel L2", "SQNR dB", "Worst",
        left=(title.capitalize(), "Worst"),
    )  # fmt: skip
    table.columns[0].overflow = table.columns[5].overflow = "ellipsis"
    for g in groups[:_MOST_GROUPS]:
        row = [
            printable(g.group),
            str(g.n_tensors),
            f"{100 * g.share:.1f} %",
            number(g.rel_l2),
            decibels(g.sqnr_db),
            printable(g.worst),
        ]
        table.add_row(*cells(row))
    yield table
    yield from _more(len(groups) - _MOST_GROUPS)


def _non_finite(found: Sequence[NonFinite]) -> Iterable[RenderableType]:
    if not found:
        return
    yield Text("\nNaN and infinite values (their rows are left out above)", style="bold red")
    table = new_table(
        "Tensor", "File", "Values", "Rows", "First row", "Column", "Block", left=("Tensor",)
    )
    table.columns[0].overflow = "ellipsis"
    for n in found[:_MOST_ROWS]:
        figures = (n.count, n.n_rows, n.row, n.column, n.block)
        table.add_row(*cells([printable(n.tensor), n.side, *(f"{f:,}" for f in figures)]))
    yield table
    yield from _more(len(found) - _MOST_ROWS)


def _unmatched(unmatched: Sequence[Unmatched]) -> Iterable[RenderableType]:
    for title, chosen in (
        ("Only in a", [u for u in unmatched if u.shape_b is None]),
        ("Only in b", [u for u in unmatched if u.shape_a is None]),
        ("In another shape in b", [u for u in unmatched if u.shape_a and u.shape_b]),
    ):
        if not chosen:
            continue
        yield Text(f"\n{title}: {len(chosen)}", style="bold")
        for u in chosen[:_MOST_ROWS]:
            shapes = ["×".join(map(str, s)) for s in (u.shape_a, u.shape_b) if s]
            yield Text(f"  {printable(u.tensor)}: {'→'.join(shapes)}")
        yield from _more(len(chosen) - _MOST_ROWS)


def _more(n: int) -> Iterable[Text]:
    if n > 0:
        yield Text(f"… and {n} more (see --format json)")
