"""The view of a comparison of two files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ggufnorm.core.diff import (
    DiffReport,
    GroupDifference,
    MetadataDifference,
    NonFinite,
    NormDifference,
    TensorDifference,
    Unmatched,
)
from ggufnorm.report.formatting import (
    counted,
    fixed,
    integer,
    layer,
    model_line,
    number,
    numeric,
    place_text,
    shape_text,
    share,
    types,
    value_text,
)
from ggufnorm.report.view import (
    Cell,
    Column,
    Columns,
    Figure,
    Report,
    Section,
    Sentence,
    Status,
    facts,
    table,
)
from ggufnorm.report.views.common import sentences, skipped_section

_MOST_ROWS = 10
_MOST_GROUPS = 8


def diff_view(report: DiffReport) -> tuple[Report, ...]:
    """What differs, and what matters most of it."""
    sound = report.identical and not report.non_finite and not report.skipped
    answer: Status = "error" if report.non_finite else "ok" if sound else "neutral"
    return (
        Report(
            f"{Path(report.b.path).name} against {Path(report.a.path).name}",
            subject=report.b.path,
            headline=_headline(report),
            status=answer,
            figures=tuple(_figures(report)),
            verdict=(Sentence(report.verdict, answer),),
            facts=Section("Files", table=facts("files", _facts(report)), folded=True),
            sections=(
                *_metadata(report),
                _norms(report),
                _tensors(report),
                _groups("type", report.types),
                _groups("role", report.roles),
                _groups("layer", report.layers),
                Section(
                    "NaN and infinite values (their rows are left out above)",
                    table=table(
                        "non_finite",
                        _NON_FINITE,
                        report.non_finite,
                        status=lambda _n: "error",
                        most=_MOST_ROWS,
                    ),
                ),
                *_unmatched(report.unmatched),
                skipped_section(report.skipped),
            ),
        ),
    )


def _headline(report: DiffReport) -> str:
    unseen = len(report.skipped)
    said = "The same model" if report.identical and not unseen else "The files differ"
    if report.identical and unseen:
        said = "The same in what was compared"
    return f"{counted(unseen, 'tensor')} could not be compared. {said}" if unseen else said


def _figures(report: DiffReport) -> Iterator[Figure]:
    changed = sum(n.n_differing > 0 for n in report.norms)
    yield Figure("Norms that differ", f"{changed} of {len(report.norms)}", "compared bit by bit")
    changed = sum(not t.identical for t in report.tensors)
    yield Figure("Other tensors that differ", f"{changed} of {len(report.tensors)}")
    worst = max(report.tensors, key=lambda t: t.rel_l2 or 0.0, default=None)
    if worst is not None and worst.rel_l2:
        yield Figure("Largest difference", number(worst.rel_l2), f"relative L2, {worst.tensor}")
    matter = [m for m in report.metadata if m.affects != "nothing"]
    yield Figure("Metadata that matter", f"{len(matter)} differ", "forward pass or token ids")


def _facts(report: DiffReport) -> Iterator[tuple[str, str]]:
    speed = report.n_weights / max(report.seconds, 1e-9) / 1e6
    n = len(report.norms) + len(report.tensors)
    yield "a", model_line(report.a)
    yield "b", model_line(report.b)
    yield (
        "compared",
        f"{counted(n, 'tensor')}, {counted(report.n_weights, 'weight')} in {report.seconds:.1f} s"
        f" ({speed:,.0f} M weights/s)",
    )


# -- metadata ----------------------------------------------------------------------------

_METADATA: Columns[MetadataDifference] = (
    Column("Key", lambda m: m.key, left=True, least=25),
    Column(
        "Affects", lambda m: "forward pass" if m.affects == "forward" else "token ids", left=True
    ),
    Column("a", lambda m: value_text(m.a), left=True),
    Column("b", lambda m: value_text(m.b), left=True),
    Column(
        "Differ",
        lambda m: "" if m.n_differing is None else f"{m.n_differing:,}, first {m.index}",
        priority=1,
    ),
)


def _metadata(report: DiffReport) -> Iterator[Section]:
    matter = [m for m in report.metadata if m.affects != "nothing"]
    yield Section(
        "Metadata that change what is computed",
        table=table("metadata", _METADATA, matter, most=_MOST_ROWS),
    )
    others = ", ".join(m.key for m in report.metadata if m.affects == "nothing")
    yield Section("Other metadata that differ", sentences=sentences(others))


# -- tensors -----------------------------------------------------------------------------

_NORMS: Columns[NormDifference] = (
    Column("Tensor", lambda n: n.tensor, left=True, least=25),
    Column("Layer", lambda n: layer(n.layer), priority=2),
    Column("Types", lambda n: types(n.dtype_a, n.dtype_b), left=True),
    Column("Differ", lambda n: Cell(f"{n.n_differing:,}/{n.n_elements:,}", n.n_differing)),
    Column(
        "Max ulp",
        lambda n: Cell("NaN", status="error") if n.max_ulp is None else integer(n.max_ulp),
        priority=1,
    ),
    Column("Max |Δ|", lambda n: numeric(n.max_abs)),
    Column("row:col", lambda n: place_text(n.max_abs_row, n.max_abs_column), priority=3),
    Column("Rel L2", lambda n: numeric(n.rel_l2)),
)


def _norms(report: DiffReport) -> Section:
    changed = [n for n in report.norms if n.n_differing]
    title = f"Norms that differ, in file order: {len(changed)}"
    return Section(title, table=table("norms", _NORMS, changed, most=_MOST_ROWS))


_TENSORS: Columns[TensorDifference] = (
    Column("Tensor", lambda t: t.tensor, left=True, least=25),
    Column("Types", lambda t: types(t.dtype_a, t.dtype_b), left=True),
    Column("Size", lambda t: share(t.share), priority=1),
    Column("Rel L2", lambda t: numeric(t.rel_l2)),
    Column("NMSE", lambda t: numeric(t.nmse), priority=4),
    Column("SQNR dB", lambda t: fixed(t.sqnr_db, 1)),
    Column("Cosine", lambda t: fixed(t.cosine, 6), priority=2),
    Column("Max |Δ|", lambda t: numeric(t.max_abs), priority=3),
    Column("row:col", lambda t: place_text(t.max_abs_row, t.max_abs_column), priority=5),
)


def _tensors(report: DiffReport) -> Section:
    changed = [t for t in report.tensors if not t.identical]
    title = f"Largest differences of {counted(len(report.tensors), 'other tensor')}"
    note = sentences("NMSE: mean square of b - a over that of a")
    return Section(
        title,
        charts=("tensors",),
        table=table("tensors", _TENSORS, changed, most=_MOST_ROWS, notes=note),
    )


def _groups(what: str, groups: Sequence[GroupDifference]) -> Section:
    columns: Columns[GroupDifference] = (
        Column(what.capitalize(), lambda g: g.group, left=True, least=12),
        Column("Tensors", lambda g: integer(g.n_tensors)),
        Column("Size", lambda g: share(g.share)),
        Column("Rel L2", lambda g: numeric(g.rel_l2)),
        Column("SQNR dB", lambda g: fixed(g.sqnr_db, 1)),
        Column("Worst", lambda g: g.worst, left=True, least=25),
    )
    shown = () if all(g.rel_l2 == 0 for g in groups) else groups
    made = table(f"{what}s", columns, shown, most=_MOST_GROUPS)
    return Section(f"By {what}, the worst first", table=made, folded=True)


_NON_FINITE: Columns[NonFinite] = (
    Column("Tensor", lambda n: n.tensor, left=True, least=25),
    Column("File", lambda n: n.side, left=True),
    Column("Values", lambda n: integer(n.count)),
    Column("Rows", lambda n: integer(n.n_rows)),
    Column("First row", lambda n: integer(n.row)),
    Column("Column", lambda n: integer(n.column)),
    Column("Block", lambda n: integer(n.block)),
)


def _unmatched(unmatched: Sequence[Unmatched]) -> Iterator[Section]:
    for title, chosen in (
        ("Only in a", [u for u in unmatched if u.shape_b is None]),
        ("Only in b", [u for u in unmatched if u.shape_a is None]),
        ("In another shape in b", [u for u in unmatched if u.shape_a and u.shape_b]),
    ):
        lines = (
            f"{u.tensor}: {'→'.join(shape_text(s) for s in (u.shape_a, u.shape_b) if s)}"
            for u in chosen
        )
        yield Section(
            f"{title}: {len(chosen)}", sentences=sentences(*lines), most=_MOST_ROWS, folded=True
        )
