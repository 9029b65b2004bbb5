"""Results as text for a terminal. The only module that knows rich."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ggufnorm.core.drift import (
    Culprit,
    DriftReport,
    Localisation,
    ModelFacts,
    NormDrift,
    OperationDrift,
    SideFacts,
)
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.metrics import Difference
from ggufnorm.core.model import Inspection, NormSite, Skipped

WIDTH = 100
"""Columns when the output is not a terminal."""

_MOST_OPERATIONS = 8
_MOST_SKIPPED = 10


def render(result: Inspection | DriftReport, *, width: int = WIDTH, color: bool = False) -> str:
    """A result as text.

    Args:
        result: what to show.
        width: columns to keep to.
        color: whether to colour with ANSI escapes.
    """
    parts = _inspection(result) if isinstance(result, Inspection) else _drift(result, width)
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
    for part in parts:
        console.print(part)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def printable(text: str) -> str:
    """Text from a file without characters that could steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(value: float | None, digits: int = 3) -> str:
    """A number in as few characters as ``digits`` significant digits allow; – for none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.{digits}g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.{digits - 1}e}"


def _table(*columns: str, left: Iterable[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def _cells(row: Iterable[str | Text]) -> list[RenderableType]:
    return [cell if isinstance(cell, Text) else Text(cell) for cell in row]


def _layer(layer: int | None) -> str:
    return "–" if layer is None else str(layer)


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
    yield Text(f"\n{_operation_title(report.operations)}", style="bold")
    yield _operation_table(report.operations, report.culprit)
    yield Text("\nWhere it is", style="bold")
    yield _where(report.localisation)
    if report.logits is not None:
        yield Text(f"\nPredictions at {report.logits.n_tokens:,} positions", style="bold")
        yield _logit_table(report.logits, report.floor)
    if report.embedding is not None:
        d = report.embedding
        yield Text(
            f"\nPooled output of {d.rows} chunks: relative L2 {number(d.rel_l2)},"
            f" cosine {number(d.cosine, 7)}"
        )
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
                f"{run.n_chunks}{of} chunks of {run.n_ctx} tokens in {report.cost.seconds:.1f} s"
                f" ({run.engine}, {where})",
            ]
        )
    )
    for label, side in (("reference", run.reference), ("quant", run.quant)):
        if special := _special_options(side):
            grid.add_row(*_cells([label, special]))
    yield grid


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


def _model_line(m: ModelFacts) -> str:
    parts = [Path(m.path).name, m.architecture, m.file_type or "", f"{m.n_bytes / 1e6:,.1f} MB"]
    return printable("  ".join(p for p in parts if p))


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


def _have_own_errors(operations: Sequence[OperationDrift]) -> bool:
    """Whether operations were given the reference's input: not where a trace was compared."""
    return any(o.local.rows or o.local.non_finite_rows for o in operations)


def _operation_title(operations: Sequence[OperationDrift]) -> str:
    if _have_own_errors(operations):
        return f"Largest errors of {len(operations)} operations, each given the reference's input"
    return f"Largest drift of {len(operations)} operations, all that is upstream counted in"


def _operation_table(operations: Sequence[OperationDrift], culprit: Culprit | None) -> Table:
    table = _table(
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
        types = o.dtype or "–"
        if o.dtype_ref and o.dtype_ref != o.dtype:
            types = f"{o.dtype_ref}→{types}"
        row: list[str | Text] = [
            _layer(o.layer),
            o.role,
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


def _where(found: Localisation) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))

    def row(label: str, text: str) -> None:
        grid.add_row(*_cells([label, printable(text)]))

    if found.layers:
        first, last = found.layers[0], found.layers[-1]
        bars = sparkline([layer.rel_l2 for layer in found.layers])
        text = f"{number(first.rel_l2)} after layer {first.layer}"
        text += f" to {number(last.rel_l2)} after layer {last.layer}"
        growth = [layer.growth for layer in found.layers if layer.growth is not None]
        if growth:
            text += f", × {statistics.median(growth):.3f} per layer (median)"
        row("by layer", f"{bars}  {text}")
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


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """Bars from zero to the largest value."""
    top = max(values, default=0.0)
    if top <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(7, int(8 * v / top))] for v in values)


def _logit_table(s: LogitStatistics, floor: LogitStatistics | None) -> Table:
    def pm(value: float | None, error: float | None, digits: int, unit: float = 1.0) -> str:
        if value is None:
            return "–"
        text = f"{value * unit:.{digits}f}"
        return text if error is None else f"{text} ± {error * unit:.{digits}f}"

    grid = Table.grid(padding=(0, 2, 0, 0))
    rows = [
        ("KL divergence", f"mean {pm(s.mean_kld, s.mean_kld_se, 6)} nats"),
        ("", _kld_quantiles(s)),
        ("Δp of the right token", f"mean {pm(s.mean_delta_p, s.mean_delta_p_se, 3, 100)} %"),
        ("", f"RMS {pm(s.rms_delta_p, s.rms_delta_p_se, 3, 100)} %"),
        ("same top token", f"{pm(s.same_top1, s.same_top1_se, 3, 100)} %"),
        (
            "perplexity",
            f"{pm(s.ppl_ref, s.ppl_ref_se, 4)} → {pm(s.ppl_quant, s.ppl_quant_se, 4)},"
            f" ratio {pm(s.ppl_ratio, s.ppl_ratio_se, 6)}",
        ),
    ]
    if floor is not None:
        text = f"KL divergence mean {number(floor.mean_kld)}, max {number(floor.max_kld)}"
        rows.append(("reference with itself", text))
    if s.non_finite_tokens:
        rows.append(("left out", f"{s.non_finite_tokens} positions with a NaN or infinite logit"))
    for row in rows:
        grid.add_row(*_cells(row))
    return grid


def _kld_quantiles(s: LogitStatistics) -> str:
    found = s.kld_percentiles
    if not found:
        return "–"
    shown = {"50": "median", "90": "90 %", "99": "99 %", "99.9": "99.9 %", "100": "max"}
    return ", ".join(f"{label} {number(found[p])}" for p, label in shown.items())


def _skipped(skipped: Sequence[Skipped]) -> Iterable[Text]:
    if not skipped:
        return
    yield Text(f"\nSkipped: {len(skipped)}", style="bold")
    for s in skipped[:_MOST_SKIPPED]:
        yield Text(f"  {printable(s.what)}: {printable(s.reason)}")
    if len(skipped) > _MOST_SKIPPED:
        yield Text(f"  … and {len(skipped) - _MOST_SKIPPED} more (see --format json)")
