"""What the rules of the family have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem
from ggufnorm.analysis.audit.rules.source.common import source_of
from ggufnorm.analysis.audit.source.encode import why_not
from ggufnorm.analysis.audit.source.explain import Kind
from ggufnorm.analysis.audit.source.tensors import Difference, Tensors
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.mend import Mend, MendKind

_SHOWN = 40
"""Most tensors that the evidence of one finding names."""

_ANOTHER = 0.5
"""Share of the weights, by tensors, from which on the source is another checkpoint."""


def compared(subject: Subject) -> Tensors:
    """All tensors beside the source's.

    Raises:
        NotApplicableError: there is no source, or not all tensors may be read.
    """
    source_of(subject)
    if not subject.full:
        raise NotApplicableError("all tensors are compared with --full alone: one side is remote")
    if subject.matches.different:
        raise NotApplicableError("the source is another checkpoint (S101)")
    return subject.tensors


def another_checkpoint(tensors: Tensors) -> bool:
    """Whether nearly all matrices have values of which nothing is the source's."""
    far = sum(d.explanation.kind == "values" and d.explanation.detail == "far"
              for d in tensors.differences)  # fmt: skip
    return far >= 3 and far > _ANOTHER * tensors.n_compared


def same_checkpoint(subject: Subject) -> Tensors:
    """All tensors, if the source is the checkpoint that the file was made of.

    Raises:
        NotApplicableError: it is not; see :func:`compared`.
    """
    found = compared(subject)
    if another_checkpoint(found):
        raise NotApplicableError("the source is another checkpoint (T101)")
    return found


def of_kind(tensors: Tensors, *kinds: Kind) -> list[Difference]:
    """Differences that are explained in one of these ways."""
    return [d for d in tensors.differences if d.explanation.kind in kinds]


def patterns(differences: Iterable[Difference]) -> Iterator[tuple[Difference, ...]]:
    """Differences of one role and one explanation together."""
    groups: dict[tuple[str, str, str], list[Difference]] = {}
    for d in differences:
        key = (d.explanation.kind, d.explanation.detail, d.making.site.role)
        groups.setdefault(key, []).append(d)
    return (tuple(group) for group in groups.values())


def problem(group: Sequence[Difference], subject: Subject, message: str = "") -> Problem:
    """One finding for all tensors of a pattern."""
    first, tensors = group[0], subject.tensors
    names = [d.making.tensor for d in group]
    text = message or first.explanation.message
    n_role = sum(
        m.site.role == first.making.site.role
        for m in (*tensors.right, *(d.making for d in tensors.differences))
    )
    if len(group) == 1:
        said = f"{names[0]} {text}"
    elif len(group) == n_role:
        said = f"{first.making.site.role} of all {n_role} layers: {names[0]} {text}"
    else:
        layers = ", ".join(str(d.making.site.layer) for d in group[:8])
        more = f" and {len(group) - 8} more" if len(group) > 8 else ""
        said = (
            f"{first.making.site.role} of {len(group)} of {n_role} layers ({layers}{more}):"
            f" {names[0]} {text}"
        )
    layer = first.making.site.layer if len(group) == 1 else None
    return Problem(said, names[0], layer, evidence(group), mend=of_source(names, group, subject))


_MENDS: dict[Kind, MendKind] = {
    "order": "permutation", "rows": "permutation", "columns": "permutation", "scale": "scale",
    "bytes": "byte-order", "elsewhere": "swap", "rounding": "rounding",
}  # fmt: skip


def of_source(names: Sequence[str], group: Sequence[Difference], subject: Subject) -> Mend | None:
    """Write tensors as the source and the conversion give them; None where that cannot be."""
    tensors = [subject.file.tensors[name] for name in names]
    if any(why_not(t.dtype, subject.file.byte_order) for t in tensors):
        return None
    types = " and ".join(dict.fromkeys(t.dtype for t in tensors))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    action = f"write {names[0]}{more} as the source and the conversion give it, in {types}"
    kind = _MENDS.get(group[0].explanation.kind, "values")
    return Mend(kind, names[0], action, True, also=tuple(names[1:]))


def evidence(group: Sequence[Difference]) -> dict[str, Any]:
    """Names, origins and figures of a pattern."""
    first = group[0]
    measured = [d.measured for d in group if d.measured is not None]
    errors = [m.error for m in measured if math.isfinite(m.error)]
    found: dict[str, Any] = {
        "sources": list(first.making.sources[:_SHOWN]),
        "tensors": [d.making.tensor for d in group[:_SHOWN]],
        "n_tensors": len(group),
        **first.explanation.evidence,
    }
    if errors:
        found["relative_error"] = max(errors)
    if measured and measured[0].cost is not None:
        found["type_costs"] = measured[0].cost
    return found
