"""A comparison across frameworks as rows of text."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.core.frameworks import (
    EngineComparison,
    FoldedNorm,
    FrameworksReport,
    OperationMatch,
    SiteComparison,
)
from ggufnorm.report.text import counted, number, printable

COLUMNS = ("Layer", "Norm", "Kind", "Epsilon", "Offset", "Input", "Output", "Own", "Status",
           "Cosine", "Ratio", "Source")  # fmt: skip
NARROW = COLUMNS[:-3]
"""Those that a terminal has room for."""
LEFT = ("Norm", "Kind", "Status", "Source")


def frameworks_title(report: FrameworksReport, *comparisons: EngineComparison) -> str:
    """What was compared with what, in one line; all engines if none is given."""
    chosen = comparisons or report.comparisons
    sides = " and ".join(f"{c.engine.location} ({c.engine.engine})" for c in chosen)
    source = f"{report.source.location} ({report.source.engine})"
    return printable(f"{source} against {sides}, {_run_on(report)}")


def _run_on(report: FrameworksReport) -> str:
    """What all sides got, in words."""
    picture = report.picture
    if picture is None:
        # A model without tokens runs on values that have nothing to do with the text.
        if not report.n_tokens:
            return "no text"
        return f"{counted(report.n_tokens, 'token')}: {report.text}"
    n, height, width, _channels = picture.shape
    return f"{counted(n, 'picture')} of {width}×{height} ({picture.pixels}): {picture.name}"


def site_row(site: SiteComparison) -> tuple[str, ...]:
    """A site's cells by :data:`COLUMNS`."""
    s, e = site.source, site.engine
    return (
        "–" if site.layer is None else str(site.layer),
        printable(site.key),
        _both(s.kind, e.kind),
        _both(f"{s.epsilon:.4g}", f"{e.epsilon:.4g}"),
        f"{s.offset:+g}" if s.offset else "",
        number(site.input.rel_l2, 2),
        number(site.output.rel_l2, 2),
        number(site.local, 2),
        site.status,
        "–" if site.output.cosine is None else f"{site.output.cosine:.5f}",
        "–" if site.output.rms_ratio is None else f"{site.output.rms_ratio:.3f}",
        printable(s.name),
    )


OPERATION_COLUMNS = ("Operation", "Node", "Tensor", "Difference", "Status", "Source")
OPERATION_LEFT = ("Operation", "Node", "Tensor", "Status", "Source")


def followed(comparison: EngineComparison) -> tuple[OperationMatch, ...]:
    """The operations up to the first wrong one."""
    operations = comparison.operations
    wrong = next((i for i, o in enumerate(operations) if o.status == "wrong"), -1)
    return operations[: wrong + 1]


def operation_row(operation: OperationMatch) -> tuple[str, ...]:
    """An operation's cells by :data:`OPERATION_COLUMNS`."""
    return (
        operation.op,
        printable(operation.name),
        printable(operation.tensor or ""),
        number(operation.distance, 2),
        operation.status,
        printable(operation.counterpart or ""),
    )


FOLD_COLUMNS = ("Batch norm", "Side", "Layer", "Operation", "Weight", "Bias", "Status")
FOLD_LEFT = ("Batch norm", "Side", "Layer", "Operation", "Status")


def fold_row(fold: FoldedNorm) -> tuple[str, ...]:
    """A batch norm's cells by :data:`FOLD_COLUMNS`."""
    return (
        printable(fold.norm),
        fold.side,
        printable(fold.layer),
        printable(fold.op),
        number(fold.weight_error, 2),
        number(fold.bias_error, 2),
        fold.status,
    )


def _both(source: str, engine: str) -> str:
    return engine if source == engine else f"{engine} for {source}"


def notes(comparison: EngineComparison) -> Iterator[str]:
    """What is to be told beside the table, one line each."""
    c = comparison
    for site in c.sites:
        for cause in site.causes:
            share = "" if cause.share is None else f" (alone {number(cause.share, 2)})"
            yield printable(f"{site.key}: {cause.message}{share}")
    for fold in c.folds:
        if fold.cause is not None:
            yield printable(f"{fold.norm}: {fold.message}")
    if c.result is not None:
        yield f"the model's result: off by {number(c.result.rel_l2, 2)} (relative L2)"
    for finding in c.pixels:
        yield printable(finding.message)
    if c.tokenizer is not None:
        yield printable(c.tokenizer.message)
    for names, side in ((c.unmatched_source, "the source"), (c.unmatched_engine, "the engine")):
        if names:
            yield printable(f"only in {side}: {', '.join(names)}")
