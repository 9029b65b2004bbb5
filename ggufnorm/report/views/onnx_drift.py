"""The view of a drift report of two ONNX files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggufnorm.core.metrics import Difference
from ggufnorm.core.onnx_drift import (
    OnnxDriftReport,
    OnnxFacts,
    OnnxOperation,
    OutlierChannel,
    OutputDrift,
    Remedy,
)
from ggufnorm.report.formatting import (
    counted,
    drift,
    layer,
    megabytes,
    number,
    numeric,
    percent,
    shape_text,
    share,
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
from ggufnorm.report.views.common import sentences, skipped_section

_MOST_OPERATIONS, _MOST_CHANNELS = 8, 8


def onnx_drift_view(report: OnnxDriftReport) -> tuple[Report, ...]:
    """Whether it is fine, and if not, where, and what to do."""
    answer: Status = "ok" if report.culprit is None else "error"
    return (
        Report(
            f"{Path(report.quant.path).name} against {Path(report.reference.path).name}",
            subject=report.quant.path,
            headline=_headline(report),
            status=answer,
            figures=tuple(_figures(report)),
            verdict=(Sentence(report.verdict, answer),),
            facts=Section("How it was run", table=facts("run", _run_facts(report)), folded=True),
            sections=(
                _operations(report),
                Section(
                    "Channels that stretch a range, the worst first",
                    table=table("channels", _CHANNELS, _outliers(report), most=_MOST_CHANNELS),
                    folded=True,
                ),
                Section("Outputs", table=table("outputs", _OUTPUTS, report.outputs)),
                Section(
                    "Settings that were tried, the best first: error of the output with them",
                    table=table("remedies", _REMEDIES, report.remedies),
                ),
                skipped_section(report.skipped),
            ),
        ),
    )


def _headline(report: OnnxDriftReport) -> str:
    if report.culprit is None:
        return "Nothing is out of line"
    at = "" if report.culprit.layer is None else f", layer {report.culprit.layer}"
    return f"Out of line: {report.culprit.node}{at}"


def _figures(report: OnnxDriftReport) -> Iterator[Figure]:
    for o in report.outputs:
        if o.main:
            d = o.difference
            note = f"relative L2; cosine distance {number(_distance(d))}"
            yield Figure(f"Output {o.name}", number(d.rel_l2), note)
    worst = max(report.operations, key=lambda o: o.local.rel_l2 or 0.0, default=None)
    if worst is not None:
        note = f"{worst.node}, {types(worst.dtype_ref, worst.dtype)}"
        yield Figure("Largest own error", number(worst.local.rel_l2), note)
    costliest = max(report.operations, key=lambda o: o.share or 0.0, default=None)
    if costliest is not None and costliest.share:
        yield Figure("Largest share", percent(costliest.share), costliest.node)


def _distance(d: Difference | None) -> float | None:
    return None if d is None or d.cosine is None else max(0.0, 1 - d.cosine)


def _run_facts(report: OnnxDriftReport) -> Iterator[tuple[str, str]]:
    run = report.run
    yield "reference", _file(report.reference)
    yield "quant", f"{_file(report.quant)}, {_SCHEMES[report.scheme]}"
    yield "inputs", f"{run.inputs}, {counted(run.n_runs, 'run')}"
    threads = "" if run.n_threads is None else f", {counted(run.n_threads, 'thread')}"
    passes = "1 pass" if run.n_groups == 1 else f"{run.n_groups} passes"
    held = f"{passes}, at most {megabytes(run.held_bytes, 0)} MB held"
    yield "run", f"{run.engine}{threads}; {held}; paired by {run.paired_by}"


_SCHEMES = {
    "dynamic": "integers, scales taken from each input",
    "static": "integers, stored scales",
    "weights": "integers in matrices alone",
    "half": "half precision",
    "float": "floating point",
}


def _file(f: OnnxFacts) -> str:
    size = f"{megabytes(f.n_bytes)} MB, {counted(f.n_nodes, 'node')}"
    return f"{Path(f.path).name}, {f.producer}, opset {f.opset}, {size}"


_OPERATIONS: Columns[OnnxOperation] = (
    Column("Layer", lambda o: layer(o.layer)),
    Column("Operation", lambda o: _short(o.node), left=True, least=25),
    Column("Type", lambda o: types(o.dtype_ref, o.dtype), left=True, priority=2),
    Column("Own", lambda o: drift(o.local)),
    Column("Fresh", lambda o: numeric(o.expected), priority=3),
    Column("Cumulative", lambda o: drift(o.cumulative), priority=1),
    Column("Share", lambda o: share(o.share)),
    Column("Saturated", lambda o: numeric(o.saturated), priority=6),
    Column("Computed by", lambda o: ", ".join(o.op_quant), left=True, priority=5),
    Column("Changed", lambda o: o.change or "–", left=True, priority=4),
)


def _operations(report: OnnxDriftReport) -> Section:
    ranked = sorted(
        (o for o in report.operations if o.local.rel_l2 or o.local.non_finite_rows),
        key=lambda o: (not o.local.non_finite_rows, -(o.local.rel_l2 or 0.0)),
    )
    fault = None if report.culprit is None else report.culprit.node
    n = counted(len(report.operations), "operation")
    return Section(
        f"Largest errors of {n}, each given the reference's input",
        sentences=() if ranked else sentences("Every operation gives the reference's result."),
        table=table(
            "operations",
            _OPERATIONS,
            ranked,
            status=lambda o: "error" if o.node == fault else "neutral",
            most=_MOST_OPERATIONS,
        ),
    )


def _short(node: str) -> Cell:
    """The end of an exporter's path, which tells operations apart."""
    return Cell("/".join(node.split("/")[-3:]), node)


_Channel = tuple[OnnxOperation, OutlierChannel]


def _outliers(report: OnnxDriftReport) -> list[_Channel]:
    found = [(o, c) for o in report.operations for c in o.outliers]
    return sorted(found, key=lambda pair: -pair[1].ratio)


_OF = {"input": "matrix, input", "output": "matrix, output", "activation": "input"}

_CHANNELS: Columns[_Channel] = (
    Column("Layer", lambda c: layer(c[0].layer)),
    Column("Operation", lambda c: _short(c[0].node), left=True, least=25),
    Column("Channel of", lambda c: _OF[c[1].of], left=True),
    Column("Channel", lambda c: Cell(str(c[1].channel), c[1].channel)),
    Column("Times the median", lambda c: numeric(c[1].ratio)),
)

_OUTPUTS: Columns[OutputDrift] = (
    Column("Output", lambda o: o.name, left=True),
    Column("Shape", lambda o: shape_text(o.shape)),
    Column("Relative L2", lambda o: drift(o.difference)),
    Column("Cosine distance", lambda o: numeric(_distance(o.difference))),
    Column("Max |Δ|", lambda o: numeric(o.difference.max_abs), priority=2),
    Column("Optimized", lambda o: drift(o.optimized), priority=1),
)

_REMEDIES: Columns[Remedy] = (
    Column("Setting", lambda r: r.setting, left=True, least=30),
    Column("Relative L2", lambda r: numeric(r.rel_l2)),
    Column("Cosine distance", lambda r: numeric(r.cosine_distance)),
    Column("MB more", lambda r: Cell(f"{r.bytes / 1e6:+.2f}", r.bytes)),
)
