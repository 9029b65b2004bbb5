"""T2xx: are the values of each tensor what the conversion makes of the source's?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ggufnorm.analysis.audit.registry import Problem, Rule, rule
from ggufnorm.analysis.audit.rules.tensors.common import (
    evidence,
    of_kind,
    of_source,
    patterns,
    problem,
    same_checkpoint,
)
from ggufnorm.analysis.audit.source.explain import Kind
from ggufnorm.analysis.audit.source.plan import Making
from ggufnorm.analysis.audit.source.tensors import Difference, Tensors
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.matrices import what_made

_ADAPTED = 3
"""Matrices with a difference of low rank from which on an adapter is what is missing."""


def _each(subject: Subject, *kinds: Kind) -> Iterator[Problem]:
    tensors = same_checkpoint(subject)
    for group in patterns(of_kind(tensors, *kinds)):
        yield problem(group, subject)


@rule("T201", "tensor-order", "error")
def order(subject: Subject) -> Iterator[Problem]:
    """A tensor has its source's values in an order that the converter does not give them.

    What it does:
        Tries the orders that converters know (transposed, rotary halves of the heads
        interleaved or not, Q, K and V regrouped, halves of fused matrices) and compares the
        one that fits with the one that llama.cpp's converter gives this architecture.

    Why it matters:
        The shapes may be the same, so the model loads, and computes with the wrong weights.
        gpt-oss' expert matrices that were not transposed went unseen where width and
        intermediate size are the same.

    What to do:
        Convert again with llama.cpp's own converter.

    Example:
        ``ffn_down_exps of all 4 layers: blk.0.ffn_down_exps.weight has its source's values
        as it is, where the conversion gives them transposed``
    """
    yield from _each(subject, "order")


@rule("T202", "tensor-rows", "error")
def rows(subject: Subject) -> Iterator[Problem]:
    """A tensor has its source's rows or columns, or its experts, in some other order.

    What it does:
        Looks for each row among all rows of the source, up to the rounding of the tensor's
        type, and says whether whole heads moved.

    Why it matters:
        Channels are multiplied with another one's weights.

    What to do:
        Convert again with llama.cpp's own converter.

    Example:
        ``blk.3.attn_q.weight has the source's blocks of 128 rows in another order (512 of
        4,096 rows moved)``
    """
    tensors = same_checkpoint(subject)
    found = of_kind(tensors, "rows", "columns", "experts")
    moved = [
        d for d in found if (d.explanation.kind, d.explanation.detail) != ("experts", "values")
    ]
    for group in patterns(moved):
        yield problem(group, subject)


@rule("T203", "tensor-elsewhere", "error")
def elsewhere(subject: Subject) -> Iterator[Problem]:
    """A tensor holds the values of another one: of another layer, or of another role.

    What it does:
        Compares the values with what every other tensor of the same shape should hold, and
        says whether two changed places or a whole role is shifted by some layers.

    Why it matters:
        The model loads and computes with the wrong matrix.

    What to do:
        Convert again. If the checkpoint was merged or pruned, check its layers' numbers.

    Example:
        ``blk.0.ffn_gate.weight holds the values of blk.0.ffn_up.weight: the two changed
        places``
    """
    tensors = same_checkpoint(subject)
    found = of_kind(tensors, "elsewhere")
    other_of = {d.making.tensor: d.explanation.other for d in found}
    by: dict[tuple[str, int], list[Difference]] = {}
    for d in found:
        there = next((m for m in _all(tensors) if m.tensor == d.explanation.other), None)
        mutual = other_of.get(d.explanation.other or "") == d.making.tensor
        layers = (d.making.site.layer, there.site.layer if there else None)
        same_role = there is not None and there.site.role == d.making.site.role
        if same_role and not mutual and None not in layers:
            shift = (layers[1] or 0) - (layers[0] or 0)
            by.setdefault((d.making.site.role, shift), []).append(d)
            continue
        places = ": the two changed places" if mutual else ""
        yield problem([d], subject, d.explanation.message + places)
    for (_, shift), group in by.items():
        message = f"{group[0].explanation.message}: shifted by {shift}"
        found_problem = problem(group, subject, message)
        found_problem.evidence["shift"] = shift
        yield found_problem


def _all(tensors: Tensors) -> Iterator[Making]:
    yield from tensors.right
    yield from (d.making for d in tensors.differences)


@rule("T204", "tensor-scaled", "error")
def scaled(subject: Subject) -> Iterator[Problem]:
    """A tensor is its source's times a constant.

    What it does:
        Finds the factor that explains all values up to the type's rounding.

    Why it matters:
        What the matrix hands on is too large or too small by that factor. A scale of a
        half-precision or FP8 checkpoint that was not applied, or twice, looks like this.

    What to do:
        Convert again.

    Example:
        ``blk.0.attn_output.weight is 0.5 times the source's``
    """
    yield from _each(subject, "scale")


@rule("T205", "tensor-bytes", "error")
def byte_order(subject: Subject) -> Iterator[Problem]:
    """A tensor has the bytes of its values reversed.

    What it does:
        Compares the values with the source's in the other byte order.

    Why it matters:
        llama.cpp loads such a tensor without a word; its values are noise.

    What to do:
        Convert on a little-endian machine, or with gguf-py's ``gguf_convert_endian.py``.

    Example:
        ``token_embd.weight has the bytes of each value reversed``
    """
    yield from _each(subject, "bytes")


@rule("T206", "tensor-zero", "error")
def zero(subject: Subject) -> Iterator[Problem]:
    """A tensor, or one of its experts, is all zero, and its source is not.

    What it does:
        Looks for tensors and experts of zeros where the source has values.

    Why it matters:
        A matrix of zeros hands nothing on: a head, an expert or a layer is dead.

    What to do:
        Convert or download again.

    Example:
        ``blk.7.ffn_down_exps.weight is zero in expert 13 of 64``
    """
    yield from _each(subject, "zero")


@rule("T207", "tensor-rounded-twice", "warning")
def rounded(subject: Subject) -> Iterator[Problem]:
    """A tensor lost precision on the way: it went through a coarser type.

    What it does:
        Stores the source's values in the usual types and then in the tensor's own, and
        looks for the one that gives the file's values bit for bit.

    Why it matters:
        The file is as large as its type says and no better than the coarser one.

    What to do:
        Convert and quantize from the original checkpoint.

    Example:
        ``attn_q of all 32 layers: blk.0.attn_q.weight has its source's values by way of
        Q4_0``
    """
    yield from _each(subject, "rounding")


@rule("T208", "tensor-low-rank", "error")
def low_rank(subject: Subject) -> Iterator[Problem]:
    """Matrices differ from their source by a matrix of low rank: an adapter, or abliteration.

    What it does:
        Looks at the singular values of the difference. If three matrices or more differ so
        and nothing else does, the file was made without the adapter that the source has
        merged, or with one that the source has not. A difference of rank 1 in nothing but
        matrices that write to the residual stream fits a direction that was taken out.

    Why it matters:
        The file is the base model, and not the fine-tune; or it was edited.

    What to do:
        Merge the adapter, save the merged checkpoint, and convert that one.

    Example:
        ``21 matrices differ from their source by a matrix of rank 8, all 30 others are
        equal: the adapter was not merged, or merged on one side alone``
    """
    tensors = same_checkpoint(subject)
    found = of_kind(tensors, "low-rank")
    if not found:
        return
    ranks = Counter(d.explanation.detail for d in found)
    rank = ranks.most_common(1)[0][0]
    if len(found) < _ADAPTED:
        for d in found:
            yield problem([d], subject)
        return
    roles = ", ".join(dict.fromkeys(d.making.site.role for d in found))
    others = "all others are equal" if len(found) == len(tensors.differences) else "more differ"
    message = (
        f"{len(found)} matrices ({roles}) differ from their source by a matrix of rank {rank},"
        f" {others}: {what_made(int(rank), {d.making.site.role for d in found})}"
    )
    mend = of_source([d.making.tensor for d in found], found, subject)
    shown = {**evidence(found), "ranks": dict(ranks)}
    yield Problem(message, found[0].making.tensor, None, shown, mend=mend)


@rule("T209", "tensor-values", "error")
def values(subject: Subject) -> Iterator[Problem]:
    """A tensor has values that its source and the conversion do not explain.

    What it does:
        Dequantizes each tensor and compares it with what its source gives, and the distance
        with what storing the source's values afresh in that type costs; a tensor quantized
        with an importance matrix may differ by 1.6 times as much. Speaks up where no other
        rule of the family does.

    Why it matters:
        The tensor was damaged, edited, quantized from another checkpoint, or requantized.

    What to do:
        Download or convert the file again. If many tensors differ by some percent, check
        that the source is the revision that was converted.

    Example:
        ``blk.2.ffn_up.weight has other values in 12 of 4,096 rows, first in row 17``
    """
    tensors = same_checkpoint(subject)
    found = of_kind(tensors, "values", "partial", "non-finite", "experts")
    for group in patterns(
        d for d in found if d.explanation.kind != "experts" or d.explanation.detail == "values"
    ):
        yield problem(group, subject)


RULES: tuple[Rule, ...] = (
    order, rows, elsewhere, scaled, byte_order, zero, rounded, low_rank, values,
)  # fmt: skip
