"""One pipeline's spectrogram, and what was done to get it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property

import numpy as np

from ggufnorm.analysis.preprocessing.pipelines import (
    BINS,
    Diagnosis,
    PipelineOutput,
    Values,
    is_finite,
    not_finite,
    optional_thumbnail,
)
from ggufnorm.core.audio_report import AudioPipeline
from ggufnorm.core.feed import Explanation
from ggufnorm.core.log_mel import Array, LogMel, resampled
from ggufnorm.core.log_mel_mistakes import Scale, Spectrum, explain, spectra
from ggufnorm.formats.wav import Sound

_WIDEST = 480
"""Pixels, at a frame each."""
# Dark to light, of which each can be told from its neighbours without colours.
_COLORS = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])


AudioDiagnosis = Diagnosis[AudioPipeline, Scale]


class SoundDiagnoser:
    """Explains spectrograms of a sound.

    Args:
        sound: the original.
        rate: of the samples that models get, in Hz.
        formula: the expected one, None if it is not known.
    """

    def __init__(self, sound: Sound, rate: int, formula: LogMel | None) -> None:
        self._sound, self._formula = sound, formula
        self.samples: Array = resampled(sound.channels.mean(axis=0), sound.rate, rate)
        self._spectra = cache(self._made)
        self._range: tuple[float, float] | None = None

    def frames_of_sound(self, n: int) -> int:
        """How many of ``n`` frames hold the sound and not what it is padded with."""
        return n if self._formula is None else min(n, -(-len(self.samples) // self._formula.hop))

    def comparable(self, *n_frames: int) -> int:
        """How many frames are comparable among inputs of these lengths.

        All if they are of one length; else those that hold the sound, less the two at the
        end that the padding has a part in.
        """
        least = min(n_frames)
        return least if len(set(n_frames)) == 1 else max(0, self.frames_of_sound(least) - 2)

    def diagnose(self, output: PipelineOutput) -> AudioDiagnosis:
        """Explain what a pipeline feeds."""
        values = output.inputs[0]
        finite = is_finite(values)
        usable = bool(finite.all())
        found = self._explain(values) if usable else not_finite(finite)
        if output.exchanged:
            text = f"the axes are frames and mel bins, not mel bins and frames; {found.text}"
            found = replace(found, mistakes=("axes-exchanged", *found.mistakes), text=text)
        scale = found.transform
        pipeline = AudioPipeline(
            name=output.name,
            source=output.source,
            shape=(len(output.inputs), *values.shape[:2]),
            mean=float(values.mean(dtype=np.float64)) if usable else None,
            std=float(values.std(dtype=np.float64)) if usable else None,
            minimum=float(values.min()) if usable else None,
            maximum=float(values.max()) if usable else None,
            histogram=self._counted(values) if usable else (),
            normalization=found.text,
            mistakes=found.mistakes,
            told=found.identified,
            gain=scale.gain if scale else None,
            offset=scale.offset if scale and scale.gain is not None else None,
            residual=found.residual,
            thumbnail=self._shown(values) if usable else None,
        )
        return Diagnosis(values, pipeline, scale)

    def _explain(self, values: Values) -> Explanation[Scale]:
        if self._formula is None:
            return Explanation(
                (), "compared as a tensor: its formula is not known here", None, None
            )
        n_mel, n_frames = self._formula.shape
        n = self.comparable(values.shape[1], n_frames)
        if not n:
            return Explanation((), "too few frames to tell", None, None, identified=False)
        rows = values.shape[0]
        found = explain(values[:, :n].astype(np.float64), self._spectra(rows), self._whole)
        if rows == n_mel:
            return found
        text = f"{rows} mel bins, not {n_mel}; {found.text}"
        return replace(found, mistakes=("mel-bins", *found.mistakes), text=text)

    def _made(self, n_mel: int) -> tuple[Spectrum, ...]:
        assert self._formula is not None
        right = self._formula.shape[0] == n_mel
        formula = self._formula if right else self._formula.with_bins(n_mel)
        return tuple(spectra(self._sound.channels, self._sound.rate, formula))

    @cached_property
    def _whole(self) -> float | None:
        """Decades of a sound's loudest value, if it is longer than what is fed at once."""
        if self._formula is None or len(self.samples) <= self._formula.n_samples:
            return None
        everything = replace(self._formula, n_samples=len(self.samples))
        return float(np.log10(max(everything.energies(self.samples).max(), 1e-300)))

    def _of_sound(self, values: Values) -> Values:
        return values[:, : max(1, self.frames_of_sound(values.shape[1]))]

    def _counted(self, values: Values) -> tuple[int, ...]:
        limits = float(values.min()), float(values.max())
        return tuple(np.histogram(self._of_sound(values), BINS, limits)[0].tolist())

    def _shown(self, values: Values) -> str | None:
        """A heat map of the sound, all pipelines' in the colours of the first."""
        if self._range is None:
            self._range = float(values.min()), float(values.max())
        low, high = self._range
        shown = self._of_sound(values)[::-1]
        shown = shown[:, :: -(-shown.shape[1] // _WIDEST)]
        heat = np.clip((shown - low) / max(high - low, 1e-30), 0, 1)
        places = np.linspace(0, 1, len(_COLORS))
        colors = np.stack([np.interp(heat, places, c) for c in _COLORS.T], axis=-1)
        return optional_thumbnail(colors, _WIDEST)
