"""Results as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ggufnorm.core.diff import DiffReport
from ggufnorm.core.drift import Culprit, DriftReport, NormDrift, OperationDrift
from ggufnorm.core.metrics import Difference, LogitStatistics
from ggufnorm.core.model import Inspection, NormSite
from ggufnorm.report.diff import diff_parts
from ggufnorm.report.layout import cells as _cells
from ggufnorm.report.layout import layer_cell as _layer
from ggufnorm.report.layout import make_table as _table
from ggufnorm.report.layout import model_line as _model_line
from ggufnorm.report.layout import number, printable
from ggufnorm.report.layout import skipped_lines as _skipped

WIDTH = 100
"""Columns when the output is not a terminal."""

_MOST_OPERATIONS = 8


def render(
    result: Inspection | DriftReport | DiffReport, *, width: int = WIDTH, color: bool = False
) -> str:
    """A result as text.

    Args:
        result: what to show.
        width: columns to keep to.
        color: whether to colour with ANSI escapes.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        emoji=False,
        markup=False,
    )
    for part in _parts(result, width):
        console.print(part)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def _parts(result: Inspection | DriftReport | DiffReport, width: int) -> Iterable[RenderableType]:
    if isinstance(result, Inspection):
        return _inspection(result)
    if isinstance(result, DriftReport):
        return _drift(result, width)
    return diff_parts(result)


# -- inspect ---------------------------------------------------------------------------


def _inspection(result: Inspection) -> Iterable[RenderableType]:
    title = f"{Path(result.path).name}: {result.architecture or 'unknown architecture'}"
    facts = [printable(result.name)] if result.name else []
    facts += [f"{result.n_layers} layers"] if result.n_layers is not None else []
    facts += [result.file_type] if result.file_type else []
    facts += [f"{len(result.norms)} norms"]
    yield Text(f"{printable(title)}, {', '.join(facts)}", style="bold")
    yield ""
    left = ("Role", "Kind", "Tensor", "Type")
    table = _table(
        "Layer", "Role", "Kind", "Epsilon", "Tensor", "Type", "Shape", "Mean", "RMS", "Min",
        "Max", "Bias", left=left,
    )  # fmt: skip
    table.columns[4].overflow = "ellipsis"
    for n in result.norms:
        table.add_row(*_cells(_norm_row(n)))
    yield table
    yield ""
    yield from _epsilon_lines(result.norms)
    notes = {n.note for n in result.norms if n.note}
    for note in sorted(notes):
        count = sum(n.note == note for n in result.norms)
        yield Text(f"{count} norms: {printable(note)}", style="yellow")
    if not result.norms:
        yield Text("No tensor of this file is a norm's: its norms, if any, have no weights.")
    yield from _skipped(result.skipped)


def _norm_row(n: NormSite) -> list[str | Text]:
    w = n.weight
    figures = (w.mean, w.rms, w.minimum, w.maximum) if w else (None,) * 4
    return [
        _layer(n.layer),
        n.role,
        n.kind or "?",
        "?" if n.epsilon is None else f"{n.epsilon:g}",
        printable(n.tensor or "(none)"),
        Text(n.dtype or "–", style="" if n.dtype == "F32" else "yellow"),
        "×".join(map(str, n.shape)),
        *(number(f) for f in figures),
        "yes" if n.bias else "no",
    ]


def _epsilon_lines(norms: Sequence[NormSite]) -> Iterable[Text]:
    found = dict.fromkeys((n.kind, n.epsilon, n.epsilon_key) for n in norms if n.epsilon_key)
    for kind, epsilon, key in found:
        count = sum((n.kind, n.epsilon_key) == (kind, key) for n in norms)
        yield Text(f"epsilon {epsilon:g} of {count} {kind} norms: {printable(key or '')}")


# -- drift -----------------------------------------------------------------------------


def _drift(report: DriftReport, width: int) -> Iterable[RenderableType]:
    yield from _run_facts(report)
    yield Text("\nNorms: relative L2 drift from the reference, in graph order", style="bold")
    yield _norm_table(report.norms, report.culprit, width)
    yield from _kernel_line(report.norms)
    yield Text(
        f"\nLargest errors of {len(report.operations)} operations, each given the"
        " reference's input",
        style="bold",
    )
    yield _operation_table(report.operations, report.culprit)
    if report.logits is not None:
        yield Text(f"\nPredictions at {report.logits.n_tokens:,} positions", style="bold")
        yield _logit_table(report.logits)
    yield from _skipped(report.skipped)
    yield ""
    yield Text(printable(report.verdict), style="bold red" if report.culprit else "bold green")


def _run_facts(report: DriftReport) -> Iterable[RenderableType]:
    run = report.run
    grid = Table.grid(padding=(0, 2, 0, 0))
    for label, m in (("reference", report.reference), ("quant", report.quant)):
        grid.add_row(*_cells([label, _model_line(m)]))
    grid.add_row(*_cells(["text", f"{printable(run.text)}, {run.n_text_tokens:,} tokens"]))
    stopped = run.n_chunks < run.n_chunks_planned
    of = f" of {run.n_chunks_planned} (stopped early)" if stopped else ""
    where = f"{run.n_threads} threads"
    where += f", {run.n_gpu_layers} GPU layers" if run.n_gpu_layers else ""
    grid.add_row(
        *_cells(
            [
                "run",
                f"{run.n_chunks}{of} chunks of {run.n_ctx} tokens in {run.seconds:.1f} s"
                f" ({run.engine}, {where})",
            ]
        )
    )
    yield grid


_NORM_COLUMNS = ("Layer", "Norm", "Kind", "Epsilon", "In", "Out", "Cosine", "Ratio", "Max |Δ|",
                 "token:chan", "Weight", "Own", "NumPy")  # fmt: skip
_WIDE_ONLY = {"Ratio", "Max |Δ|", "token:chan"}
_WIDE = 96


def _norm_table(norms: Sequence[NormDrift], culprit: Culprit | None, width: int) -> Table:
    shown = [c for c in _NORM_COLUMNS if width >= _WIDE or c not in _WIDE_ONLY]
    table = _table(*shown, left=("Norm", "Kind"))
    table.padding = (0, 0, 0, 0)
    table.columns[1].overflow = "ellipsis"
    for n in norms:
        at_fault = culprit is not None and culprit.node == n.node
        row = dict(zip(_NORM_COLUMNS, _norm_drift_row(n), strict=True))
        cells = _cells(row[c] for c in shown)
        table.add_row(*cells, style="bold red" if at_fault else "")
    return table


def _norm_drift_row(n: NormDrift) -> list[str | Text]:
    out = n.output
    epsilon = f"{n.epsilon_used:g}"
    if n.epsilon_used != n.epsilon_used_ref:
        epsilon = f"{n.epsilon_used_ref:g}→{n.epsilon_used:g}"
    elif n.epsilon_metadata not in (None, n.epsilon_used):
        epsilon += "*"
    return [
        _layer(n.layer),
        printable(n.role),
        n.kind,
        epsilon,
        _drift_cell(n.input),
        _drift_cell(out),
        "–" if out.cosine is None else f"{out.cosine:.5f}",
        "–" if out.rms_ratio is None else f"{out.rms_ratio:.3f}",
        number(out.max_abs),
        "–" if out.max_abs is None else f"{out.max_abs_token}:{out.max_abs_channel}",
        "–" if n.weight is None else _drift_cell(n.weight),
        _drift_cell(n.local),
        number(n.recompute_residual, 1),
    ]


def _drift_cell(d: Difference) -> Text:
    if d.non_finite_rows:
        return Text("NaN", style="bold red")
    return Text(number(d.rel_l2))


def _kernel_line(norms: Sequence[NormDrift]) -> Iterable[Text]:
    residuals = [n.recompute_residual for n in norms if n.recompute_residual is not None]
    if residuals:
        yield Text(
            f"\nNumPy recomputes {len(residuals)} of {len(norms)} norms to within"
            f" {max(residuals):.1e} of llama.cpp's result."
        )
    if any(n.epsilon_metadata not in (None, n.epsilon_used) for n in norms):
        yield Text("* the metadata states another epsilon than llama.cpp uses", style="yellow")


def _operation_table(operations: Sequence[OperationDrift], culprit: Culprit | None) -> Table:
    table = _table(
        "Layer", "Operation", "Reads", "Type", "Own", "Cumulative",
        left=("Operation", "Reads", "Type"),
    )  # fmt: skip
    table.columns[2].overflow = "ellipsis"
    shown = sorted(operations, key=lambda o: -(o.local.rel_l2 or 0.0))[:_MOST_OPERATIONS]
    bad = [o for o in operations if o.local.non_finite_rows and o not in shown]
    for o in [*bad[:1], *shown]:
        if not o.local.rel_l2 and not o.local.non_finite_rows:
            continue
        types = o.dtype or "–"
        if o.dtype_ref and o.dtype_ref != o.dtype:
            types = f"{o.dtype_ref}→{types}"
        row: list[str | Text] = [
            _layer(o.layer),
            o.op,
            printable(o.tensor or o.node),
            types,
            _drift_cell(o.local),
            _drift_cell(o.cumulative),
        ]
        at_fault = culprit is not None and culprit.node == o.node
        table.add_row(*_cells(row), style="bold red" if at_fault else "")
    if not table.rows:
        table.add_row(*_cells(["–", "none: every operation gives the reference's result"]))
    return table


def _logit_table(s: LogitStatistics) -> Table:
    def pm(value: float | None, error: float | None, digits: int, unit: float = 1.0) -> str:
        if value is None:
            return "–"
        text = f"{value * unit:.{digits}f}"
        return text if error is None else f"{text} ± {error * unit:.{digits}f}"

    grid = Table.grid(padding=(0, 2, 0, 0))
    rows = [
        ("KL divergence", f"mean {pm(s.mean_kld, s.mean_kld_se, 6)} nats"),
        ("", f"99.9 % {number(s.p999_kld)}, max {number(s.max_kld)}"),
        ("same top token", f"{pm(s.same_top1, s.same_top1_se, 3, 100)} %"),
        (
            "perplexity",
            f"{pm(s.ppl_ref, s.ppl_ref_se, 4)} → {pm(s.ppl_quant, s.ppl_quant_se, 4)},"
            f" ratio {pm(s.ppl_ratio, s.ppl_ratio_se, 6)}",
        ),
    ]
    if s.non_finite_tokens:
        rows.append(("left out", f"{s.non_finite_tokens} positions with a NaN or infinite logit"))
    for row in rows:
        grid.add_row(*_cells(row))
    return grid
