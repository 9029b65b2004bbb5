"""What a comparison comes to, in words.

Two checkpoints of one architecture differ wholly: independent matrices have a relative
L2 near the square root of 2, and norms differ too. That is said before any tensor is
called damaged. Otherwise a tensor is out of line if its error is a multiple of that of
its peers, the other tensors of the same two types (:data:`TENSOR_PEER_RATIO`).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ggufnorm.analysis.diff.order import Coarser
from ggufnorm.analysis.diff.summary import error, types
from ggufnorm.core.diff import (
    MetadataDifference,
    NonFinite,
    NormDifference,
    TensorDifference,
    Unmatched,
)
from ggufnorm.core.model import Skipped
from ggufnorm.core.tolerances import NOT_QUANTIZATION, TENSOR_PEER_RATIO
from ggufnorm.formats.naming import layer_of

_FEWEST_PEERS = 2
_MOST_NAMED = 3
_PLAIN = ("F64", "F32", "F16", "BF16")
"""Types that are not quantized."""


@dataclass(frozen=True)
class Findings:
    """What was measured; the fields are those of :class:`~ggufnorm.core.diff.DiffReport`."""

    metadata: tuple[MetadataDifference, ...]
    norms: tuple[NormDifference, ...]
    tensors: tuple[TensorDifference, ...]
    non_finite: tuple[NonFinite, ...]
    unmatched: tuple[Unmatched, ...]
    skipped: tuple[Skipped, ...]
    coarser: Coarser | None = None


@dataclass(frozen=True)
class Judgement:
    """What it comes to; the fields are those of :class:`~ggufnorm.core.diff.DiffReport`."""

    identical: bool
    different_checkpoints: bool
    verdict: str


def judge(findings: Findings) -> Judgement:
    """Say what sets the two files apart."""
    f = findings
    different = are_different_checkpoints(f)
    same_values = not any(n.n_differing for n in f.norms) and all(t.identical for t in f.tensors)
    complete = not f.unmatched and not f.skipped
    if not f.norms and not f.tensors:
        sentences = ["No tensor has the same name and shape in both files: nothing was compared."]
    elif same_values:
        sentences = [_no_difference(f)]
    elif different:
        sentences = [_different(f), *_about_non_finite(f.non_finite)]
    else:
        sentences = [
            *_about_non_finite(f.non_finite),
            _about_norms(f.norms),
            _about_tensors(f.tensors),
            *_about_same_types(f.tensors),
            *_about_outliers(f.tensors),
        ]
    if f.coarser:
        sentences.insert(0, f.coarser.asked("diff"))
    sentences += _about_metadata(f.metadata)
    if not complete:
        n = len(f.unmatched) + len(f.skipped)
        sentences.append(f"{_tensors(n)} could not be compared.")
    computes_alike = all(m.affects == "nothing" for m in f.metadata)
    identical = same_values and complete and computes_alike and bool(f.norms or f.tensors)
    return Judgement(identical, different, " ".join(sentences))


def are_different_checkpoints(findings: Findings) -> bool:
    """Whether every matrix differs wholly, and norms, where there are any, differ too.

    Tables that follow from the architecture (``rope_freqs``) are the same in every
    checkpoint: they are vectors, so only matrices count where there are any.
    """
    matrices = [t for t in findings.tensors if len(t.shape) > 1] or findings.tensors
    norms = findings.norms
    return (
        len(matrices) > 0
        and all(error(t) >= NOT_QUANTIZATION for t in matrices)
        and (not norms or any(n.n_differing for n in norms))
    )


def outliers(tensors: Sequence[TensorDifference]) -> list[tuple[TensorDifference, float | None]]:
    """Tensors out of line with their peers, and the peers' median error.

    The median is None where there are too few peers to tell; then a tensor is out of
    line if it differs wholly.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for t in tensors:
        groups[types(t)].append(error(t))
    found: list[tuple[TensorDifference, float | None]] = []
    for t in tensors:
        peers = list(groups[types(t)])
        peers.remove(error(t))
        if len(peers) < _FEWEST_PEERS:
            if error(t) >= NOT_QUANTIZATION:
                found.append((t, None))
        elif error(t) > TENSOR_PEER_RATIO * (typical := statistics.median(peers)):
            found.append((t, typical))
    return found


def _no_difference(f: Findings) -> str:
    n = len(f.norms) + len(f.tensors)
    found = f"No difference: all values of {_tensors(n)} are the same, those of norms bit for bit."
    return " ".join([found, *_about_non_finite(f.non_finite)])


def _different(f: Findings) -> str:
    errors = [t.rel_l2 for t in f.tensors if t.rel_l2 is not None]
    typical = f" (median relative L2 {statistics.median(errors):.2f})" if errors else ""
    stems = _norm_stems(f.norms)
    changed = sum(stems.values())
    norms = f", and so do {changed} of {len(stems)} norms" if stems else ""
    names = [(m.a, m.b) for m in f.metadata if m.key == "general.architecture"]
    of = "".join(f" of different architectures ({a} and {b})" for a, b in names)
    return f"These are different checkpoints{of}: every matrix differs wholly{typical}{norms}."


def _about_non_finite(found: Sequence[NonFinite]) -> list[str]:
    return [
        f"{n.tensor} holds {n.count:,} NaN or infinite values in file {n.side}, the first in"
        f" row {n.row}, block {n.block}."
        for n in found[:_MOST_NAMED]
    ] + ([f"{len(found) - _MOST_NAMED} more tensors do."] if len(found) > _MOST_NAMED else [])


def _about_norms(norms: Sequence[NormDifference]) -> str:
    stems = _norm_stems(norms)
    changed = sum(stems.values())
    if not stems:
        return "No norm is in both files."
    if not changed:
        both = "The only norm is" if len(stems) == 1 else f"All {len(stems)} norms are"
        return f"{both} identical, bit for bit."
    worst = max((n for n in norms if n.n_differing), key=lambda n: n.max_abs or 0.0)
    ulp = "" if worst.max_ulp is None else f" ({worst.max_ulp:,} ulp)"
    by = "" if worst.max_abs is None else f", the most {worst.tensor} by up to {worst.max_abs:.3g}"
    return f"{changed} of {len(stems)} norms differ{by}{ulp if by else ''}."


def _norm_stems(norms: Sequence[NormDifference]) -> dict[str, bool]:
    """Each norm, its weight and bias as one, and whether it differs."""
    stems: dict[str, bool] = {}
    for n in norms:
        stem = n.tensor.rpartition(".")[0]
        stems[stem] = stems.get(stem, False) or n.n_differing > 0
    return stems


def _about_tensors(tensors: Sequence[TensorDifference]) -> str:
    changed = [t for t in tensors if not t.identical]
    if not tensors:
        return "No other tensor is in both files."
    if not changed:
        return f"The values of {_tensors(len(tensors))} beside them are the same."
    worst = max(changed, key=error)
    size = "wholly" if worst.rel_l2 is None else f"by {worst.rel_l2:.3g} (relative L2)"
    return (
        f"{len(changed)} of {_tensors(len(tensors))} beside them differ, the most"
        f" {worst.tensor} ({types(worst)}) {size}."
    )


def _about_same_types(tensors: Sequence[TensorDifference]) -> list[str]:
    """Values that no quantization changed: both files hold them in one type that loses nothing."""
    same = [t for t in tensors if t.dtype_a == t.dtype_b and t.dtype_a in _PLAIN]
    changed = [t for t in same if not t.identical]
    if len(changed) < 2:
        return []
    layers = [layer for t in changed if (layer := layer_of(t.tensor)) is not None]
    start = f", from layer {min(layers)} on" if layers else ""
    return [
        f"{len(changed)} of {_tensors(len(same))} that both files hold in the same type have other"
        f" values{start}: not two versions of the same weights (edited, another fine-tune, or an"
        " adapter that was not merged)."
    ]


def _about_outliers(tensors: Sequence[TensorDifference]) -> list[str]:
    found = outliers(tensors)
    lines = []
    for t, peers in found[:_MOST_NAMED]:
        size = "wholly" if t.rel_l2 is None else f"by {t.rel_l2:.3g}"
        beside = "" if peers is None else f" where its {types(t)} peers differ by {peers:.3g}"
        changed_only = t.dtype_a == t.dtype_b and error(t) < NOT_QUANTIZATION
        cause = "was changed by itself" if changed_only else "is damaged or another tensor"
        lines.append(f"{t.tensor} differs {size}{beside}: it {cause}.")
    if len(found) > _MOST_NAMED:
        lines.append(f"{_tensors(len(found) - _MOST_NAMED)} more are out of line.")
    return lines


def _about_metadata(metadata: Sequence[MetadataDifference]) -> list[str]:
    lines = []
    for what, text in (
        ("forward", "Metadata that the forward pass depends on differ"),
        ("tokens", "Metadata that turn text into token ids differ"),
    ):
        keys = [m.key for m in metadata if m.affects == what]
        if keys:
            more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
            lines.append(f"{text}: {', '.join(keys[:_MOST_NAMED])}{more}.")
    return lines or ["No metadata that affect what is computed differ."]


def _tensors(n: int) -> str:
    return f"{n} tensor" if n == 1 else f"{n} tensors"
