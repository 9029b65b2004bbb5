"""The first wrong operation, where what lies between two norms is wrong.

All that both sides compute between the last right norm and the first wrong input is taken
down, and each of the engine's results is looked for among the source's. Names, and how the two
programs cut the network into operations, do not matter: see :mod:`ggufnorm.core.operations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ggufnorm.analysis.crosscheck.reasons import Reasons
from ggufnorm.core.frameworks import OperationMatch, WrongOperation
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.operations import Match, Results, Stretch, leads_back
from ggufnorm.core.tolerances import JUMP, SAME_OPERATION


def match_operations(
    stretch: Stretch, source: str
) -> tuple[tuple[OperationMatch, ...], WrongOperation | None]:
    """Each of the engine's operations with the source's that has its result; the first wrong one.

    Args:
        stretch: what was computed.
        source: what the source is called.
    """
    results = Results(stretch.source, stretch.n_tokens)
    matches, tolerances = _matches(stretch, results)
    listed = list(_listed(stretch, matches))
    nowhere = next((i for i, m in listed if m.status == "wrong"), len(stretch.engine))
    misplaced = next(_misplaced(stretch, matches), None)
    if misplaced is not None:
        at, reason = misplaced
    elif nowhere < len(stretch.engine):
        at, reason = Reasons(stretch, matches, results, tolerances[nowhere], source).of(nowhere)
    else:
        return tuple(m for _, m in listed), None
    listed = [(i, _moved(i, m, nowhere, at)) for i, m in listed]
    operation = stretch.engine[at]
    return tuple(m for _, m in listed), WrongOperation(
        operation.name, operation.op, operation.tensor, reason
    )


def _misplaced(stretch: Stretch, matches: Sequence[Match | None]) -> Iterator[tuple[int, str]]:
    """Products with a matrix that the source has in another place of the same block."""
    for i, (operation, match) in enumerate(zip(stretch.engine, matches, strict=True)):
        if match is None or operation.tensor not in stretch.weights:
            continue
        theirs = stretch.source[match.index].tensor or ""
        # A bias is added to the product of the matrix beside it.
        here, there = _stem(operation.tensor), _stem(stretch.belongs.get(theirs))
        if here != there and _stem(here) == _stem(there) != "":
            bias = operation.op == "ADD"
            what = "its bias and the matrix before it hold" if bias else "its matrix holds"
            yield i, f"{what} the values of {_stem(theirs)}, which belong in {there}"


def _stem(tensor: str | None) -> str:
    return (tensor or "").rpartition(".")[0]


def _matches(stretch: Stretch, results: Results) -> tuple[list[Match | None], list[float]]:
    """Of each operation its match, and how far that might have been.

    Rounding adds up: a result may be several times as far off as those before it.
    """
    matches: list[Match | None] = []
    tolerances: list[float] = []
    seen = 0.0
    for operation in stretch.engine:
        tolerances.append(min(SAME_OPERATION, max(stretch.tolerance, JUMP * seen)))
        match = None
        if operation.computes and operation.value is not None:
            match = results.find(operation.value, tolerances[-1])
        matches.append(match)
        seen = max(seen, match.distance if match else 0.0)
    if matches and not _reaches(stretch, tolerances[-1]):
        matches[-1] = None
    return matches, tolerances


def _reaches(stretch: Stretch, tolerance: float) -> bool:
    """Whether the last result is what the source ends with, and not a step before."""
    ours = stretch.engine[-1].value
    theirs = stretch.source[-1].value if stretch.goal is None else stretch.goal
    if ours is None or theirs is None or ours.size != theirs.size:
        return True
    return relative_l2(theirs.reshape(-1), ours.reshape(-1)) <= tolerance


def _listed(
    stretch: Stretch, matches: Sequence[Match | None]
) -> Iterator[tuple[int, OperationMatch]]:
    found_wrong = False
    inside = leads_back(stretch.engine, matches)
    for i, (operation, match) in enumerate(zip(stretch.engine, matches, strict=True)):
        of_tokens = operation.value is not None and stretch.n_tokens in operation.value.shape
        if not (operation.computes and of_tokens):
            continue
        status = OperationMatch(operation.name, operation.op, operation.tensor, None, None, "same")
        if match is not None:
            name = stretch.source[match.index].name
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
