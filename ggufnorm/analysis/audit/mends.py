"""Which mends of findings hold, and what they make of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ggufnorm.analysis.audit.matching import Array, converted
from ggufnorm.analysis.audit.source.encode import added, fits, stored_alike, stream
from ggufnorm.analysis.audit.source.layout import Layout
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.audit import Finding
from ggufnorm.core.mend import Mend, of_one_target
from ggufnorm.errors import GgufnormError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.gguf_rewrite import Stream

_ANOTHER_CHECKPOINT = frozenset({"S101", "T101"})


def settled(subject: Subject, findings: Sequence[Finding]) -> list[Finding]:
    """The findings, without mends by a source that is another checkpoint."""
    if not any(f.mend is not None and f.mend.from_source for f in findings):
        return list(findings)
    if not _is_the_source(subject, findings):
        return [replace(f, mend=None) if f.mend and f.mend.from_source else f for f in findings]
    if _source_may_have_offsets(subject):
        return [replace(f, mend=None) if f.rule == "S201" else f for f in findings]
    if any(f.mend is not None and f.mend.target.endswith("projector_type") for f in findings):
        # What tensors should be depends on it: they are judged again when it is right.
        return [replace(f, mend=None) if f.mend and f.mend.kind != "key" else f for f in findings]
    return list(findings)


def _source_may_have_offsets(subject: Subject) -> bool:
    """Whether no norm has its offset, and no value of theirs shows that the file is wrong.

    A source in MLX's format has the offsets already: then the file is right.
    """
    baked = [m for m in subject.matches.found if m.origin.transform.offset and not m.is_bias]
    lacking = [m for m in baked if m.explanation.evidence.get("offset") == 0]
    raw = [m for m in baked if m.site.weight is not None and m.site.weight.offset.offset == 0]
    return bool(baked) and lacking == baked and not raw


def _is_the_source(subject: Subject, findings: Iterable[Finding]) -> bool:
    if _ANOTHER_CHECKPOINT.intersection(f.rule for f in findings):
        return False
    try:
        return subject.matches.different is None
    except (GgufnormError, TypeError):
        return False


@dataclass(frozen=True)
class Plan:
    """What is to be done to a file.

    Attributes:
        mended: findings, each with the mend that is carried out for it.
        left: findings that are not mended, with the reason.
        mends: one for each key and tensor.
        tensors: the new values of tensors, in NumPy's shape.
        streams: tensors that are made of the source while they are written.
    """

    mended: tuple[Finding, ...]
    left: tuple[tuple[Finding, str], ...]
    mends: tuple[Mend, ...]
    tensors: Mapping[str, Array]
    streams: Mapping[str, Stream]

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the tensors that are written anew."""
        return (*self.tensors, *self.streams)


_NOT_KNOWN = "no mend is known"
_CONTRADICT = "two findings contradict each other on {}"
_NO_VALUES = "the right values of {} could not be had"


def plan(subject: Subject, findings: Iterable[Finding]) -> Plan:
    """Choose one mend for each key and tensor, and get the values.

    Args:
        subject: the file, and its source if there is one.
        findings: of an audit of it; informations are passed over.

    Raises:
        InputError: values cannot be read.
    """
    wrong = [f for f in findings if f.severity != "info"]
    targets: dict[str, list[Mend]] = {}
    for finding in wrong:
        if finding.mend is not None:
            for target in finding.mend.targets:
                targets.setdefault(target, []).append(finding.mend)
    chosen = {target: of_one_target(mends) for target, mends in targets.items()}
    mends = list({id(m): m for m in chosen.values() if m is not None}.values())
    of_tensors = [m for m in mends if m.kind != "key"]
    streams = _streams(subject, of_tensors)
    tensors = _values(subject, [m for m in of_tensors if m.target not in streams])
    mended: list[Finding] = []
    left: list[tuple[Finding, str]] = []
    for finding in wrong:
        own = finding.mend
        found = {target: chosen[target] for target in (own.targets if own else ())}
        against = next((t for t, m in found.items() if m is None), None)
        lacking = next(
            (t for t, m in found.items() if m and m.kind != "key" and t not in tensors | streams),
            None,
        )
        if own is None:
            left.append((finding, _NOT_KNOWN))
        elif against is not None:
            left.append((finding, _CONTRADICT.format(against)))
        elif lacking is not None:
            left.append((finding, _NO_VALUES.format(lacking)))
        else:
            mended.append(replace(finding, mend=found[own.target]))
    done = [m for m in mends if m.kind == "key" or m.target in tensors or m.target in streams]
    return Plan(tuple(mended), tuple(left), tuple(done), tensors, streams)


def _streams(subject: Subject, mends: Sequence[Mend]) -> dict[str, Stream]:
    """Whole tensors that the source gives, of those that rules of the family T name."""
    found: dict[str, Stream] = {}
    for mend in mends:
        if not mend.from_source or mend.value is not None or subject.source is None:
            continue
        for name in mend.targets:
            layout, tensor = _layout(subject, name), subject.file.tensors.get(name)
            if layout is not None and tensor is None:
                tensor = added(name, stored_alike(subject.file, name), layout)
            if layout is not None and tensor is not None and fits(tensor, layout):
                found[name] = stream(tensor, layout)
    return found


def _layout(subject: Subject, name: str) -> Layout | None:
    if not subject.full:
        return None
    try:
        return subject.tensors.layout_of(name)
    except (GgufnormError, TypeError):
        return None


def _values(subject: Subject, mends: Sequence[Mend]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    of_source = [m.target for m in mends if m.from_source and m.value is None]
    if of_source and subject.source is not None:
        half = _adds_in_half(subject)
        found |= converted(subject.file, subject.source, of_source, half=half)
    for mend in mends:
        if mend.from_source and mend.value is not None:
            found[mend.target] = np.array(mend.value, np.float32)
        elif not mend.from_source:
            values = read_tensor(subject.file, mend.target)
            added = values.astype(np.float64) + (mend.value or 0.0)
            found[mend.target] = added.astype(np.float32)
    return found


def _adds_in_half(subject: Subject) -> bool:
    """Whether the file's converter added offsets to F16 norms in half precision, as torch does.

    The norms that are right tell; where none is, llama.cpp's converter does.
    """
    kinds = [m.explanation.kind for m in subject.matches.found if m.origin.transform.offset]
    return "half" in kinds or "equal" not in kinds
