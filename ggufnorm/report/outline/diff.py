"""The outline of a comparison of two files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggufnorm.core.diff import DiffReport, GroupDifference, MetadataDifference
from ggufnorm.report.outline.parts import Figure, Outline, Section, Table, skipped_section
from ggufnorm.report.text import (
    counted,
    decibels,
    model_line,
    norm_difference_row,
    number,
    tensor_difference_row,
    value_cell,
)

_MOST_TENSORS = 20


def diff_outline(report: DiffReport) -> Outline:
    """What differs, what matters most first."""
    sound = report.identical and not report.non_finite
    return Outline(
        f"{Path(report.b.path).name} against {Path(report.a.path).name}",
        headline="The same model" if sound else "The files differ",
        verdict=report.verdict,
        mood="wrong" if report.non_finite else "sound" if sound else "neutral",
        figures=tuple(_figures(report)),
        sections=(
            *_metadata(report),
            *_tensors(report),
            *_norms(report),
            *_groups("type", report.types),
            *_groups("role", report.roles),
            *_groups("layer", report.layers),
            *_non_finite(report),
            *_unmatched(report),
            *skipped_section(tuple(f"{s.what}: {s.reason}" for s in report.skipped)),
            _facts(report),
        ),
    )


def _figures(report: DiffReport) -> Iterator[Figure]:
    changed = sum(n.n_differing > 0 for n in report.norms)
    yield Figure("Norms that differ", f"{changed} of {len(report.norms)}", "compared bit by bit")
    changed = sum(not t.identical for t in report.tensors)
    yield Figure("Other tensors that differ", f"{changed} of {len(report.tensors)}")
    worst = max(report.tensors, key=lambda t: t.rel_l2 or 0.0, default=None)
    if worst is not None and worst.rel_l2:
        yield Figure("Largest difference", number(worst.rel_l2), f"relative L2: {worst.tensor}")
    matter = [m for m in report.metadata if m.affects != "nothing"]
    yield Figure("Metadata that matter", f"{len(matter)} differ", "forward pass or token ids")


def _metadata(report: DiffReport) -> Iterator[Section]:
    shown = [m for m in report.metadata if m.affects != "nothing"]
    if shown:
        left = ("Key", "Affects", "a", "b")
        table = Table(tuple(map(_metadata_row, shown)), left)
        yield Section("Metadata that change what is computed", table=table)
    others = tuple(m.key for m in report.metadata if m.affects == "nothing")
    if others:
        yield Section("Other metadata that differ", (", ".join(others),))


def _metadata_row(m: MetadataDifference) -> dict[str, str]:
    return {
        "Key": m.key,
        "Affects": "forward pass" if m.affects == "forward" else "token ids",
        "a": value_cell(m.a),
        "b": value_cell(m.b),
        "Differ": "" if m.n_differing is None else f"{m.n_differing:,}, first {m.index}",
    }


def _tensors(report: DiffReport) -> Iterator[Section]:
    changed = [t for t in report.tensors if not t.identical]
    if not changed:
        return
    rows = tuple(tensor_difference_row(t) for t in changed[:_MOST_TENSORS])
    said = f"The largest differences of {counted(len(report.tensors), 'tensor')}."
    yield Section("Tensors", (said,), ("tensors",), Table(rows, left=("Tensor", "Types")))


def _norms(report: DiffReport) -> Iterator[Section]:
    changed = [n for n in report.norms if n.n_differing]
    if changed:
        rows = tuple(map(norm_difference_row, changed))
        title = f"Norms that differ: {len(changed)}"
        yield Section(title, table=Table(rows, left=("Tensor", "Types")))


def _groups(title: str, groups: tuple[GroupDifference, ...]) -> Iterator[Section]:
    if all(g.rel_l2 == 0 for g in groups):
        return
    column = title.capitalize()
    rows = tuple(
        {
            column: g.group,
            "Tensors": str(g.n_tensors),
            "Size": f"{100 * g.share:.1f} %",
            "Rel L2": number(g.rel_l2),
            "SQNR dB": decibels(g.sqnr_db),
            "Worst": g.worst,
        }
        for g in groups
    )
    yield Section(f"By {title}", table=Table(rows, left=(column, "Worst")), folded=True)


def _non_finite(report: DiffReport) -> Iterator[Section]:
    rows = tuple(
        {
            "Tensor": n.tensor,
            "File": n.side,
            "Values": f"{n.count:,}",
            "Rows": f"{n.n_rows:,}",
            "First row": f"{n.row:,}",
            "Column": f"{n.column:,}",
            "Block": f"{n.block:,}",
        }
        for n in report.non_finite
    )
    if rows:
        yield Section("NaN and infinite values", table=Table(rows, left=("Tensor", "File")))


def _unmatched(report: DiffReport) -> Iterator[Section]:
    rows = tuple(
        {
            "Tensor": u.tensor,
            "Shape in a": "–" if u.shape_a is None else "×".join(map(str, u.shape_a)),
            "Shape in b": "–" if u.shape_b is None else "×".join(map(str, u.shape_b)),
        }
        for u in report.unmatched
    )
    if rows:
        yield Section(f"Cannot be compared: {len(rows)}", table=Table(rows, left=("Tensor",)))


def _facts(report: DiffReport) -> Section:
    compared = f"{report.n_weights:,} weights of {len(report.norms) + len(report.tensors)} tensors"
    rows = (
        ("a", model_line(report.a)),
        ("b", model_line(report.b)),
        ("Compared", compared),
    )
    table = Table(tuple({"": a, "Files": b} for a, b in rows), left=("", "Files"))
    return Section("Files", table=table, folded=True)
