"""What is wrong with the spectrograms, and how grave that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggufnorm.analysis.preprocessing.findings import (
    by_severity,
    is_misconfigured,
    pipeline_findings,
    summarize,
)
from ggufnorm.core.audio_report import AudioComparison, AudioPipeline, ExpectedMel
from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.tolerances import SAME_FORMULA

MILD = frozenset(
    {
        "clamp-of-whole",
        "edges-of-another",
        "level",
        "mel-floor",
        "one-channel",
        "variance-bias",
        "window-symmetry",
    }
)
"""Mistakes that are a warning: the sound is another, or only its faintest parts are."""

_FEWER = 2
"""Frames less than expected that sounds of any length may have."""


@dataclass(frozen=True)
class Evidence:
    """All that a judgement rests on.

    Attributes:
        expected: what should be fed, None if its formula is not known.
        pipelines: what each feeds.
        comparisons: of pairs.
        n_mel_of_file: mel bins that the encoder's file says, None without a file.
    """

    expected: ExpectedMel | None
    pipelines: tuple[AudioPipeline, ...]
    comparisons: tuple[AudioComparison, ...]
    n_mel_of_file: int | None


def judge(evidence: Evidence) -> tuple[tuple[FeedFinding, ...], str]:
    """The findings, the most severe first, and all of it in a sentence."""
    found = [
        *_of_file(evidence),
        *(f for p in evidence.pipelines for f in _of_pipeline(p, evidence.expected)),
        *(f for c in evidence.comparisons for f in _of_pair(c, evidence.pipelines)),
    ]
    findings = by_severity(found)
    return findings, summarize(evidence.pipelines, findings, "spectrogram")


def _of_file(evidence: Evidence) -> Iterator[FeedFinding]:
    here, first = evidence.n_mel_of_file, evidence.pipelines[0].shape[1]
    if here is not None and here != first:
        message = f"the encoder's file has {here} mel bins, {evidence.pipelines[0].name} {first}"
        yield FeedFinding("error", "mel-bins-differ", None, message)


def _of_pipeline(p: AudioPipeline, expected: ExpectedMel | None) -> Iterator[FeedFinding]:
    yield from pipeline_findings(p, "extractor-differs", MILD)
    if is_misconfigured(p):
        return
    if expected is None:
        return
    fewer = p.shape[2] < expected.n_frames - _FEWER
    if fewer or (expected.fixed and p.shape[2] != expected.n_frames):
        message = f"{p.name} feeds {p.shape[2]:,} frames, expected are {expected.n_frames:,}"
        yield FeedFinding("warning", "length", p.name, message)


def _of_pair(c: AudioComparison, pipelines: tuple[AudioPipeline, ...]) -> Iterator[FeedFinding]:
    explained = any(p.mistakes or not p.told for p in pipelines if p.name in (c.a, c.b))
    rest = c.rel_l2 if c.residual is None else c.residual
    if not explained and rest is not None and rest > SAME_FORMULA:
        message = f"{c.a} and {c.b} differ by {rest:.3g} (relative L2): {c.explanation}"
        yield FeedFinding("warning", "sounds-differ", c.b, message)
