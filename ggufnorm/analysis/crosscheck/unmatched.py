"""Mistakes outside the norms that both run: pixels, and norms that one side alone runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ggufnorm.analysis.crosscheck.join import Joined
from ggufnorm.analysis.crosscheck.verdict import RESULTS
from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.frameworks import FirstWrong, SiteComparison
from ggufnorm.core.observed import ObservedNorm


def wrong_pixels(
    findings: Sequence[FeedFinding], sites: Sequence[SiteComparison]
) -> FirstWrong | None:
    """The mistake in what mtmd feeds its encoder, which comes before every norm.

    Args:
        findings: the most severe first.
        sites: at least one, in the engine's order.
    """
    errors = [f for f in findings if f.severity == "error"]
    if not errors:
        return None
    return FirstWrong(sites[0].key, sites[0].layer, "before", None, errors[0].message, ("pixels",))


def name_unmatched(
    wrong: FirstWrong | None,
    joined: Joined,
    source: Sequence[ObservedNorm],
    engine: Sequence[ObservedNorm],
) -> FirstWrong | None:
    """Tell which norms one side alone runs where the engine first goes wrong.

    Args:
        wrong: where that is.
        joined: the norms of both.
        source: all of the source's, in its order.
        engine: all of the engine's, in its order.
    """
    if wrong is None or wrong.where != "before" or wrong.key in RESULTS:
        return wrong
    start = (None, None) if wrong.after is None else _at(wrong.after, joined)
    end = _at(wrong.key, joined)
    found = (
        ("the source", _names_between(source, start[0], end[0], joined.unmatched_source)),
        ("the engine", _names_between(engine, start[1], end[1], joined.unmatched_engine)),
    )
    told = [f"{side} alone runs {', '.join(names)}" for side, names in found if names]
    if not told:
        return wrong
    return replace(wrong, reason=f"{wrong.reason}, where {' and '.join(told)}")


def _names_between(
    norms: Sequence[ObservedNorm], start: str | None, end: str, unmatched: Sequence[str]
) -> list[str]:
    names = [norm.name for norm in norms]
    first = 0 if start is None else names.index(start) + 1
    return [name for name in names[first : names.index(end)] if name in unmatched]


def _at(key: str, joined: Joined) -> tuple[str, str]:
    """Names of a site's norm in the source and in the engine."""
    pair = next(p for p in joined.pairs if p.key == key)
    return pair.source.name, pair.engine.name
