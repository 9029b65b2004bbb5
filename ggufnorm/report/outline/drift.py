"""The outline of a drift report."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ggufnorm.core.drift import (
    DriftReport,
    Localisation,
    ModelFacts,
    NormDrift,
    OperationDrift,
    SideFacts,
)
from ggufnorm.core.floats import epsilon_text
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.metrics import Difference
from ggufnorm.report.outline.parts import (
    Excerpt,
    Figure,
    Mood,
    Outline,
    Row,
    Section,
    Table,
    skipped_section,
)
from ggufnorm.report.text import (
    bars,
    counted,
    layer_cell,
    model_line,
    number,
    plus_minus,
    types,
)

_USUAL_KLD = {"Q8_0": 0.0014, "Q4_K_M": 0.031, "Q2_K": 0.33}
"""Mean KL divergences of Llama 3 8B, in nats: llama.cpp's tools/perplexity/README.md."""

QUOTED_KLD = f"Llama 3 8B: {', '.join(f'{v} in {k}' for k, v in _USUAL_KLD.items())}"

_MOST_OPERATIONS = 12


def drift_outline(report: DriftReport) -> Outline:
    """Is it fine, and if not, where; then all that leads there."""
    return Outline(
        f"{Path(report.quant.path).name} against {Path(report.reference.path).name}",
        headline=headline(report),
        verdict=report.verdict,
        mood=mood(report),
        figures=tuple(_figures(report)),
        sections=(
            largest_errors(report),
            *predictions_section(report.logits, report.floor),
            *_tokens(report.localisation),
            *_where(report.localisation),
            _norms(report),
            *skipped_section(tuple(f"{s.what}: {s.reason}" for s in report.skipped)),
            _facts(report),
        ),
    )


def headline(report: DriftReport) -> str:
    """The answer in a few words."""
    if report.culprit is None:
        usual = _exceeded(report)
        more = f", but predictions drift more than Llama 3 8B's in {usual}" if usual else ""
        return f"Nothing is out of line{more}"
    where = report.culprit.tensor or report.culprit.node
    layer = "" if report.culprit.layer is None else f", layer {report.culprit.layer}"
    return f"Out of line: {where}{layer}"


def mood(report: DriftReport) -> Mood:
    """Sound if nothing is out of line and predictions drift as little as in Q4_K_M."""
    if report.culprit is not None:
        return "wrong"
    return "neutral" if _exceeded(report) else "sound"


def _exceeded(report: DriftReport) -> str | None:
    """The coarsest type from Q4_K_M on whose usual KL divergence this one exceeds."""
    kld = report.logits.mean_kld if report.logits else None
    above = [t for t in ("Q4_K_M", "Q2_K") if kld is not None and kld > _USUAL_KLD[t]]
    return above[-1] if above else None


def has_own_errors(operations: Sequence[OperationDrift]) -> bool:
    """Whether operations were given the reference's input: not where a trace was compared."""
    return any(o.local.rows or o.local.non_finite_rows for o in operations)


def _figures(report: DriftReport) -> Iterator[Figure]:
    if report.logits is not None:
        yield from _logit_figures(report.logits)
    if report.embedding is not None:
        d = report.embedding
        cosine = f"cosine {number(d.cosine, 7)}"
        yield Figure("Pooled output", number(d.rel_l2), f"relative L2; {cosine}")
    worst = max(report.operations, key=lambda o: o.local.rel_l2 or 0.0, default=None)
    if worst is not None and has_own_errors(report.operations):
        what = f"{worst.tensor or worst.node}, {types(worst.dtype_ref, worst.dtype)}"
        yield Figure("Largest own error", number(worst.local.rel_l2), what)
    layers = report.localisation.layers
    if layers:
        yield Figure("Drift at the end", number(layers[-1].rel_l2), _growth(report.localisation))


def _logit_figures(s: LogitStatistics) -> Iterator[Figure]:
    yield Figure(
        "KL divergence", f"{number(s.mean_kld)} nats", f"± {number(s.mean_kld_se)}; {QUOTED_KLD}"
    )
    yield Figure(
        "Same top token",
        f"{plus_minus(s.same_top1, None, 2, 100)} %",
        f"± {plus_minus(s.same_top1_se, None, 2, 100)} %;"
        f" RMS Δp of the right token {plus_minus(s.rms_delta_p, None, 2, 100)} %",
    )
    yield Figure(
        "Perplexity",
        f"× {plus_minus(s.ppl_ratio, None, 4)}",
        f"± {plus_minus(s.ppl_ratio_se, None, 4)};"
        f" {number(s.ppl_ref, 5)} → {number(s.ppl_quant, 5)}",
    )


def _growth(found: Localisation) -> str:
    growth = [layer.growth for layer in found.layers if layer.growth is not None]
    median = f", × {statistics.median(growth):.3f} per layer (median)" if growth else ""
    return f"relative L2 after layer {found.layers[-1].layer}{median}"


def largest_errors(report: DriftReport, title: str = "Where drift enters") -> Section:
    """The operations that add most by themselves."""
    own = has_own_errors(report.operations)

    def drift(o: OperationDrift) -> Difference:
        return o.local if own else o.cumulative

    ranked = sorted(
        report.operations,
        key=lambda o: (not drift(o).non_finite_rows, -(drift(o).rel_l2 or 0.0)),
    )
    chosen = [o for o in ranked[:_MOST_OPERATIONS] if drift(o).rel_l2 or drift(o).non_finite_rows]
    said = f"The largest of {counted(len(report.operations), 'operation')}"
    said += ", each given the reference's input." if own else ", all that is upstream counted in."
    if not chosen:
        said = "Every operation gives the reference's result."
    table = Table(
        tuple(_operation_row(o) for o in chosen),
        left=("Operation", "Reads", "Type"),
        marked=_at_fault(report, [o.node for o in chosen]),
    )
    charts = ("own", "heat", "cumulative") if own else ("cumulative", "heat")
    return Section(title, (said,), charts, table if chosen else None)


def _operation_row(o: OperationDrift) -> dict[str, str]:
    return {
        "Layer": layer_cell(o.layer),
        "Operation": o.role,
        "Reads": o.tensor or o.node,
        "Type": types(o.dtype_ref, o.dtype),
        "Own": drift_cell(o.local),
        "Cumulative": drift_cell(o.cumulative),
    }


def drift_cell(d: Difference) -> str:
    """A relative L2, or NaN where rows had to be left out."""
    return "NaN" if d.non_finite_rows else number(d.rel_l2)


def _at_fault(report: DriftReport, nodes: Iterable[str]) -> frozenset[int]:
    culprit = report.culprit
    return frozenset(i for i, n in enumerate(nodes) if culprit is not None and n == culprit.node)


def predictions_section(
    s: LogitStatistics | None, floor: LogitStatistics | None = None
) -> Iterator[Section]:
    """What drift does to the predictions, and the reference's own noise if it was measured."""
    if s is None:
        return
    rows = [
        ("KL divergence, mean", f"{plus_minus(s.mean_kld, s.mean_kld_se, 6)} nats"),
        ("median", number(s.kld_percentiles.get("50"))),
        ("99 %", number(s.kld_percentiles.get("99"))),
        ("99.9 %", number(s.p999_kld)),
        ("largest", number(s.max_kld)),
        (
            "Δp of the right token, mean",
            f"{plus_minus(s.mean_delta_p, s.mean_delta_p_se, 3, 100)} %",
        ),
        ("RMS", f"{plus_minus(s.rms_delta_p, s.rms_delta_p_se, 3, 100)} %"),
        ("same top token", f"{plus_minus(s.same_top1, s.same_top1_se, 3, 100)} %"),
        ("perplexity of the reference", plus_minus(s.ppl_ref, s.ppl_ref_se, 4)),
        ("of the model under test", plus_minus(s.ppl_quant, s.ppl_quant_se, 4)),
        ("ratio", plus_minus(s.ppl_ratio, s.ppl_ratio_se, 6)),
    ]
    if floor is not None:
        mean, most = number(floor.mean_kld), number(floor.max_kld)
        rows.append(("the reference with itself", f"KL divergence mean {mean}, max {most}"))
    if s.non_finite_tokens:
        rows.append(("left out: a logit is NaN or infinite", f"{s.non_finite_tokens:,} positions"))
    yield Section(
        f"Predictions at {s.n_tokens:,} positions",
        charts=("kld",),
        table=Table(tuple({"Statistic": a, "Value": b} for a, b in rows), left=("Statistic",)),
    )


def _tokens(found: Localisation) -> Iterator[Section]:
    rows: tuple[Row, ...] = tuple(
        {
            "Token": Excerpt(t.context, t.text),
            "KL divergence": number(t.kld),
            "p, reference": number(t.p_ref),
            "p, under test": number(t.p_quant),
            "Number": str(t.token),
        }
        for t in found.worst_tokens
    )
    if rows:
        yield Section("Tokens whose prediction drifts most", table=Table(rows, left=("Token",)))


def _where(found: Localisation) -> Iterator[Section]:
    lines = []
    if (bad := found.first_non_finite) is not None:
        token = "" if bad.token is None else f", token {bad.token}"
        lines.append(f"First NaN or infinity: {bad.tensor or bad.node}{token}")
    if (jump := found.first_jump) is not None:
        place = jump.tensor or jump.node
        lines.append(f"First operation out of line: {place}, robust z {number(jump.value)}")
    lines += [
        f"Channel {c.channel} holds {c.error_share:.0%} of the error and {c.energy_share:.0%} of"
        f" the energy at {c.node}"
        for c in found.outlier_channels
    ]
    if (peak := found.peak) is not None and found.f16_headroom is not None:
        lines.append(
            f"Largest value: {number(peak.value)} at {peak.node}, token {peak.token}, channel"
            f" {peak.channel}: half precision holds {number(found.f16_headroom)} times that"
        )
    if found.layers:
        drawn = bars([layer.rel_l2 for layer in found.layers])
        first = found.layers[0]
        lines.append(
            f"Drift by layer: {drawn} {number(first.rel_l2)} after layer {first.layer}"
            f" to {number(found.layers[-1].rel_l2)} after layer {found.layers[-1].layer}"
        )
    if lines:
        yield Section("What stands out", lines=tuple(lines))


def _norms(report: DriftReport) -> Section:
    residuals = [n.recompute_residual for n in report.norms if n.recompute_residual is not None]
    lines = []
    if residuals:
        lines.append(
            f"NumPy recomputes {len(residuals)} of {counted(len(report.norms), 'norm')} to within"
            f" {max(residuals):.1e} of llama.cpp's result."
        )
    table = Table(
        tuple(map(_norm_row, report.norms)),
        left=("Norm", "Kind", "Tensor"),
        marked=_at_fault(report, [n.node for n in report.norms]),
    )
    said = tuple(lines)
    return Section("Norms", said, table=table if report.norms else None, folded=True)


def _norm_row(n: NormDrift) -> dict[str, str]:
    out = n.output
    epsilon = epsilon_text(n.epsilon_used)
    if n.epsilon_used != n.epsilon_used_ref:
        epsilon = f"{epsilon_text(n.epsilon_used_ref)}→{epsilon}"
    return {
        "Layer": layer_cell(n.layer),
        "Norm": n.role,
        "Kind": n.kind,
        "Epsilon": epsilon,
        "In": drift_cell(n.input),
        "Out": drift_cell(out),
        "Cosine": "–" if out.cosine is None else f"{out.cosine:.5f}",
        "Ratio": "–" if out.rms_ratio is None else f"{out.rms_ratio:.3f}",
        "Max |Δ|": number(out.max_abs),
        "Weight": "–" if n.weight is None else drift_cell(n.weight),
        "Own": drift_cell(n.local),
        "NumPy": number(n.recompute_residual, 1),
        "Tensor": n.tensor or "(no weight)",
    }


def _facts(report: DriftReport) -> Section:
    run = report.run
    stopped = " (stopped early)" if run.n_chunks < run.n_chunks_planned else ""
    rows = [
        *_model_facts("Reference", report.reference, run.reference),
        *_model_facts("Under test", report.quant, run.quant),
        ("Text", f"{run.text}, {run.n_text_tokens:,} tokens"),
        ("Chunks", f"{run.n_chunks} of {run.n_chunks_planned} of {run.n_ctx} tokens{stopped}"),
        ("Engine", f"{run.engine}, {run.n_threads} threads, {run.n_gpu_layers} GPU layers"),
    ]
    table = Table(tuple({"": a, "How it was run": b} for a, b in rows), left=("", "How it was run"))
    return Section("How it was run", table=table, folded=True)


def _model_facts(label: str, model: ModelFacts, side: SideFacts) -> Iterator[tuple[str, str]]:
    yield label, model_line(model)
    yield "", f"name {model.name or '–'}, fingerprint {model.fingerprint[:16] or '–'}"
    yield "", ", ".join(_options(side))


def _options(side: SideFacts) -> Iterator[str]:
    yield f"flash attention {side.flash_attention}"
    yield f"K/V cache {side.cache_type_k}/{side.cache_type_v}"
    yield from ["repacked weights"] if side.use_extra_bufts else []
    yield from ["unfused norms"] if side.unfused_norms else []
