"""What each tensor would cost in each type: measured, or scaled from what was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggufnorm.analysis.attribution.tensors import role_of
from ggufnorm.core.recipe import Anchor, Option, scaled_kld


@dataclass
class Tried:
    """What is known of a tensor in one type."""

    bytes: int
    error: float | None
    kld: float | None = None


def options_of(tried: Mapping[str, Mapping[str, Tried]]) -> dict[str, list[Option]]:
    """For each tensor the types it can have, with what they cost."""
    typical = _typical(tried)
    found: dict[str, list[Option]] = {}
    for tensor, of in tried.items():
        anchors = [Anchor(t.error, t.kld) for t in of.values() if t.error and t.kld is not None]
        if not anchors and (usual := typical.get(role_of(tensor)) or typical.get("")):
            anchors = [usual]
        known = [_option(name, t, anchors) for name, t in of.items()]
        if options := [option for option in known if option]:
            found[tensor] = options
    return found


def _option(name: str, t: Tried, anchors: Sequence[Anchor]) -> Option | None:
    if t.kld is not None:
        return Option(name, t.bytes, t.kld, measured=True)
    if t.error is None or not anchors:
        return None
    return Option(name, t.bytes, scaled_kld(t.error, anchors), measured=False)


def _typical(tried: Mapping[str, Mapping[str, Tried]]) -> dict[str, Anchor]:
    """Median cost at unit error by role, and of all under the empty name."""
    by_role: dict[str, list[float]] = defaultdict(list)
    for tensor, of in tried.items():
        for t in of.values():
            if t.error and t.kld is not None:
                for key in (role_of(tensor), ""):
                    by_role[key].append(t.kld / t.error**2)
    return {key: Anchor(1.0, sorted(v)[len(v) // 2]) for key, v in by_role.items()}
