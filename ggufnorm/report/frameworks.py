"""A comparison across frameworks as rows of text."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.core.frameworks import EngineComparison, FrameworksReport, SiteComparison
from ggufnorm.report.text import counted, number, printable

COLUMNS = ("Layer", "Norm", "Kind", "Epsilon", "Offset", "Input", "Output", "Own", "Status",
           "Source")  # fmt: skip
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
        printable(s.name),
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
    for finding in c.pixels:
        yield printable(finding.message)
    if c.tokenizer is not None:
        yield printable(c.tokenizer.message)
    if c.logits is not None and c.logits.mean_kld is not None:
        top1 = "–" if c.logits.same_top1 is None else f"{c.logits.same_top1:.1%}"
        yield (
            f"predictions: mean KL divergence {number(c.logits.mean_kld)}, same top token {top1}"
            f" of {c.logits.n_tokens}"
        )
    for names, side in ((c.unmatched_source, "the source"), (c.unmatched_engine, "the engine")):
        if names:
            yield printable(f"only in {side}: {', '.join(names)}")
