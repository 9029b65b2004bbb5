"""N5: the offset that a converter bakes into weights of ``(1 + w) · x``.

See :mod:`ggufnorm.core.fingerprint` for how it is told from the values alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, at, rule
from ggufnorm.analysis.audit.subject import Array, Subject
from ggufnorm.core.mend import Mend
from ggufnorm.core.model import NormSite

_NEGATIVE = 0.25
"""Share of negative values from which a weight that should have its 1 looks as if it had not:
``1 + w`` is hardly ever negative in a trained model."""


_TOLD = 2.0**-14
"""The smallest bfloat16 whose eight bits all survive in float32 when 2 is added to it."""


@rule("N501", "offset-missing", "error")
def missing(subject: Subject) -> Iterator[Problem]:
    """The 1 that the architecture's converter adds to a norm's weight is missing.

    What it does:
        For architectures whose models compute ``(1 + w) · x`` (Gemma 1 to 3, Nemotron,
        Qwen3-Next, …), tells from a weight's values whether the 1 was added. Values that
        were not bfloat16 do not tell; of those, a weight with many negative values is a
        warning.

    Why it matters:
        llama.cpp multiplies by what is in the file: every channel is too small by 1. If only
        the last norm is affected, the model still writes text, only worse.

    What to do:
        Convert again from the original checkpoint; if the checkpoint was converted for
        another program, it may have the 1 already.

    Example:
        ``output_norm.weight: the 1 that gemma's converter adds was not added``
    """
    offsets = _baking(subject)
    told = _were_bf16(subject)
    for site, values in _of_offset_one(subject, offsets):
        found = _found(site) if told else None
        if found == 0:
            message = f"the 1 that {subject.architecture}'s converter adds was not added"
            found_at = at(site, f"{site.tensor}: {message}", expected=1, found=0)
            yield replace(found_at, mend=_undo(site, values, 0, 1))
        elif found is None and (share := _negative_share(values)) >= _NEGATIVE:
            message = (
                f"{site.tensor}: {share:.0%} of its values are negative: the 1 that"
                f" {subject.architecture}'s converter adds seems to be missing"
            )
            evidence = {"expected": 1, "negative": share}
            yield Problem(message, site.tensor, site.layer, evidence, "warning")


@rule("N502", "offset-doubled", "error")
def doubled(subject: Subject) -> Iterator[Problem]:
    """The 1 that the architecture's converter adds to a norm's weight was added twice.

    What it does:
        Looks for the offset 2 in weights that should have the offset 1.

    Why it matters:
        Every channel is too large by 1. It happens when a checkpoint that another program
        has already converted is converted again.

    What to do:
        Convert again from the original checkpoint.

    Example:
        ``blk.0.attn_norm.weight: the 1 that gemma2's converter adds was added twice``
    """
    offsets = _baking(subject)
    _need_bf16(subject)
    for site, values in _of_offset_one(subject, offsets):
        if _found(site) == 2:
            message = f"the 1 that {subject.architecture}'s converter adds was added twice"
            found_at = at(site, f"{site.tensor}: {message}", expected=1, found=2)
            yield replace(found_at, mend=_undo(site, values, 2, 1))


@rule("N503", "offset-unexpected", "error")
def unexpected(subject: Subject) -> Iterator[Problem]:
    """An offset was added to a norm's weight that the architecture's converter leaves alone.

    What it does:
        Looks for the offsets 1, 2 and -1 in weights of architectures, or of norms, without
        one (the gated norm of Qwen3-Next beside its other norms, Gemma 3n).

    Why it matters:
        Every channel is off by that number.

    What to do:
        Convert again with llama.cpp's converter.

    Example:
        ``blk.0.ssm_norm.weight: 1 was added, and qwen3next's converter adds nothing here``
    """
    offsets = _offsets(subject)
    _need_bf16(subject)
    for site, values, _ in subject.weighted:
        found = _found(site)
        if site.tensor and offsets.get(site.tensor) == 0 and found:
            message = f"{found} was added, and {subject.architecture}'s converter adds nothing here"
            found_at = at(site, f"{site.tensor}: {message}", expected=0, found=found)
            yield replace(found_at, mend=_undo(site, values, found, 0))


@rule("N504", "offset-mixed", "warning")
def mixed(subject: Subject) -> Iterator[Problem]:
    """One norm's offset is not that of the others.

    What it does:
        For architectures that gguf-py does not know, compares the offsets found in all
        norms; more than half must agree.

    Why it matters:
        Converters treat the norms of a model alike, with few exceptions.

    What to do:
        Compare with the source (``--source``), or with what the model's code does.

    Example:
        ``output_norm.weight: no offset was added, to 64 other norms 1 was``
    """
    if subject.expected_offsets is not None:
        raise NotApplicableError("what the architecture's converter adds is known (N501 to N503)")
    _need_bf16(subject)
    sites = [site for site, *_ in subject.weighted if _found(site) is not None]
    usual, n = Counter(_found(site) for site in sites).most_common(1)[0]
    for site in sites:
        if _found(site) != usual and 2 * n > len(sites):
            message = f"{_word(_found(site))} was added, to {n} other norms {_word(usual)} was"
            yield at(site, f"{site.tensor}: {message}", expected=usual, found=_found(site))


def _undo(site: NormSite, values: Array, found: int, expected: int) -> Mend | None:
    """Put the right offset in the place of another, if the file's values tell each weight.

    A sum loses the last bits of a weight far smaller than the offset: of those the source
    alone tells which they were.
    """
    assert site.tensor is not None
    weights = values.astype(np.float64) - found
    if found and not (np.abs(weights) >= _TOLD).all():
        return None
    verb = "add" if expected > found else "subtract"
    action = f"{verb} {abs(expected - found)} {'to' if verb == 'add' else 'from'} {site.tensor}"
    return Mend("offset", site.tensor, action, False, value=float(expected - found))


def _word(offset: int | None) -> str:
    return str(offset) if offset else "no offset"


def _offsets(subject: Subject) -> Mapping[str, float]:
    offsets = subject.expected_offsets
    if offsets is None:
        raise NotApplicableError(f"gguf-py does not know the architecture {subject.architecture!a}")
    return offsets


def _baking(subject: Subject) -> Mapping[str, float]:
    offsets = _offsets(subject)
    if not any(offset == 1 for offset in offsets.values()):
        raise NotApplicableError(f"{subject.architecture}'s converter adds 1 to no norm")
    return offsets


def _were_bf16(subject: Subject) -> bool:
    """Whether half of the norms or more were bfloat16 before an offset was added.

    Where they were not, one norm of a few values may look so by chance.
    """
    fitting = [s.offset.fits for *_, s in subject.weighted]
    return 2 * sum(fitting) >= max(1, len(fitting))


def _need_bf16(subject: Subject) -> None:
    if not _were_bf16(subject) or all(_found(site) is None for site, *_ in subject.weighted):
        raise NotApplicableError("the norms' values do not tell whether an offset was baked in")


def _of_offset_one(
    subject: Subject, offsets: Mapping[str, float]
) -> Iterator[tuple[NormSite, Array]]:
    for site, values, _ in subject.weighted:
        if site.tensor and offsets.get(site.tensor) == 1 and values.any():
            yield site, values


def _found(site: NormSite) -> int | None:
    # A weight stored in fewer bits has lost what would tell.
    return site.weight.offset.offset if site.weight and site.dtype == "F32" else None


def _negative_share(values: Array) -> float:
    return float(np.mean(values < 0)) if values.size else 0.0


RULES: tuple[Rule, ...] = (missing, doubled, unexpected, mixed)
