"""The view of a drift report."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ggufnorm.core.drift import (
    DriftReport,
    ExpertDrift,
    Localisation,
    NormDrift,
    OperationDrift,
    TokenDrift,
)
from ggufnorm.core.floats import epsilon_text
from ggufnorm.core.metrics import Difference
from ggufnorm.core.node_names import node_words
from ggufnorm.core.severity import FEW_POSITIONS
from ggufnorm.report.formatting import (
    bars,
    counted,
    drift,
    fixed,
    integer,
    layer,
    number,
    numeric,
    place_text,
    types,
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
from ggufnorm.report.views.common import (
    command,
    engine_facts,
    model_facts,
    option_facts,
    sentences,
    skipped_section,
)
from ggufnorm.report.views.kernels import kernel_sections
from ggufnorm.report.views.predictions import (
    exceeded_type,
    prediction_figures,
    predictions_section,
    severity_figure,
)

_MOST_OPERATIONS = 8
_MOST_TOKENS = 5
_UNASKED = ("operations", "own errors")
_PARTS = ("tokens", "tiles", "encoders", "experts", "layers", *_UNASKED)
"""What may be left out of everything that is compared: :attr:`DriftReport.skipped` says why."""


def drift_view(report: DriftReport) -> tuple[Report, ...]:
    """Whether it is fine, and if not, where; then all that leads there."""
    answer = status(report)
    return (
        Report(
            f"{Path(report.quant.path).name} against {Path(report.reference.path).name}",
            subject=report.quant.path,
            headline=headline(report),
            status=answer,
            figures=tuple(_figures(report)),
            verdict=(Sentence(report.verdict, answer),),
            next_step=next_step(report),
            facts=Section("How it was run", table=facts("run", _run_facts(report)), folded=True),
            sections=(
                *kernel_sections(report),
                _norms(report),
                largest_errors(report),
                _experts(report),
                _places(report.localisation),
                predictions_section(report.logits, report.floor),
                Section(
                    "Tokens whose prediction drifts most",
                    table=table(
                        "worst_tokens",
                        _TOKENS,
                        report.localisation.worst_tokens,
                        most=_MOST_TOKENS,
                    ),
                ),
                skipped_section(report.skipped),
            ),
        ),
    )


def status(report: DriftReport) -> Status:
    """Fine only if all was compared, nothing is out of line, and predictions drift little."""
    if report.culprit is not None:
        return "error"
    if exceeded_type(report.logits) or limits(report):
        return "warning"
    return "neutral" if _has_drift_alone(report) else "ok"


def _has_drift_alone(report: DriftReport) -> bool:
    """Whether there is drift, and no operation's own error was measured: beside a trace."""
    drifts = any(o.cumulative.rel_l2 for o in report.operations)
    return drifts and not _have_own_errors(report.operations)


def limits(report: DriftReport) -> list[str]:
    """What the answer does not rest on, because it was not run or not compared."""
    run, s = report.run, report.logits
    found = []
    if run.cut or run.n_chunks < run.n_chunks_planned:
        why = f" ({run.cut})" if run.cut else ""
        unit = f"{_input(report)}s" if _of_encoder(report) else "chunks"
        found.append(f"only {run.n_chunks} of {run.n_chunks_planned} {unit} were run{why}")
    if not report.operations:
        found.append("no operation was compared")
    parts = _PARTS if report.operations else _PARTS[: -len(_UNASKED)]
    found += [f"of the {s.what} {s.reason}" for s in report.skipped if s.what in parts]
    if s is not None and s.n_tokens < FEW_POSITIONS:
        found.append(f"only {counted(s.n_tokens, 'scored position')}")
    if s is not None and s.non_finite_tokens:
        left = counted(s.non_finite_tokens, "position")
        found.append(f"{left} with NaN or infinite logits were left out")
    if s is None and report.embedding is None:
        found.append("neither predictions nor an embedding were compared")
    return found


def headline(report: DriftReport) -> str:
    """The answer in a few words; what it does not rest on first, unless something was found."""
    said, unseen = _answer(report), "; ".join(limits(report))
    if not unseen:
        return said
    unseen = f"{unseen[0].upper()}{unseen[1:]}"
    return f"{unseen}. {said}" if report.culprit is None else f"{said}. {unseen}"


def _answer(report: DriftReport) -> str:
    if report.culprit is None:
        s = report.logits
        usual = exceeded_type(s) if s is not None and s.n_tokens >= FEW_POSITIONS else None
        more = f", but predictions drift more than Llama 3 8B's in {usual}" if usual else ""
        if _has_drift_alone(report):
            return f"Where drift stands was compared, not which operation adds it{more}"
        if not report.operations and s is not None and s.mean_kld is not None:
            # Of what nobody looked at nothing may be said.
            drift_of = f"Predictions drift by {number(s.mean_kld)} nats"
            return f"{drift_of}, more than Llama 3 8B's in {usual}" if usual else drift_of
        if _is_partial(report):
            return f"Nothing that was watched is out of line{more}"
        return f"Nothing is out of line{more}"
    where = report.culprit.tensor or node_words(report.culprit.node)
    at = "" if report.culprit.layer is None else f", layer {report.culprit.layer}"
    return f"Out of line: {where}{at}"


def _is_partial(report: DriftReport) -> bool:
    """Whether less was asked for than to compare every operation."""
    return any(s.what in _UNASKED for s in report.skipped)


def next_step(report: DriftReport) -> str:
    """What to do now; empty where nothing is to be done."""
    ref, quant = report.reference.path, report.quant.path
    culprit = report.culprit
    if culprit is None:
        if _is_partial(report):
            return f"{command('drift', ref, quant)} compares every operation"
        if limits(report):
            return "run more text (-f FILE, --chunks N)"
        if exceeded_type(report.logits) is None:
            return ""
        return f"{command('attribute', ref, quant)} tells which tensors cost most"
    if ref == quant:
        return "run it with other options (-fa, -ctk, -ctv)"
    if culprit.tensor in {n.tensor for n in report.norms} - {None}:
        return f"{command('audit', quant)}, with --source FOLDER if you have it, tells what it is"
    look = command("diff", ref, quant)
    if culprit.tensor is None:
        return f"{look} lists the keys and tensors that differ"
    return f"{look} shows the tensor beside the others; convert or quantize it again"


def _figures(report: DriftReport) -> Iterator[Figure]:
    yield from severity_figure(report.logits, report.quant, report.reference)
    yield from prediction_figures(report.logits)
    if report.embedding is not None:
        d = report.embedding
        rows = counted(d.rows, "row" if _of_encoder(report) else "chunk")
        note = f"relative L2 over {rows}; cosine {number(d.cosine, 7)}"
        label = "Pooled output"
        if _of_encoder(report):
            label = "Image embedding" if _input(report) == "picture" else "Audio embedding"
        yield Figure(label, number(d.rel_l2), note)
    worst = max(report.operations, key=lambda o: o.local.rel_l2 or 0.0, default=None)
    if worst is not None and _have_own_errors(report.operations):
        note = f"{worst.tensor or worst.node}, {types(worst.dtype_ref, worst.dtype)}"
        label = "Largest error of a stretch" if _is_partial(report) else "Largest own error"
        yield Figure(label, number(worst.local.rel_l2), note)
    layers = report.localisation.layers
    if layers:
        yield Figure("Drift at the end", number(layers[-1].rel_l2), _growth(report.localisation))


def _of_encoder(report: DriftReport) -> bool:
    """Whether an encoder was run, which has no context of tokens."""
    return report.run.n_ctx == 0


def _input(report: DriftReport) -> str:
    """What an encoder was run on: its blocks' tensors are ``v.blk…`` or ``a.blk…``."""
    first = {o.tensor.partition(".")[0] for o in report.operations if o.tensor}
    return "sound" if "a" in first and "v" not in first else "picture"


def _growth(found: Localisation) -> str:
    growth = [at.growth for at in found.layers if at.growth is not None]
    median = f", × {statistics.median(growth):.3f} per layer (median)" if growth else ""
    return f"relative L2 after layer {found.layers[-1].layer}{median}"


def _run_facts(report: DriftReport) -> Iterator[tuple[str, str]]:
    run = report.run
    yield from model_facts("reference", report.reference)
    yield from model_facts("quant", report.quant)
    if _of_encoder(report):
        yield f"{_input(report)}s", run.text
    else:
        yield "text", f"{run.text}, {counted(run.n_text_tokens, 'token')}"
    stopped = run.n_chunks < run.n_chunks_planned
    of = f" of {run.n_chunks_planned} (stopped early)" if stopped else ""
    taken = "" if report.cost is None else f" in {report.cost.seconds:.1f} s"
    threads = counted(run.n_threads, "thread") if run.n_threads else "all threads"
    where = f"{run.engine}, {threads}"
    if run.n_gpu_layers and run.engine_quant is None:  # of a document that does not say more
        where += f", {counted(run.n_gpu_layers, 'GPU layer')}"
    unit = f"chunks of {run.n_ctx} tokens"
    if _of_encoder(report):
        unit = _input(report) + ("" if run.n_chunks == 1 and not of else "s")
    yield "run", f"{run.n_chunks}{of} {unit}{taken} ({where})"
    yield from engine_facts(run.engine_ref, run.engine_quant)
    yield from option_facts(run.reference, run.quant)


# -- norms -------------------------------------------------------------------------------


def _epsilon(n: NormDrift) -> Cell:
    text = epsilon_text(n.epsilon_used)
    if n.epsilon_used != n.epsilon_used_ref:
        return Cell(f"{epsilon_text(n.epsilon_used_ref)}→{text}", n.epsilon_used, "error")
    return Cell(f"{text}*" if _metadata_differs(n) else text, n.epsilon_used)


def _metadata_differs(n: NormDrift) -> bool:
    return n.epsilon_metadata not in (None, n.epsilon_used)


_NORMS: Columns[NormDrift] = (
    Column("Layer", lambda n: layer(n.layer)),
    Column("Norm", lambda n: n.role, left=True),
    Column("Kind", lambda n: n.kind, left=True),
    Column("Epsilon", _epsilon),
    Column("In", lambda n: drift(n.input)),
    Column("Out", lambda n: drift(n.output)),
    Column("Cosine", lambda n: fixed(n.output.cosine, 5), priority=1),
    Column("Ratio", lambda n: fixed(n.output.rms_ratio, 3), priority=3),
    Column("Max |Δ|", lambda n: numeric(n.output.max_abs), priority=4),
    Column(
        "token:chan",
        lambda n: place_text(n.output.max_abs_token, n.output.max_abs_channel),
        priority=5,
    ),
    Column("Weight", lambda n: drift(n.weight)),
    Column("Own", lambda n: drift(n.local)),
    Column("NumPy", lambda n: numeric(n.recompute_residual, 1), priority=2),
    Column("Tensor", lambda n: n.tensor or "(no weight)", left=True, priority=6),
)


def _norms(report: DriftReport) -> Section:
    return Section(
        "Norms: relative L2 drift from the reference, in graph order",
        table=table(
            "norms",
            _NORMS,
            report.norms,
            status=_fault_at(report),
            quiet=_adds_nothing,
            quiet_words="norms add nothing: their own error is 0",
            notes=tuple(_norm_notes(report.norms)),
        ),
        folded=True,
    )


def _adds_nothing(n: NormDrift) -> bool:
    return n.local.rel_l2 == 0 and n.epsilon_used == n.epsilon_used_ref and not _metadata_differs(n)


def _norm_notes(norms: Sequence[NormDrift]) -> Iterator[Sentence]:
    residuals = [n.recompute_residual for n in norms if n.recompute_residual is not None]
    if residuals:
        yield Sentence(
            f"NumPy recomputes {len(residuals)} of {counted(len(norms), 'norm')} to within"
            f" {max(residuals):.1e} of llama.cpp's result."
        )
    if any(map(_metadata_differs, norms)):
        yield Sentence("* the metadata states another epsilon than llama.cpp uses", "warning")


def _fault_at(report: DriftReport) -> Callable[[NormDrift | OperationDrift], Status]:
    """Which rows are at fault."""
    fault = report.culprit.node if report.culprit else None
    return lambda item: "error" if item.node == fault else "neutral"


# -- operations --------------------------------------------------------------------------

_OPERATIONS: Columns[OperationDrift] = (
    Column("Layer", lambda o: layer(o.layer)),
    Column("Operation", lambda o: o.role, left=True),
    Column("Reads", lambda o: o.tensor or o.node, left=True, least=25),
    Column("Type", lambda o: types(o.dtype_ref, o.dtype), left=True),
    Column("Own", lambda o: drift(o.local)),
    Column("Cumulative", lambda o: drift(o.cumulative)),
)


def _have_own_errors(operations: Sequence[OperationDrift]) -> bool:
    """Whether operations were given the reference's input: not where a trace was compared."""
    return any(o.local.rows or o.local.non_finite_rows for o in operations)


def largest_errors(report: DriftReport, *, charts: bool = True) -> Section:
    """The operations that add most by themselves, the largest errors first."""
    own = _have_own_errors(report.operations)

    def error(o: OperationDrift) -> Difference:
        return o.local if own else o.cumulative

    ranked = sorted(
        (o for o in report.operations if error(o).rel_l2 or error(o).non_finite_rows),
        key=lambda o: (not error(o).non_finite_rows, -(error(o).rel_l2 or 0.0)),
    )
    n = counted(len(report.operations), "operation")
    title = f"Largest drift of {n}, all that is upstream counted in"
    if own:
        title = f"Largest errors of {n}, each given the reference's input"
        if _is_partial(report):
            title = f"Largest errors of {n} and what is before each, up to the last one watched"
    names = ("own", "heat", "cumulative") if own else ("cumulative", "heat")
    return Section(
        title,
        charts=names if charts else (),
        sentences=() if ranked else sentences("Every operation gives the reference's result."),
        table=table(
            "operations",
            _OPERATIONS,
            ranked,
            status=_fault_at(report),
            most=_MOST_OPERATIONS,
        ),
    )


_EXPERTS: Columns[ExpertDrift] = (
    Column("Layer", lambda e: layer(e.layer)),
    Column("Expert", lambda e: Cell(str(e.expert), e.expert)),
    Column("Tensor", lambda e: e.tensor, left=True, least=25),
    Column("Rows", lambda e: integer(e.rows)),
    Column("Own", lambda e: numeric(e.local)),
)


def _experts(report: DriftReport) -> Section:
    """Each expert's own error, the largest first."""
    ranked = sorted(report.experts, key=lambda e: -(e.local or 0.0))
    idle = sum(not e.rows for e in ranked)
    used = f" of {len(ranked)}; no token was routed to {idle}" if idle else ""
    return Section(
        f"Experts{used}: own errors, each given the reference's input and routing",
        table=table("experts", _EXPERTS, ranked, most=_MOST_OPERATIONS),
        folded=True,
    )


# -- places ------------------------------------------------------------------------------


def _places(found: Localisation) -> Section:
    return Section("Where it is", sentences=tuple(_place_sentences(found)))


def _place_sentences(found: Localisation) -> Iterator[Sentence]:
    if (bad := found.first_non_finite) is not None:
        at = "" if bad.token is None else f", token {bad.token}"
        yield Sentence(
            f"{bad.tensor or node_words(bad.node)}{at}", "error", "first NaN or infinity"
        )
    if found.layers:
        first, last = found.layers[0], found.layers[-1]
        yield Sentence(
            f"{bars([at.rel_l2 for at in found.layers])}  {number(first.rel_l2)} after layer"
            f" {first.layer} to {number(last.rel_l2)} after layer {last.layer}",
            label="by layer",
        )
    if (jump := found.first_jump) is not None:
        text = f"{jump.tensor or node_words(jump.node)}, robust z {number(jump.value)}"
        yield Sentence(text, label="first jump")
    for i, c in enumerate(found.outlier_channels):
        yield Sentence(
            f"{c.channel} holds {c.error_share:.0%} of the error and {c.energy_share:.0%} of"
            f" the energy at {node_words(c.node)}",
            label="" if i else "channels",
        )
    if (peak := found.peak) is not None and found.f16_headroom is not None:
        yield Sentence(
            f"{number(peak.value)} at {node_words(peak.node, peak.tensor)}, token {peak.token},"
            f" channel {peak.channel}: half precision holds"
            f" {number(found.f16_headroom)} times that",
            label="largest value",
        )


_TOKENS: Columns[TokenDrift] = (
    Column("Token", lambda t: Cell(_line(t.text), before=_line(t.context)), left=True, least=28),
    Column("KL divergence", lambda t: numeric(t.kld), short="KL"),
    Column("p, reference", lambda t: numeric(t.p_ref)),
    Column("p, quant", lambda t: numeric(t.p_quant)),
    Column("Position", lambda t: Cell(str(t.token), t.token)),
)


def _line(text: str) -> str:
    return text.replace("\n", "⏎")
