"""What goes wrong before the first norm and between two: pixels, and norms that are not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ggufnorm.core.frameworks import FirstWrong, SiteComparison
from ggufnorm.core.observed import ObservedNorm
from ggufnorm.core.pixel_report import PixelFinding
from ggufnorm.frameworks.join import Joined


def wrong_pixels(
    findings: Sequence[PixelFinding], sites: Sequence[SiteComparison]
) -> FirstWrong | None:
    """The mistake in what mtmd feeds its encoder, which comes before every norm.

    Args:
        findings: the gravest first.
        sites: at least one, in the engine's order.
    """
    errors = [f for f in findings if f.severity == "error"]
    if not errors:
        return None
    return FirstWrong(sites[0].key, sites[0].layer, "before", None, errors[0].message, ("pixels",))


def name_missing(
    wrong: FirstWrong | None, joined: Joined, source: Sequence[ObservedNorm], name: str
) -> FirstWrong | None:
    """Tell which norms the source alone runs where the engine first goes wrong.

    Args:
        wrong: where that is.
        joined: the norms of both.
        source: all of the source's, in its order.
        name: what the source is called.
    """
    if wrong is None or wrong.where != "before":
        return wrong
    order = {norm.name: i for i, norm in enumerate(source)}
    at = {pair.key: order[pair.source.name] for pair in joined.pairs}
    start = -1 if wrong.after is None else at[wrong.after]
    only = [n.name for n in source[start + 1 : at[wrong.key]] if n.name in joined.unmatched_source]
    if not only:
        return wrong
    return replace(wrong, reason=f"{wrong.reason}, where {name} alone runs {', '.join(only)}")
