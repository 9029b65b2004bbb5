"""A drift report as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ggufnorm.core.drift import Culprit, DriftReport, ModelFacts, NormDrift, OperationDrift
from ggufnorm.core.metrics import Difference, LogitStatistics
from ggufnorm.report.terminal.common import (
    cells,
    layer_cell,
    new_table,
    skipped_lines,
)
from ggufnorm.report.text import number, printable

_MOST_OPERATIONS = 8


def drift_parts(report: DriftReport, width: int) -> Iterable[RenderableType]:
    """The parts of the text, from top to bottom, for ``width`` columns."""
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
    yield from skipped_lines(report.skipped)
    yield ""
    yield Text(printable(report.verdict), style="bold red" if report.culprit else "bold green")


def _run_facts(report: DriftReport) -> Iterable[RenderableType]:
    run = report.run
    grid = Table.grid(padding=(0, 2, 0, 0))
    for label, m in (("reference", report.reference), ("quant", report.quant)):
        grid.add_row(*cells([label, _model_line(m)]))
    grid.add_row(*cells(["text", f"{printable(run.text)}, {run.n_text_tokens:,} tokens"]))
    stopped = run.n_chunks < run.n_chunks_planned
    of = f" of {run.n_chunks_planned} (stopped early)" if stopped else ""
    where = f"{run.n_threads} threads"
    where += f", {run.n_gpu_layers} GPU layers" if run.n_gpu_layers else ""
    grid.add_row(
        *cells(
            [
                "run",
                f"{run.n_chunks}{of} chunks of {run.n_ctx} tokens in {run.seconds:.1f} s"
                f" ({run.engine}, {where})",
            ]
        )
    )
    yield grid


def _model_line(m: ModelFacts) -> str:
    parts = [Path(m.path).name, m.architecture, m.file_type or "", f"{m.n_bytes / 1e6:,.1f} MB"]
    return printable("  ".join(p for p in parts if p))


_NORM_COLUMNS = ("Layer", "Norm", "Kind", "Epsilon", "In", "Out", "Cosine", "Ratio", "Max |Δ|",
                 "token:chan", "Weight", "Own", "NumPy")  # fmt: skip
_WIDE_ONLY = {"Ratio", "Max |Δ|", "token:chan"}
_WIDE = 96


def _norm_table(norms: Sequence[NormDrift], culprit: Culprit | None, width: int) -> Table:
    shown = [c for c in _NORM_COLUMNS if width >= _WIDE or c not in _WIDE_ONLY]
    table = new_table(*shown, left=("Norm", "Kind"))
    table.padding = (0, 0, 0, 0)
    table.columns[1].overflow = "ellipsis"
    for n in norms:
        at_fault = culprit is not None and culprit.node == n.node
        row = dict(zip(_NORM_COLUMNS, _norm_drift_row(n), strict=True))
        shown_cells = cells(row[c] for c in shown)
        table.add_row(*shown_cells, style="bold red" if at_fault else "")
    return table


def _norm_drift_row(n: NormDrift) -> list[str | Text]:
    out = n.output
    epsilon = f"{n.epsilon_used:g}"
    if n.epsilon_used != n.epsilon_used_ref:
        epsilon = f"{n.epsilon_used_ref:g}→{n.epsilon_used:g}"
    elif n.epsilon_metadata not in (None, n.epsilon_used):
        epsilon += "*"
    return [
        layer_cell(n.layer),
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
    table = new_table(
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
            layer_cell(o.layer),
            o.op,
            printable(o.tensor or o.node),
            types,
            _drift_cell(o.local),
            _drift_cell(o.cumulative),
        ]
        at_fault = culprit is not None and culprit.node == o.node
        table.add_row(*cells(row), style="bold red" if at_fault else "")
    if not table.rows:
        table.add_row(*cells(["–", "none: every operation gives the reference's result"]))
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
        grid.add_row(*cells(row))
    return grid
