"""Two pipelines' spectrograms, value by value."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ggufnorm.analysis.preprocessing.audio.explain import AudioDiagnosis, SoundDiagnoser
from ggufnorm.analysis.preprocessing.pipelines import explain_difference
from ggufnorm.core.audio_report import AudioComparison
from ggufnorm.core.log_mel import Array
from ggufnorm.core.log_mel_scales import expected_again
from ggufnorm.core.metrics import finite_relative_l2


def compare(a: AudioDiagnosis, b: AudioDiagnosis, diagnoser: SoundDiagnoser) -> AudioComparison:
    """How far ``b`` is from ``a``, and how far when both are scaled as expected."""
    names = a.pipeline.name, b.pipeline.name
    if len(a.values) != len(b.values):
        why = f"{len(a.values)} and {len(b.values)} mel bins"
        return AudioComparison(*names, None, why, None)
    n = diagnoser.comparable(a.values.shape[1], b.values.shape[1])
    x, y = (d.values[:, :n].astype(np.float64) for d in (a, b))
    rel_l2, residual = finite_relative_l2(x, y), None
    if a.transform is not None and b.transform is not None and rel_l2 is not None:
        again = expected_again(a.transform, x), expected_again(b.transform, y)
        residual = finite_relative_l2(*again)
    rest, sizes = _sounds_differ(a, b, (x, y)), _lengths_differ(a, b)
    why = explain_difference(a, b, rel_l2, rest, sizes=sizes, undefined="there are none")
    return AudioComparison(*names, rel_l2, why, residual)


def _lengths_differ(a: AudioDiagnosis, b: AudioDiagnosis) -> Iterator[str]:
    here, there = (d.values.shape[1] for d in (a, b))
    if here != there:
        yield f"{a.pipeline.name} feeds {here} frames, {b.pipeline.name} {there}"


def _sounds_differ(
    a: AudioDiagnosis, b: AudioDiagnosis, values: tuple[Array, Array]
) -> Iterator[str]:
    if a.transform is None or b.transform is None:
        yield _affine(*values)
    elif not (a.pipeline.mistakes or b.pipeline.mistakes):
        yield "their samples, windows or filters differ"


def _affine(a: Array, b: Array) -> str:
    """The multiple of one and the number added that come nearest to the other."""
    dx, dy = a - a.mean(), b - b.mean()
    gain = float((dx * dy).sum() / max(float((dx**2).sum()), 1e-300))
    offset = float(b.mean() - gain * a.mean())
    rest = finite_relative_l2(b, gain * a + offset)
    left = "nothing" if rest is None else f"{rest:.3g}"
    return f"{gain:.4g} times the first and {offset:.4g} leave {left} of it"
