"""The first wrong operation, where what lies between two norms is wrong.

All that both sides compute between the last right norm and the first wrong input is recorded,
and each of the engine's results is looked for among the source's. Names, and how the two
programs cut the network into operations, do not matter: see :mod:`ggufnorm.core.operations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ggufnorm.analysis.crosscheck.hypotheses import Hypotheses
from ggufnorm.core.frameworks import OperationMatch, WrongOperation
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.operations import Match, Results, Segment, leads_back
from ggufnorm.core.tolerances import JUMP, SAME_OPERATION


def match_operations(
    segment: Segment, source: str
) -> tuple[tuple[OperationMatch, ...], WrongOperation | None]:
    """Each of the engine's operations with the source's that has its result; the first wrong one.

    Args:
        segment: what was computed.
        source: what the source is called.
    """
    results = Results(segment.source, segment.n_tokens)
    matches, tolerances = _matches(segment, results)
    listed = list(_listed(segment, matches))
    nowhere = next((i for i, m in listed if m.status == "wrong"), len(segment.engine))
    misplaced = next(_misplaced(segment, matches), None)
    if misplaced is not None:
        at, reason = misplaced
    elif nowhere < len(segment.engine):
        at, reason = Hypotheses(segment, matches, results, tolerances[nowhere], source).of(nowhere)
    else:
        return tuple(m for _, m in listed), None
    listed = [(i, _moved(i, m, nowhere, at)) for i, m in listed]
    operation = segment.engine[at]
    return tuple(m for _, m in listed), WrongOperation(
        operation.name, operation.op, operation.tensor, reason
    )


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


def _matches(segment: Segment, results: Results) -> tuple[list[Match | None], list[float]]:
    """Of each operation its match, and how far that might have been.

    Rounding adds up: a result may be several times as far off as those before it.
    """
    matches: list[Match | None] = []
    tolerances: list[float] = []
    seen = 0.0
    for operation in segment.engine:
        tolerances.append(min(SAME_OPERATION, max(segment.tolerance, JUMP * seen)))
        match = None
        if operation.computes and operation.value is not None:
            match = results.find(operation.value, tolerances[-1])
        matches.append(match)
        seen = max(seen, match.distance if match else 0.0)
    if matches and not _reaches(segment, tolerances[-1]):
        matches[-1] = None
    return matches, tolerances


def _reaches(segment: Segment, tolerance: float) -> bool:
    """Whether the last result is what the source ends with, and not a step before."""
    ours = segment.engine[-1].value
    theirs = segment.source[-1].value if segment.goal is None else segment.goal
    if ours is None or theirs is None or ours.size != theirs.size:
        return True
    return relative_l2(theirs.reshape(-1), ours.reshape(-1)) <= tolerance


def _listed(
    segment: Segment, matches: Sequence[Match | None]
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
            yield i, replace(status, counterpart=name, distance=match.distance)
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
