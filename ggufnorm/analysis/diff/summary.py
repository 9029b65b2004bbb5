"""Tensors in order of their error, and taken together by layer, role and type."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

from ggufnorm.analysis.diff.tensors import sqnr_db
from ggufnorm.core.diff import GroupDifference, NonFinite, TensorDifference


def error(difference: TensorDifference | GroupDifference) -> float:
    """Relative L2; infinite where it is undefined."""
    return math.inf if difference.rel_l2 is None else difference.rel_l2


def worst_first(
    tensors: Iterable[TensorDifference], non_finite: Collection[NonFinite]
) -> tuple[TensorDifference, ...]:
    """By relative L2; those with NaN or infinity before all others."""
    bad = {n.tensor for n in non_finite}
    return tuple(sorted(tensors, key=lambda t: (t.tensor not in bad, -error(t))))


def by_layer(tensors: Sequence[TensorDifference]) -> tuple[GroupDifference, ...]:
    """One group a layer, and one for what is outside the layers."""
    return _groups(tensors, lambda t: "–" if t.layer is None else str(t.layer))


def by_role(tensors: Sequence[TensorDifference]) -> tuple[GroupDifference, ...]:
    """One group for each place that tensors have in their block."""
    return _groups(tensors, lambda t: t.role)


def by_types(tensors: Sequence[TensorDifference]) -> tuple[GroupDifference, ...]:
    """One group for each pair of types."""
    return _groups(tensors, types)


def types(tensor: TensorDifference) -> str:
    """Both types, ``F16→Q4_K``; if they are the same, one."""
    same = tensor.dtype_a == tensor.dtype_b
    return tensor.dtype_b if same else f"{tensor.dtype_a}→{tensor.dtype_b}"


def _groups(
    tensors: Sequence[TensorDifference], key: Callable[[TensorDifference], str]
) -> tuple[GroupDifference, ...]:
    members: dict[str, list[TensorDifference]] = defaultdict(list)
    for t in tensors:
        members[key(t)].append(t)
    return tuple(sorted((_group(k, m) for k, m in members.items()), key=lambda g: -error(g)))


def _group(name: str, tensors: Sequence[TensorDifference]) -> GroupDifference:
    squared_error = math.fsum((t.mse or 0.0) * t.n_compared for t in tensors)
    squared_reference = math.fsum((t.mean_square or 0.0) * t.n_compared for t in tensors)
    rel_l2 = None
    if squared_reference > 0:
        rel_l2 = math.sqrt(squared_error / squared_reference)
    elif squared_error == 0 and any(t.n_compared for t in tensors):
        rel_l2 = 0.0
    return GroupDifference(
        group=name,
        n_tensors=len(tensors),
        share=math.fsum(t.share for t in tensors),
        rel_l2=rel_l2,
        sqnr_db=sqnr_db(rel_l2),
        worst=max(tensors, key=error).tensor,
    )
