"""S2xx and S3xx: are the values of weights and biases what the conversion makes of the source's?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from ggufnorm.analysis.audit.matching import Matches
from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.rules.source.common import explained, of_kind, problem, same_checkpoint
from ggufnorm.analysis.audit.subject import Subject


@rule("S201", "source-offset", "error")
def offset(subject: Subject) -> Iterator[Problem]:
    """A norm's weight is off from its source by a constant.

    What it does:
        Gemma's, Nemotron's and some other models' norms multiply by ``1 + w``, and the
        converter writes the sum. The rule finds a sum with another offset than the
        architecture's: missing, doubled, or added where none belongs.

    Why it matters:
        The model loads and computes finite nonsense.

    What to do:
        Convert the original checkpoint again. A source in MLX's format already has the
        offset in its values: then the file is right and the source is not the original.

    Example:
        ``output_norm.weight is the source's plus 0, where the conversion adds 1``
    """
    yield from explained(subject, "offset")


@rule("S202", "source-scale", "error")
def scale(subject: Subject) -> Iterator[Problem]:
    """A norm's weight is its source's times a constant, with or without an offset.

    What it does:
        Finds the factor, or the factor and the offset, that explain every value.

    Why it matters:
        What the norm hands on is too large or too small by that factor.

    What to do:
        Convert again. A factor of the square root of the width, or of a rank, points to a
        scale that was folded into the weight twice, or not at all.

    Example:
        ``blk.0.attn_norm.weight is 2 times what the conversion gives``
    """
    yield from explained(subject, "scale", "affine")


@rule("S203", "source-permuted", "error")
def permuted(subject: Subject) -> Iterator[Problem]:
    """A norm's weight has its source's values in another order.

    What it does:
        Compares the sorted values, and names the order if it is a usual one: halves
        interleaved as for rotary positions, or that undone.

    Why it matters:
        Every channel is multiplied with another one's weight. Norms of queries and keys
        must follow the permutation of the rows that they normalize.

    What to do:
        Convert again with a converter that knows the architecture.

    Example:
        ``blk.0.attn_k_norm.weight has the right values in another order (halves
        interleaved)``
    """
    yield from explained(subject, "permutation")


@rule("S204", "source-swapped", "error")
def swapped(subject: Subject) -> Iterator[Problem]:
    """A norm's weight holds the values of another norm.

    What it does:
        Compares the values with what every other norm of the same size should hold, and
        says whether the two changed places.

    Why it matters:
        The names of norms before and after a block are easily taken for one another
        (``post_attention_layernorm`` has two meanings); the model loads all the same.

    What to do:
        Convert again with a converter that knows the architecture.

    Example:
        ``blk.0.attn_norm.weight holds the values of blk.0.ffn_norm.weight: the two changed
        places``
    """
    matches = same_checkpoint(subject)
    shifted_ones = _shifted(matches)
    by_tensor = {m.tensor: m for m in matches.found}
    for match in of_kind(matches, "elsewhere"):
        if match.tensor in shifted_ones:
            continue
        other = match.explanation.other or ""
        mutual = other in by_tensor and by_tensor[other].explanation.other == match.tensor
        message = f"{match.tensor} {match.explanation.message}"
        yield problem(match, message + ": the two changed places" if mutual else message)


@rule("S205", "source-shifted", "error")
def shifted(subject: Subject) -> Iterator[Problem]:
    """Norms hold the values of the layer before or behind.

    What it does:
        Looks for two norms of one role or more that hold the values of the same norm so
        many layers away.

    Why it matters:
        Layers were counted from another number; every norm multiplies with the weight of
        another layer.

    What to do:
        Convert again. If the checkpoint was merged or pruned, check its layers' numbers.

    Example:
        ``blk.1.attn_norm.weight holds the values of blk.2.attn_norm.weight: shifted by 1``
    """
    matches = same_checkpoint(subject)
    by = _shifted(matches)
    for match in matches.found:
        if match.tensor in by:
            layers = by[match.tensor]
            message = f"{match.tensor} {match.explanation.message}: shifted by {layers}"
            yield problem(match, message, shift=layers)


@rule("S206", "source-rounded", "warning")
def rounded(subject: Subject) -> Iterator[Problem]:
    """A norm's weight lost precision on the way.

    What it does:
        Finds weights that are their source's, rounded to F16 or BF16. It is only an
        information if the source is F16 and the converter added its offset in half
        precision, as llama.cpp's does.

    Why it matters:
        Norms are kept in F32 because they are small and every channel passes through them.
        ``1 + w`` in BF16 is off by up to 0.004.

    What to do:
        Convert from the original checkpoint, not by way of a half-precision copy.

    Example:
        ``blk.0.attn_norm.weight was rounded to BF16 on the way, by up to 0.0039``
    """
    for match in of_kind(same_checkpoint(subject), "rounding", "half"):
        found = problem(match, f"{match.tensor} {match.explanation.message}")
        half = match.explanation.kind == "half"
        yield replace(found, severity="info") if half else found


@rule("S207", "source-bytes", "error")
def byte_order(subject: Subject) -> Iterator[Problem]:
    """A norm's weight has the bytes of its values reversed.

    What it does:
        Compares the values with the source's in the other byte order.

    Why it matters:
        llama.cpp loads such a weight without a word; its values are noise.

    What to do:
        Convert on a little-endian machine, or with gguf-py's ``gguf_convert_endian.py``.

    Example:
        ``output_norm.weight has the bytes of each value reversed``
    """
    yield from explained(subject, "bytes")


@rule("S208", "source-values", "error")
def values(subject: Subject) -> Iterator[Problem]:
    """A norm's weight has values that its source and the conversion do not explain.

    What it does:
        Compares the values with the source's after the conversion's known transform, up to
        the last bits. Speaks up where no other rule of the family does.

    Why it matters:
        The weight was damaged, edited, or comes from somewhere else.

    What to do:
        Download or convert the file again.

    Example:
        ``blk.2.ffn_norm.weight differs from its source in 1 of 4096 elements, first in
        element 17: 0 for 1.0625``
    """
    matches = same_checkpoint(subject)
    yield from explained(subject, "partial", "values")
    if matches.unreadable:
        name, reason = matches.unreadable[0]
        more = f" and {len(matches.unreadable) - 1} more" if matches.unreadable[1:] else ""
        raise NotApplicableError(f"{name}{more} could not be compared: {reason}")


@rule("S301", "source-bias", "error")
def bias(subject: Subject) -> Iterator[Problem]:
    """A norm's bias is not its source's.

    What it does:
        Compares the biases of LayerNorms, which no converter changes, and says what
        explains a difference: an offset, a scale, an order, another norm.

    Why it matters:
        The bias is added to every token's hidden state.

    What to do:
        Convert again.

    Example:
        ``blk.0.attn_norm.bias is the source's plus 1, where the conversion adds 0``
    """
    for match in same_checkpoint(subject).found:
        if match.is_bias and match.explanation.kind != "equal":
            yield problem(match, f"{match.tensor} {match.explanation.message}")


RULES: tuple[Rule, ...] = (
    offset, scale, permuted, swapped, shifted, rounded, byte_order, values, bias,
)  # fmt: skip


def _shifted(matches: Matches) -> dict[str, int]:
    """Tensors that hold another layer's values, with a fellow, and how far away that is."""
    by_tensor = {m.tensor: m for m in matches.found}
    away: dict[str, int] = {}
    for match in of_kind(matches, "elsewhere"):
        other = by_tensor.get(match.explanation.other or "")
        if other is None:
            continue
        here, there = match.site, other.site
        mutual = other.explanation.other == match.tensor
        if here.role == there.role and None not in (here.layer, there.layer) and not mutual:
            away[match.tensor] = (there.layer or 0) - (here.layer or 0)
    common = Counter((by_tensor[name].site.role, by) for name, by in away.items())
    roles = {role for (role, _), n in common.items() if n > 1}
    return {name: by for name, by in away.items() if by_tensor[name].site.role in roles}
