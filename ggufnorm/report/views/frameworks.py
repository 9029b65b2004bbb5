"""The view of a comparison across frameworks: a report for each engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggufnorm.core.frameworks import (
    EngineComparison,
    FoldedNorm,
    FrameworksReport,
    LayerComparison,
    OperationMatch,
    SiteComparison,
)
from ggufnorm.report.formatting import counted, fixed, layer, number, numeric
from ggufnorm.report.view import (
    Column,
    Columns,
    Figure,
    Report,
    Section,
    Sentence,
    Status,
    table,
)
from ggufnorm.report.views.common import ran_section, severity_status, skipped_section
from ggufnorm.report.views.predictions import prediction_figures, predictions_section

_MOST_OPERATIONS = 8
_MOST_NOTES = 12


def frameworks_view(result: FrameworksReport) -> tuple[Report, ...]:
    """Where each engine parts from the source."""
    reports = tuple(_report(result, comparison) for comparison in result.comparisons)
    return (_summary(result), *reports) if len(reports) > 1 else reports


def _summary(result: FrameworksReport) -> Report:
    """Which of several conversions is right."""
    comparisons = result.comparisons
    found = [(_name(c), _answer(c)) for c in comparisons]
    wrong = [name for name, answer in found if answer == "error"]
    right = [name for name, answer in found if answer == "ok"]
    n = len(found)
    worst: Status = next((s for s in _WORST_FIRST if s in {a for _, a in found}), "neutral")
    said = f"{len(wrong)} of {n} conversions are wrong: {', '.join(wrong)}" if wrong else (
        f"All {n} conversions agree with the source" if len(right) == n
        else f"None of {n} conversions is found wrong"
    )  # fmt: skip
    return Report(
        f"{n} conversions of {result.source.location}",
        headline=said,
        status=worst,
        verdict=tuple(Sentence(f"{_name(c)}: {_headline(c)}", _answer(c)) for c in comparisons),
    )


def _name(comparison: EngineComparison) -> str:
    return Path(comparison.engine.location).name


_WORST_FIRST: tuple[Status, ...] = ("error", "warning", "neutral", "ok")


def _report(result: FrameworksReport, comparison: EngineComparison) -> Report:
    answer = _answer(comparison)
    return Report(
        _title(result, comparison),
        subject=comparison.engine.location,
        headline=_headline(comparison),
        status=answer,
        figures=tuple(_figures(comparison)),
        verdict=(Sentence(comparison.verdict, answer),),
        facts=ran_section(comparison.engine.build),
        sections=(
            Section(
                "Norms",
                table=table("sites", _SITES, comparison.sites, status=_site_status),
            ),
            Section(
                "Operations up to the first wrong one",
                table=table(
                    "operations",
                    _OPERATIONS,
                    _followed(comparison),
                    status=lambda o: "error" if o.status == "wrong" else "neutral",
                ),
            ),
            Section(
                "Batch norms",
                table=table(
                    "folds",
                    _FOLDS,
                    comparison.folds,
                    status=lambda f: "error" if f.status == "mistake" else "neutral",
                ),
            ),
            Section(
                "Layers",
                table=table("layers", _LAYERS, _shown_layers(comparison), status=_layer_status),
            ),
            Section("What differs", sentences=tuple(_differences(comparison)), most=_MOST_NOTES),
            predictions_section(comparison.logits),
            skipped_section(comparison.skipped),
        ),
    )


def _title(result: FrameworksReport, comparison: EngineComparison) -> str:
    source, engine = (
        f"{side.location} ({side.engine})" for side in (result.source, comparison.engine)
    )
    return f"{source} against {engine}, {_input(result)}"


def _input(result: FrameworksReport) -> str:
    picture = result.picture
    if picture is None:
        # A model without tokens runs on values that have nothing to do with the text.
        if not result.n_tokens:
            return "no text"
        return f"{counted(result.n_tokens, 'token')}: {result.text}"
    n, height, width, _channels = picture.shape
    return f"{counted(n, 'picture')} of {width}×{height} ({picture.pixels}): {picture.name}"


def _answer(comparison: EngineComparison) -> Status:
    padding = comparison.padding
    ids = comparison.tokenizer
    of_file = ids is not None and not ids.is_engines
    if comparison.first_wrong or of_file or (padding and padding.in_engine):
        return "error"
    left = comparison.not_compared or ids or (padding and padding.in_source)
    return "warning" if left else "ok"


def _headline(comparison: EngineComparison) -> str:
    wrong = comparison.first_wrong
    ids = comparison.tokenizer
    if wrong is None and ids is not None and not ids.is_engines:
        return "Token ids are not the source's"
    if wrong is None and comparison.not_compared:
        left = "; ".join(f"{s.what} ({s.reason})" for s in comparison.not_compared)
        return f"No mistake in what was compared; not compared: {left}{_beside(comparison)}"
    if wrong is None:
        return f"No mistake{_beside(comparison)}"
    if wrong.operation is not None:
        return f"First wrong: {wrong.operation.op} {wrong.operation.name}"
    return f"First wrong at {wrong.key}"


def _beside(comparison: EngineComparison) -> str:
    """What changes a result that people use, though the file is right."""
    padding, said = comparison.padding, []
    ids = comparison.tokenizer
    if ids is not None and ids.is_engines:
        said.append(
            f"llama.cpp's tokenizer gives other ids in {ids.differing} of {ids.n_texts} texts"
        )
    if padding is not None and padding.in_engine:
        said.append(f"llama.cpp's {padding.what} depends on what else is in the batch")
    if padding is not None and padding.in_source:
        said.append(f"the {padding.what} of the source depends on padding")
    # Those that reach norms are in the verdict.
    said += [f"the engines differ in {known.name}" for known in comparison.known
             if not known.n_sites]  # fmt: skip
    return f"; beside the file: {', '.join(said)}" if said else ""


def _figures(comparison: EngineComparison) -> Iterator[Figure]:
    sites = comparison.sites
    largest = max((s.output.rel_l2 or 0.0 for s in sites), default=None)
    yield Figure("Largest difference", number(largest, 2), "of a norm's result, relative L2")
    statuses: list[str] = [*(s.status for s in sites), *(f.status for f in comparison.folds)]
    what = "Norms"
    if not statuses and comparison.layers:
        what, statuses = "Layers", [s.status for s in comparison.layers]
    wrong = statuses.count("mistake")
    yield Figure(f"{what} that are wrong", f"{wrong} of {len(statuses)}")
    yield from prediction_figures(comparison.logits)


# -- tables ------------------------------------------------------------------------------


def _both(source: str, engine: str) -> str:
    return engine if source == engine else f"{engine} for {source}"


def _site_status(site: SiteComparison) -> Status:
    if site.status in ("mistake", "before"):
        return "error"
    return "warning" if site.status == "harmless" else "neutral"


_SITES: Columns[SiteComparison] = (
    Column("Layer", lambda s: layer(s.layer)),
    Column("Norm", lambda s: s.key, left=True, least=25),
    Column("Kind", lambda s: _both(s.source.kind, s.engine.kind), left=True, priority=1),
    Column("Epsilon", lambda s: _both(f"{s.source.epsilon:.4g}", f"{s.engine.epsilon:.4g}")),
    Column("Offset", lambda s: f"{s.source.offset:+g}" if s.source.offset else "", priority=3),
    Column("Input", lambda s: numeric(s.input.rel_l2, 2), priority=2),
    Column("Output", lambda s: numeric(s.output.rel_l2, 2)),
    Column("Own", lambda s: numeric(s.local, 2)),
    Column("Status", lambda s: s.status, left=True),
    Column("Cosine", lambda s: fixed(s.output.cosine, 5), priority=4),
    Column("Ratio", lambda s: fixed(s.output.rms_ratio, 3), priority=5),
    Column("Source", lambda s: s.source.name, left=True, priority=6),
)


def _followed(comparison: EngineComparison) -> tuple[OperationMatch, ...]:
    """The operations up to the first wrong one."""
    operations = comparison.operations
    wrong = next((i for i, o in enumerate(operations) if o.status == "wrong"), -1)
    return operations[: wrong + 1]


_OPERATIONS: Columns[OperationMatch] = (
    Column("Operation", lambda o: o.op, left=True),
    Column("Node", lambda o: o.name, left=True),
    Column("Tensor", lambda o: o.tensor or "", left=True, least=25),
    Column("Difference", lambda o: numeric(o.distance, 2)),
    Column("Status", lambda o: o.status, left=True),
    Column("Source", lambda o: o.counterpart or "", left=True, priority=1),
)

_FOLDS: Columns[FoldedNorm] = (
    Column("Batch norm", lambda f: f.norm, left=True, least=20),
    Column("Side", lambda f: f.side, left=True, priority=1),
    Column("Layer", lambda f: f.layer, left=True, least=20),
    Column("Operation", lambda f: f.op, left=True, priority=2),
    Column("Weight", lambda f: numeric(f.weight_error, 2)),
    Column("Bias", lambda f: numeric(f.bias_error, 2)),
    Column("Status", lambda f: f.status, left=True),
)


_LAYERS: Columns[LayerComparison] = (
    Column("Layer", lambda s: s.engine, left=True, least=20),
    Column("Operation", lambda s: s.op, left=True, priority=2),
    Column("Weight", lambda s: numeric(s.weight_error, 2)),
    Column("Bias", lambda s: numeric(s.bias_error, 2)),
    Column("Output", lambda s: numeric(s.output.rel_l2 if s.output else None, 2)),
    Column("Status", lambda s: s.status, left=True),
    Column("Source", lambda s: s.source, left=True, priority=1),
)


def _shown_layers(comparison: EngineComparison) -> tuple[LayerComparison, ...]:
    """All where there is no batch norm to look at, else those that are wrong."""
    if not comparison.folds:
        return comparison.layers
    return tuple(s for s in comparison.layers if _layer_status(s) == "error")


def _layer_status(one: LayerComparison) -> Status:
    if one.status in ("mistake", "before"):
        return "error"
    return "warning" if one.status == "harmless" else "neutral"


def _differences(c: EngineComparison) -> Iterator[Sentence]:
    for site in c.sites:
        for cause in site.causes:
            alone = "" if cause.share is None else f" (alone {number(cause.share, 2)})"
            yield Sentence(f"{site.key}: {cause.message}{alone}", _site_status(site))
    for fold in c.folds:
        if fold.cause is not None:
            status: Status = "error" if fold.status == "mistake" else "warning"
            yield Sentence(f"{fold.norm}: {fold.message}", status)
    for one in c.layers:
        if one.message:
            yield Sentence(f"{one.engine}: {one.message}", _layer_status(one))
    if c.result is not None:
        yield Sentence(f"the model's result: off by {number(c.result.rel_l2, 2)} (relative L2)")
    for result in c.outputs[1:]:
        if result.difference is not None:
            off = number(result.difference.rel_l2, 2)
            yield Sentence(f"the result {result.engine}: off by {off} (relative L2)")
    for finding in c.pixels:
        yield Sentence(finding.message, severity_status(finding.severity))
    if c.tokenizer is not None:
        yield Sentence(c.tokenizer.message, "warning")
    for names, side in ((c.unmatched_source, "the source"), (c.unmatched_engine, "the engine")):
        if names:
            yield Sentence(f"only in {side}: {', '.join(names)}")
