"""Waveforms: samples that a model is fed without a spectrogram, and what was done to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ggufnorm.analysis.preprocessing.findings import (
    by_severity,
    is_misconfigured,
    pipeline_findings,
    summarize,
)
from ggufnorm.analysis.preprocessing.pipelines import (
    BINS,
    Diagnosis,
    PipelineOutput,
    Values,
    compare_with_first,
    explain_difference,
    is_finite,
    not_finite,
)
from ggufnorm.core.audio_report import AudioComparison, AudioPipeline
from ggufnorm.core.feed import Explanation, FeedFinding
from ggufnorm.core.log_mel import Array, resampled
from ggufnorm.core.metrics import finite_relative_l2
from ggufnorm.core.tolerances import SAME_FORMULA
from ggufnorm.core.waveform import Gain, Waveform
from ggufnorm.core.waveform_mistakes import explain, sources
from ggufnorm.formats.wav import Sound

MILD = frozenset({"level", "normalized-over-whole", "one-channel", "scale-of-another", "shifted"})
"""Mistakes that are a warning: the sound is another, or the difference is hardly heard."""

WaveformDiagnosis = Diagnosis[AudioPipeline, Gain]


class WaveformDiagnoser:
    """Explains waveforms of a sound.

    Args:
        sound: the original.
        expected: what should be done to its samples.
    """

    def __init__(self, sound: Sound, expected: Waveform) -> None:
        self._channels, self._expected = sound.channels, expected
        self.samples: Array = resampled(sound.channels.mean(axis=0), sound.rate, expected.rate)
        self._sources = list(sources(sound.channels, sound.rate, expected))

    def diagnose(self, output: PipelineOutput) -> WaveformDiagnosis:
        """Explain what a pipeline feeds: of several inputs, the one nearest to the sound."""
        found = [self._explain(i, output) for i in range(len(output.inputs))]
        nearest = min(range(len(found)), key=lambda i: _residual(found[i]))
        values, explanation = output.inputs[nearest], self._unmixed(found, nearest)
        usable, gain = bool(is_finite(values).all()), explanation.transform
        pipeline = AudioPipeline(
            name=output.name,
            source=output.source,
            shape=(len(output.inputs), 1, len(values)),
            mean=float(values.mean(dtype=np.float64)) if usable else None,
            std=float(values.std(dtype=np.float64)) if usable else None,
            minimum=float(values.min()) if usable else None,
            maximum=float(values.max()) if usable else None,
            histogram=self._counted(values) if usable else (),
            normalization=explanation.text,
            mistakes=explanation.mistakes,
            told=explanation.identified,
            gain=gain.gain if gain else None,
            offset=gain.offset if gain else None,
            residual=explanation.residual,
            thumbnail=None,
        )
        return Diagnosis(values, pipeline, gain)

    def _explain(self, index: int, output: PipelineOutput) -> Explanation[Gain]:
        values = output.inputs[index]
        finite = is_finite(values)
        if not finite.all():
            return not_finite(finite)
        together = np.stack([np.asarray(v, np.float64) for v in output.inputs])
        batch = together if len(together) > 1 and np.isfinite(together).all() else None
        return explain(np.asarray(values, np.float64), self._sources, self._expected, batch)

    def _unmixed(self, found: list[Explanation[Gain]], nearest: int) -> Explanation[Gain]:
        """The nearest; that the channels are inputs of their own, if they are."""
        one = found[nearest]
        n = len(self._channels)
        if n < 2 or len(found) != n or not all("one-channel" in f.mistakes for f in found):
            return one
        others = (m for m in one.mistakes if m != "one-channel")
        text = f"each of {n} channels is an input of its own: they were not mixed"
        rest = one.text.partition("; ")[2]
        return replace(
            one, mistakes=("not-mixed", *others), text=f"{text}; {rest}" if rest else text
        )

    def _counted(self, values: Values) -> tuple[int, ...]:
        limits = float(values.min()), float(values.max())
        shown = values[: max(1, len(self.samples))]
        return tuple(np.histogram(shown, BINS, limits)[0].tolist())


def _residual(explanation: Explanation[Gain]) -> float:
    return np.inf if explanation.residual is None else explanation.residual


def compare(a: WaveformDiagnosis, b: WaveformDiagnosis) -> AudioComparison:
    """How far ``b`` is from ``a``, and how far when both are turned back into samples."""
    n = min(len(a.values), len(b.values))
    x, y = (np.asarray(d.values[:n], np.float64) for d in (a, b))
    rel_l2, residual = finite_relative_l2(x, y), None
    if a.transform is not None and b.transform is not None and rel_l2 is not None:
        residual = finite_relative_l2(a.transform.undo(x), b.transform.undo(y))
    lengths = len(a.values), len(b.values)
    names = a.pipeline.name, b.pipeline.name
    sizes = (
        [f"{names[0]} feeds {lengths[0]:,} samples, {names[1]} {lengths[1]:,}"]
        if lengths[0] != lengths[1]
        else []
    )
    rest = ["their samples differ"] if not (a.pipeline.mistakes or b.pipeline.mistakes) else []
    why = explain_difference(a, b, rel_l2, rest, sizes=sizes, undefined="there are none")
    return AudioComparison(*names, rel_l2, why, residual)


def judge(
    diagnoses: list[WaveformDiagnosis], n_samples: int
) -> tuple[tuple[AudioComparison, ...], tuple[FeedFinding, ...], str]:
    """The comparisons, the findings, the most severe first, and all of it in a sentence.

    Args:
        diagnoses: of all pipelines.
        n_samples: of the sound.
    """
    pipelines = tuple(d.pipeline for d in diagnoses)
    comparisons = compare_with_first(diagnoses, compare)
    found = [finding for p in pipelines for finding in _of_pipeline(p, n_samples)]
    found += [f for c in comparisons for f in _of_pair(c, pipelines)]
    findings = by_severity(found)
    return comparisons, findings, summarize(pipelines, findings, "waveform")


def _of_pipeline(p: AudioPipeline, n_samples: int) -> list[FeedFinding]:
    found = list(pipeline_findings(p, "extractor-differs", MILD))
    if not is_misconfigured(p) and p.shape[2] < n_samples:
        message = f"{p.name} feeds {p.shape[2]:,} samples, the sound has {n_samples:,}"
        found.append(FeedFinding("warning", "length", p.name, message))
    return found


def _of_pair(c: AudioComparison, pipelines: tuple[AudioPipeline, ...]) -> list[FeedFinding]:
    explained = any(p.mistakes or not p.told for p in pipelines if p.name in (c.a, c.b))
    rest = c.rel_l2 if c.residual is None else c.residual
    if explained or rest is None or rest <= SAME_FORMULA:
        return []
    message = f"{c.a} and {c.b} differ by {rest:.3g} (relative L2): {c.explanation}"
    return [FeedFinding("warning", "sounds-differ", c.b, message)]
