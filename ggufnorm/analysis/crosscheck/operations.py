"""The first wrong operation, where what lies between two norms is wrong.

All that both sides compute between the last right norm and the first wrong input is recorded,
and each of the engine's results is looked for among the source's. Names, and how the two
programs cut the network into operations, do not matter: see :mod:`ggufnorm.core.operations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ggufnorm.analysis.crosscheck.hypotheses import Hypotheses
from ggufnorm.analysis.crosscheck.routing import Ties, ties
from ggufnorm.core.changes import known_difference
from ggufnorm.core.frameworks import (
    EngineDifference,
    OperationMatch,
    OperationStatus,
    WrongOperation,
)
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.operations import Array, Match, Operation, Results, Segment, leads_back
from ggufnorm.core.tolerances import JUMP, SAME_OPERATION


@dataclass(frozen=True)
class Matched:
    """The operations of an engine beside the source's.

    Attributes:
        operations: of the engine, with the source's that has its result.
        wrong: the first whose result the source has nowhere; None if there is none.
        known: where the engines are known to differ.
        tied: tokens that got other experts, where that is all that is wrong.
    """

    operations: tuple[OperationMatch, ...]
    wrong: WrongOperation | None
    known: tuple[EngineDifference, ...] = ()
    tied: Ties | None = None


def match_operations(segment: Segment, source: str) -> Matched:
    """Each of the engine's operations with the source's that has its result; the first wrong one.

    Args:
        segment: what was computed.
        source: what the source is called.
    """
    results = Results(segment.source, segment.n_tokens)
    matches, tolerances, known = _matches(segment, results)
    listed = list(_listed(segment, matches, known))
    tied = ties(segment, matches)
    if tied is not None:
        return Matched(tuple(m for _, m in listed), None, tuple(known.values()), tied)
    suspects = list(_suspects(segment, matches, results, tolerances, listed, source))
    bad = next(_non_finite(segment), None)
    if bad is not None and suspects and suspects[0] < bad[0]:
        bad = None  # what goes in is wrong already
    misplaced = bad or next(_misplaced(segment, matches), None)
    if misplaced is not None:
        at, reason = misplaced
    elif suspects:
        at, reason = _reason(segment, matches, results, tolerances, suspects, source)
    else:
        return Matched(tuple(m for _, m in listed), None, tuple(known.values()))
    first = next((i for i, m in listed if m.status == "wrong"), len(segment.engine))
    listed = [(i, _moved(i, m, first, at)) for i, m in listed]
    operation = segment.engine[at]
    wrong = WrongOperation(operation.name, operation.op, operation.tensor, reason)
    return Matched(tuple(m for _, m in listed), wrong, tuple(known.values()))


def _reason(
    segment: Segment,
    matches: Sequence[Match | None],
    results: Results,
    tolerances: Sequence[float],
    suspects: Sequence[int],
    source: str,
) -> tuple[int, str]:
    """The wrong operation and why: the first suspect, or a later one that a change mends.

    An engine may compute in a way that has results of its own, as the absorbed matrices of a
    latent attention: what the source has nowhere is not wrong for that.
    """
    tried = [Hypotheses(segment, matches, results, tolerances[i], source) for i in suspects]
    at, reason, is_explained = tried[0].of(suspects[0])
    if not is_explained:
        for hypotheses, i in zip(tried, suspects, strict=True):
            for told in hypotheses.certain(i):
                return i, told
    return at, reason


def _suspects(
    segment: Segment,
    matches: Sequence[Match | None],
    results: Results,
    tolerances: Sequence[float],
    listed: Sequence[tuple[int, OperationMatch]],
    source: str,
) -> Iterator[int]:
    """Operations whose result is nowhere, but for products of a right input and a right matrix.

    The last one is suspected all the same: the source may do something behind it.
    """
    last = len(segment.engine) - 1 if segment.tolerance <= SAME_OPERATION else None
    for i, match in listed:
        if match.status in ("wrong", "behind"):
            tried = Hypotheses(segment, matches, results, tolerances[i], source)
            if i == last or not tried.is_right(i):
                yield i


def _non_finite(segment: Segment) -> Iterator[tuple[int, str]]:
    """The operation that makes NaN or infinity of finite values, where those reach the end."""
    end = segment.engine[-1].value if segment.engine else None
    if end is None or np.isfinite(end).all():
        return
    for i, operation in enumerate(segment.engine):
        values = (segment.engine[k].value for k in operation.inputs)
        inputs = [v for v in values if v is not None]
        # What a mask hides is -inf, and right.
        if operation.computes and _is_bad(operation.value) and not any(map(_is_bad, inputs)):
            weight = segment.weights.get(operation.tensor or "")
            bad = 0 if weight is None else int((~np.isfinite(weight)).sum())
            if bad:
                yield i, f"its matrix holds {bad} NaN or infinite value{'s' if bad > 1 else ''}"
            largest = max((float(np.abs(v).max(initial=0.0)) for v in inputs), default=0.0)
            yield i, f"its result holds NaN or infinity; what goes in reaches {largest:.4g}"


def _is_bad(value: Array | None) -> bool:
    return value is not None and bool((np.isnan(value) | np.isposinf(value)).any())


def _misplaced(segment: Segment, matches: Sequence[Match | None]) -> Iterator[tuple[int, str]]:
    """Products with a matrix that the source has in another place of the same block."""
    for i, (operation, match) in enumerate(zip(segment.engine, matches, strict=True)):
        if match is None or operation.tensor not in segment.weights:
            continue
        theirs = segment.source[match.index].tensor or ""
        # A bias is added to the product of the matrix beside it.
        here, there = _stem(operation.tensor), _stem(segment.belongs.get(theirs))
        if here != there and _stem(here) == _stem(there) != "":
            bias = operation.op == "ADD"
            what = "its bias and the matrix before it hold" if bias else "its matrix holds"
            yield i, f"{what} the values of {_stem(theirs)}, which belong in {there}"


def _stem(tensor: str | None) -> str:
    return (tensor or "").rpartition(".")[0]


def _matches(
    segment: Segment, results: Results
) -> tuple[list[Match | None], list[float], dict[int, EngineDifference]]:
    """Of each operation its match, how far that might have been, and known differences.

    Rounding adds up: a result may be several times as far off as those before it.
    """
    matches: list[Match | None] = []
    tolerances: list[float] = []
    known: dict[int, EngineDifference] = {}
    seen = told = 0.0
    for i, operation in enumerate(segment.engine):
        near = min(max(SAME_OPERATION, segment.tolerance), max(segment.tolerance, JUMP * seen))
        tolerances.append(max(near, JUMP * told))
        match = None
        if operation.computes and operation.value is not None:
            match = results.find(operation.value, tolerances[-1])
            if match is None or match.distance > segment.tolerance:
                match, difference = _known(segment, operation, results, match)
                if difference is not None:
                    known[i], told = difference, max(told, difference.size)
        matches.append(match)
        seen = max(seen, match.distance if match and i not in known else 0.0)
    if matches and not _reaches(segment, tolerances[-1]):
        matches[-1] = None
    return matches, tolerances, known


def _known(
    segment: Segment, operation: Operation, results: Results, match: Match | None
) -> tuple[Match | None, EngineDifference | None]:
    """The match of an operation in which the engines are known to differ."""
    values = (segment.engine[i].value for i in operation.inputs)
    change = known_difference(operation, [v for v in values if v is not None])
    found = None if change is None else results.find(change.value, segment.tolerance)
    if change is None or found is None or operation.value is None:
        return match, None
    size = relative_l2(change.value, operation.value)
    if size <= segment.tolerance:
        return match or found, None
    reason = f"it {change.used}; Transformers has {change.other}"
    difference = EngineDifference(operation.name, operation.op, reason, size)
    return replace(found, distance=size), difference


def _reaches(segment: Segment, tolerance: float) -> bool:
    """Whether the last result is what the source ends with, and not a step before."""
    ours = segment.engine[-1].value
    theirs = segment.source[-1].value if segment.goal is None else segment.goal
    if ours is None or theirs is None or ours.size != theirs.size:
        return True
    return relative_l2(theirs.reshape(-1), ours.reshape(-1)) <= tolerance


def _listed(
    segment: Segment, matches: Sequence[Match | None], known: Mapping[int, EngineDifference]
) -> Iterator[tuple[int, OperationMatch]]:
    found_wrong = False
    inside = leads_back(segment.engine, matches)
    for i, (operation, match) in enumerate(zip(segment.engine, matches, strict=True)):
        of_tokens = operation.value is not None and segment.n_tokens in operation.value.shape
        if not (operation.computes and of_tokens):
            continue
        status = OperationMatch(operation.name, operation.op, operation.tensor, None, None, "same")
        if match is not None:
            name = segment.source[match.index].name
            told: OperationStatus = "engine" if i in known else "same"
            yield i, replace(status, counterpart=name, distance=match.distance, status=told)
        elif inside[i]:
            yield i, replace(status, status="inside")
        else:
            yield i, replace(status, status="behind" if found_wrong else "wrong")
            found_wrong = True


def _moved(index: int, match: OperationMatch, wrong: int, at: int) -> OperationMatch:
    """The match, where not the first operation without a counterpart is wrong but another one."""
    if index == at:
        return replace(match, status="wrong")
    if index == wrong:
        return replace(match, status="inside" if index < at else "behind")
    between = wrong < index < at and match.status == "behind"
    return replace(match, status="inside") if between else match
