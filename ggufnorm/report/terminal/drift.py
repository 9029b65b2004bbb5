"""A drift report as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ggufnorm.core.drift import (
    Culprit,
    DriftReport,
    DriftSet,
    Localisation,
    NormDrift,
    OperationDrift,
    RunCost,
    SideFacts,
)
from ggufnorm.core.floats import epsilon_text
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.metrics import Difference
from ggufnorm.report.terminal.common import (
    cells,
    fitted_table,
    new_table,
    skipped_lines,
)
from ggufnorm.report.text import (
    bars,
    layer_cell,
    model_line,
    number,
    plus_minus,
    printable,
    side_by_side_row,
    types,
)

_MOST_OPERATIONS = 8


def drift_parts(report: DriftReport, width: int) -> Iterable[RenderableType]:
    """The parts of the text, from top to bottom, for ``width`` columns."""
    yield from _run_facts(report)
    yield Text("\nNorms: relative L2 drift from the reference, in graph order", style="bold")
    yield _norm_table(report.norms, report.culprit, width)
    yield from _kernel_line(report.norms)
    yield Text(f"\n{_operation_title(report.operations)}", style="bold")
    yield _operation_table(report.operations, report.culprit)
    yield Text("\nWhere it is", style="bold")
    yield _where(report.localisation)
    if report.logits is not None:
        yield Text(f"\nPredictions at {report.logits.n_tokens:,} positions", style="bold")
        yield logit_table(report.logits, report.floor)
    if report.embedding is not None:
        d = report.embedding
        yield Text(
            f"\nPooled output of {d.rows} chunks: relative L2 {number(d.rel_l2)},"
            f" cosine {number(d.cosine, 7)}"
        )
    yield from skipped_lines(report.skipped)
    yield ""
    yield Text(printable(report.verdict), style="bold red" if report.culprit else "bold green")


def _run_facts(report: DriftReport) -> Iterable[RenderableType]:
    run = report.run
    grid = Table.grid(padding=(0, 2, 0, 0))
    for label, m in (("reference", report.reference), ("quant", report.quant)):
        grid.add_row(*cells([label, model_line(m)]))
    grid.add_row(*cells(["text", f"{printable(run.text)}, {run.n_text_tokens:,} tokens"]))
    stopped = run.n_chunks < run.n_chunks_planned
    of = f" of {run.n_chunks_planned} (stopped early)" if stopped else ""
    where = f"{run.n_threads} threads"
    where += f", {run.n_gpu_layers} GPU layers" if run.n_gpu_layers else ""
    grid.add_row(
        *cells(
            [
                "run",
                f"{run.n_chunks}{of} chunks of {run.n_ctx} tokens{_taken(report.cost)}"
                f" ({run.engine}, {where})",
            ]
        )
    )
    for label, side in (("reference", run.reference), ("quant", run.quant)):
        if special := _special_options(side):
            grid.add_row(*cells([label, special]))
    yield grid


def _taken(cost: RunCost | None) -> str:
    return "" if cost is None else f" in {cost.seconds:.1f} s"


def _special_options(side: SideFacts) -> str:
    """The options that are not llama.cpp's usual ones, empty if all are."""
    parts = []
    if side.flash_attention != "auto":
        parts.append(f"flash attention {side.flash_attention}")
    if (side.cache_type_k, side.cache_type_v) != ("f16", "f16"):
        parts.append(f"K/V cache {side.cache_type_k}/{side.cache_type_v}")
    parts += ["repacked weights"] if side.use_extra_bufts else []
    parts += ["unfused norms"] if side.unfused_norms else []
    return ", ".join(parts)


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
    epsilon = epsilon_text(n.epsilon_used)
    if n.epsilon_used != n.epsilon_used_ref:
        epsilon = f"{epsilon_text(n.epsilon_used_ref)}→{epsilon}"
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


def _have_own_errors(operations: Sequence[OperationDrift]) -> bool:
    """Whether operations were given the reference's input: not where a trace was compared."""
    return any(o.local.rows or o.local.non_finite_rows for o in operations)


def _operation_title(operations: Sequence[OperationDrift]) -> str:
    if _have_own_errors(operations):
        return f"Largest errors of {len(operations)} operations, each given the reference's input"
    return f"Largest drift of {len(operations)} operations, all that is upstream counted in"


def _operation_table(operations: Sequence[OperationDrift], culprit: Culprit | None) -> Table:
    table = new_table(
        "Layer", "Operation", "Reads", "Type", "Own", "Cumulative",
        left=("Operation", "Reads", "Type"),
    )  # fmt: skip
    table.columns[2].overflow = "ellipsis"
    own = _have_own_errors(operations)

    def drift(o: OperationDrift) -> Difference:
        return o.local if own else o.cumulative

    shown = sorted(operations, key=lambda o: -(drift(o).rel_l2 or 0.0))[:_MOST_OPERATIONS]
    bad = [o for o in operations if drift(o).non_finite_rows and o not in shown]
    for o in [*bad[:1], *shown]:
        if not drift(o).rel_l2 and not drift(o).non_finite_rows:
            continue
        row: list[str | Text] = [
            layer_cell(o.layer),
            o.role,
            printable(o.tensor or o.node),
            types(o.dtype_ref, o.dtype),
            _drift_cell(o.local),
            _drift_cell(o.cumulative),
        ]
        at_fault = culprit is not None and culprit.node == o.node
        table.add_row(*cells(row), style="bold red" if at_fault else "")
    if not table.rows:
        table.add_row(*cells(["–", "none: every operation gives the reference's result"]))
    return table


def _where(found: Localisation) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))

    def row(label: str, text: str) -> None:
        grid.add_row(*cells([label, printable(text)]))

    if found.layers:
        first, last = found.layers[0], found.layers[-1]
        drawn = bars([layer.rel_l2 for layer in found.layers])
        text = f"{number(first.rel_l2)} after layer {first.layer}"
        text += f" to {number(last.rel_l2)} after layer {last.layer}"
        growth = [layer.growth for layer in found.layers if layer.growth is not None]
        if growth:
            text += f", × {statistics.median(growth):.3f} per layer (median)"
        row("by layer", f"{drawn}  {text}")
    if found.first_jump is not None:
        place = found.first_jump
        row("jump", f"{place.tensor or place.node}, robust z {number(place.value)}")
    for label, token in zip(("tokens", "", ""), found.worst_tokens, strict=False):
        before = token.context.replace("\n", " ")[-24:]
        row(
            label,
            f"“{before}[{token.text}]” KL {number(token.kld)},"
            f" p {number(token.p_ref)} → {number(token.p_quant)} (token {token.token})",
        )
    for label, c in zip(("channels", "", ""), found.outlier_channels, strict=False):
        row(
            label,
            f"{c.channel} holds {c.error_share:.0%} of the error and {c.energy_share:.0%} of"
            f" the energy at {c.node}",
        )
    if found.peak is not None and found.f16_headroom is not None:
        at = found.peak
        row(
            "largest value",
            f"{number(at.value)} at {at.node}, token {at.token}, channel {at.channel}:"
            f" half precision holds {number(found.f16_headroom)} times that",
        )
    return grid


def logit_table(s: LogitStatistics, floor: LogitStatistics | None = None) -> Table:
    """What drift does to the predictions, and the reference's own noise if it was measured."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    rows = [
        ("KL divergence", f"mean {plus_minus(s.mean_kld, s.mean_kld_se, 6)} nats"),
        ("", _kld_quantiles(s)),
        (
            "Δp of the right token",
            f"mean {plus_minus(s.mean_delta_p, s.mean_delta_p_se, 3, 100)} %",
        ),
        ("", f"RMS {plus_minus(s.rms_delta_p, s.rms_delta_p_se, 3, 100)} %"),
        ("same top token", f"{plus_minus(s.same_top1, s.same_top1_se, 3, 100)} %"),
        (
            "perplexity",
            f"{plus_minus(s.ppl_ref, s.ppl_ref_se, 4)} →"
            f" {plus_minus(s.ppl_quant, s.ppl_quant_se, 4)},"
            f" ratio {plus_minus(s.ppl_ratio, s.ppl_ratio_se, 6)}",
        ),
    ]
    if floor is not None:
        text = f"KL divergence mean {number(floor.mean_kld)}, max {number(floor.max_kld)}"
        rows.append(("reference with itself", text))
    if s.non_finite_tokens:
        rows.append(("left out", f"{s.non_finite_tokens} positions with a NaN or infinite logit"))
    for row in rows:
        grid.add_row(*cells(row))
    return grid


def _kld_quantiles(s: LogitStatistics) -> str:
    found = s.kld_percentiles
    if not found:
        return "–"
    shown = {"50": "median", "90": "90 %", "99": "99 %", "99.9": "99.9 %", "100": "max"}
    return ", ".join(f"{label} {number(found.get(p))}" for p, label in shown.items())


def drift_set_parts(result: DriftSet, width: int) -> Iterable[RenderableType]:
    """Several reports side by side, and what each of them says at its end."""
    yield Text("Models under test, side by side", style="bold")
    if not result.reports:
        yield "none"
        return
    rows = [side_by_side_row(r) for r in result.reports]
    bad = [r.culprit is not None for r in result.reports]
    yield fitted_table(
        rows,
        width,
        left=("Model", "By layer", "Culprit"),
        dropped_first=("Size", "Own", "By layer", "Perplexity"),
        marked=bad,
    )
    for report in result.reports:
        name = Path(report.quant.path).name
        style = "bold red" if report.culprit else ""
        yield Text(f"\n{printable(name)}: {printable(report.verdict)}", style=style)
