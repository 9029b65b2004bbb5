"""What lies between two norms and is wrong, followed operation by operation.

Where the two engines are known to differ, and nothing else is wrong there, the next stretch
that is wrong is followed: a known difference hides no mistake behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ggufnorm.analysis.crosscheck.operations import Matched, match_operations
from ggufnorm.analysis.crosscheck.routing import Ties
from ggufnorm.core.frameworks import (
    EngineDifference,
    FirstWrong,
    OperationMatch,
    SiteComparison,
    WrongOperation,
)
from ggufnorm.core.model import Skipped
from ggufnorm.core.operations import Segment
from ggufnorm.core.tolerances import JUMP

Record = Callable[[FirstWrong, Sequence[SiteComparison]], Segment]
"""Records what leads to something wrong; raises :class:`NotFollowedError` where it cannot."""
First = Callable[[Sequence[SiteComparison]], FirstWrong | None]
"""The first wrong site, or the predictions."""


class NotFollowedError(Exception):
    """What lies between two norms cannot be told."""


@dataclass(frozen=True)
class Followed:
    """What was found between norms.

    Attributes:
        sites: with those that a known difference of the engines reaches marked so.
        wrong: the first wrong one that no known difference explains; None if there is none.
        operation: that is wrong; None where none was found.
        operations: what leads to it.
        known: differences of the engines.
        skipped: what was not followed, and why.
    """

    sites: tuple[SiteComparison, ...]
    wrong: FirstWrong | None
    operation: WrongOperation | None = None
    operations: tuple[OperationMatch, ...] = ()
    known: tuple[EngineDifference, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def follow_stretches(
    sites: tuple[SiteComparison, ...],
    wrong: FirstWrong | None,
    is_followed: Callable[[FirstWrong], bool],
    record: Record,
    first: First,
    source: str,
) -> Followed:
    """Find the operation that is wrong.

    Args:
        sites: in the engine's order.
        wrong: the first wrong one; None if there is none.
        is_followed: whether operations can tell more of it.
        record: records what leads to it.
        first: finds the first wrong one among sites.
        source: what the source is called.
    """
    known: list[EngineDifference] = []
    tied: Ties | None = None
    operations: tuple[OperationMatch, ...] = ()
    while wrong is not None and is_followed(wrong):
        try:
            found = match_operations(record(wrong, sites), source)
        except NotFollowedError as error:
            why = (Skipped("operations", str(error)),)
            return Followed(sites, wrong, None, (), tuple(known), why)
        operations = found.operations
        if found.wrong is None and found.tied is not None:
            key, tied = wrong.key, found.tied.with_more(tied)
            sites = _settled([replace(s, status="precision") if s.key == key else s for s in sites])
        elif found.wrong is not None or not found.known:
            known += [] if known else found.known
            return Followed(sites, wrong, found.wrong, operations, tuple(known))
        if found.known:
            sites, told = _explained(sites, wrong, found)
            known = _merged([*known, *told])
        following = first(sites)
        if following is not None and following.key == wrong.key:
            break
        wrong = following
    skipped = () if tied is None else (Skipped("experts", str(tied)),)
    operations = () if wrong is None and not known else operations
    return Followed(sites, wrong, None, operations, tuple(known), skipped)


def _settled(sites: Sequence[SiteComparison]) -> tuple[SiteComparison, ...]:
    """The sites, those behind nothing wrong no longer said to be so."""
    wrong = [i for i, s in enumerate(sites) if s.status in ("mistake", "before")]
    first = min(wrong, default=len(sites))
    return tuple(
        replace(s, status="precision") if i < first and s.status == "upstream" else s
        for i, s in enumerate(sites)
    )


def _merged(found: Sequence[EngineDifference]) -> list[EngineDifference]:
    """One difference for all places of one kind, named by the largest."""
    kinds: dict[tuple[str, str], EngineDifference] = {}
    for one in found:
        other = kinds.get((one.op, one.reason), one)
        larger = max(one, other, key=lambda d: d.size)
        n_sites = one.n_sites + (other.n_sites if other is not one else 0)
        effect = max(one.effect, other.effect)
        kinds[one.op, one.reason] = replace(larger, n_sites=n_sites, effect=effect)
    return list(kinds.values())


def _explained(
    sites: Sequence[SiteComparison], wrong: FirstWrong, found: Matched
) -> tuple[tuple[SiteComparison, ...], tuple[EngineDifference, ...]]:
    """Sites that a known difference reaches, as it does in other layers too; the differences."""
    here = next((s for s in sites if s.key == wrong.key), None)
    size = 0.0 if here is None else here.before or 0.0

    def is_alike(site: SiteComparison) -> bool:
        if here is None or site.status != "before" or site.role != here.role:
            return False
        return site.before is not None and site.before <= JUMP * size

    alike = [s for s in sites if is_alike(s)]
    keys = {s.key for s in alike}
    effect = max((s.before or 0.0 for s in alike), default=0.0)
    marked = tuple(replace(s, status="engine") if s.key in keys else s for s in sites)
    # Q and K are turned alike: the larger one stands for both.
    largest = max(found.known, key=lambda d: d.size)
    return _settled(marked), (replace(largest, n_sites=len(alike), effect=effect),)
