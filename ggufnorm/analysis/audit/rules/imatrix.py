"""Family I: importance matrices, as llama-imatrix writes them (``tools/imatrix/imatrix.cpp``).

For each matrix of the model they hold ``NAME.in_sum2``, sums of squares of its input's columns,
``(experts, columns)``, and ``NAME.counts``, the rows that were summed for each expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.naming import layer_of

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MOST_VALUES = 1 << 26
"""Values of one tensor at most; 512 experts of 16,384 columns have an eighth."""
_LISTED = 6

Test = Callable[[NDArray[np.float32]], NDArray[np.bool_]]


@rule("I101", "imatrix-incomplete", "error")
def incomplete(subject: Subject) -> Iterator[Problem]:
    """A matrix has sums without counts, counts without sums, or numbers of them that do not fit.

    What it does:
        Expects ``NAME.counts`` beside each ``NAME.in_sum2``, and a number of sums that is a
        multiple of the number of counts.

    Why it matters:
        llama-quantize refuses the file.

    What to do:
        Compute the importance matrix again, or download it again.

    Example:
        ``blk.3.ffn_up_exps.weight has sums and no counts``
    """
    tensors = subject.file.tensors
    for name in _matrices(subject):
        sums, counts = tensors.get(name + _SUMS), tensors.get(name + _COUNTS)
        if sums is None or counts is None:
            has, lacks = ("counts", "sums") if sums is None else ("sums", "counts")
            yield Problem(f"{name} has {has} and no {lacks}", name, layer_of(name))
        elif not counts.n_elements or sums.n_elements % counts.n_elements:
            n, of = counts.n_elements, sums.n_elements
            evidence = {"counts": n, "sums": of}
            yield Problem(
                f"{name}: {n} counts do not fit {of} sums", name, layer_of(name), evidence
            )


@rule("I102", "imatrix-non-finite", "error")
def non_finite(subject: Subject) -> Iterator[Problem]:
    """Sums or counts are NaN or infinite.

    What it does:
        Looks at every sum and every count.

    Why it matters:
        llama-quantize stops, or chooses scales that are NaN. Activations of the model
        overflowed while the matrix was computed, most often in half precision.

    What to do:
        Compute the importance matrix again, with a model that is not in F16, or on the CPU.

    Example:
        ``blk.30.ffn_down.weight: 3 of 11,008 sums are NaN or infinite``
    """
    yield from _wrong(subject, lambda v: ~np.isfinite(v), "NaN or infinite")


@rule("I103", "imatrix-negative", "error")
def negative(subject: Subject) -> Iterator[Problem]:
    """Sums of squares or counts are negative.

    What it does:
        Looks at every sum and every count.

    Why it matters:
        A sum of squares is not negative: the file is damaged. llama-quantize would weigh an
        error the wrong way round.

    What to do:
        Compute the importance matrix again, or download it again.

    Example:
        ``blk.2.attn_q.weight: 1 of 4,096 sums are negative``
    """
    yield from _wrong(subject, lambda v: v < 0, "negative")


@rule("I104", "imatrix-expert-unseen", "warning")
def unseen(subject: Subject) -> Iterator[Problem]:
    """Experts were never used by the text that the matrix was computed from.

    What it does:
        Looks for counts of 0.

    Why it matters:
        llama-quantize has nothing to go by for these experts and quantizes them as it does
        without an importance matrix; types of less than 3 bits suffer most.

    What to do:
        Compute the matrix from more, and more varied, text.

    Example:
        ``blk.3.ffn_up_exps.weight: 5 of 64 experts were never used: 3, 7, 21, 40, 63``
    """
    for name, _sums, counts in _read(subject):
        zero = np.flatnonzero(counts == 0)
        if not zero.size:
            continue
        if counts.size == 1:
            message = f"{name} was never used"
        else:
            more = ", …" if zero.size > _LISTED else ""
            shown = ", ".join(map(str, zero[:_LISTED])) + more
            message = f"{name}: {zero.size} of {counts.size} experts were never used: {shown}"
        evidence = {"experts": int(counts.size), "unseen": zero.tolist()[:512]}
        yield Problem(message, name, layer_of(name), evidence)


@rule("I105", "imatrix-zero", "warning")
def zero(subject: Subject) -> Iterator[Problem]:
    """A matrix, or one of its experts, was used and all its sums are 0.

    What it does:
        Looks for experts with a count above 0 whose every sum is 0.

    Why it matters:
        The input of the matrix was 0 for all tokens, or the sums were lost. All columns
        weigh nothing, so every quantization of them is as good as any other.

    What to do:
        Compute the matrix again. If it is the same, look at the model: ``audit`` finds norms
        that are all zero (N302).

    Example:
        ``blk.3.ffn_down.weight: all 11,008 sums are 0, of 100,352 rows``
    """
    for name, sums, counts in _read(subject):
        empty = np.flatnonzero(~sums.any(axis=1) & (counts > 0))
        if not empty.size:
            continue
        if counts.size == 1:
            message = f"{name}: all {sums.size:,} sums are 0, of {counts[0]:,.0f} rows"
        else:
            shown = ", ".join(map(str, empty[:_LISTED])) + (", …" if empty.size > _LISTED else "")
            message = f"{name}: all sums of {empty.size} of {counts.size} experts are 0: {shown}"
        evidence = {"experts": int(counts.size), "zero": empty.tolist()[:512]}
        yield Problem(message, name, layer_of(name), evidence)


RULES: tuple[Rule, ...] = (incomplete, non_finite, negative, unseen, zero)


def _matrices(subject: Subject) -> dict[str, None]:
    """Names of the model's matrices, in file order."""
    found = (
        n.removesuffix(end) for n in subject.file.tensors for end in (_SUMS, _COUNTS)
        if n.endswith(end)
    )  # fmt: skip
    return dict.fromkeys(found)


def _values(subject: Subject, name: str) -> NDArray[np.float32]:
    """Of one tensor, flat.

    Raises:
        NotApplicableError: they cannot be read.
    """
    n = subject.file.tensors[name].n_elements
    if n > _MOST_VALUES:
        raise NotApplicableError(f"{name}: {n:,} values are more than importance matrices have")
    try:
        return read_tensor(subject.file, name).ravel()
    except InputError as error:
        raise NotApplicableError(str(error)) from None


def _wrong(subject: Subject, bad: Test, what: str) -> Iterator[Problem]:
    for name in _matrices(subject):
        for end, called in ((_SUMS, "sums"), (_COUNTS, "counts")):
            if name + end not in subject.file.tensors:
                continue
            values = _values(subject, name + end)
            n = int(np.count_nonzero(bad(values)))
            if n:
                message = f"{name}: {n:,} of {values.size:,} {called} are {what}"
                yield Problem(message, name, layer_of(name), {"n": n, "of": int(values.size)})


def _read(
    subject: Subject,
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Name, sums ``(experts, columns)`` and counts ``(experts,)`` of what is complete."""
    tensors = subject.file.tensors
    for name in _matrices(subject):
        if name + _SUMS not in tensors or name + _COUNTS not in tensors:
            continue  # I101
        sums, counts = (_values(subject, name + end) for end in (_SUMS, _COUNTS))
        if counts.size and sums.size and sums.size % counts.size == 0:
            yield name, sums.reshape(counts.size, -1), counts
