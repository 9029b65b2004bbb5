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
from ggufnorm.core.front_end_mistakes import FrontEndExplainer
from ggufnorm.core.front_ends import FrontEnd
from ggufnorm.core.log_mel import Array, LogMel, resampled
from ggufnorm.core.log_mel_mistakes import Pairs, explain, pairs_of, spectra
from ggufnorm.core.log_mel_scales import Scale
from ggufnorm.core.spectra import Spectrum
from ggufnorm.core.tolerances import MEL_FORMULA
from ggufnorm.formats.wav import Sound

_WIDEST = 480
"""Pixels, at a frame each."""
# Dark to light, of which each can be told from its neighbours without colours.
_COLORS = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])


_MOST_INPUTS = 16
"""Inputs of a batch among which the sound is looked for."""
_AFTER = 3
"""Frames behind the last hop of a sound whose windows reach into it."""

AudioDiagnosis = Diagnosis[AudioPipeline, Scale]


class SoundDiagnoser:
    """Explains spectrograms of a sound.

    Args:
        sound: the original.
        rate: of the samples that models get, in Hz.
        formula: the expected one, None if it is not known.
    """

    def __init__(self, sound: Sound, rate: int, formula: LogMel | FrontEnd | None) -> None:
        self._sound = sound
        self._formula = formula if isinstance(formula, LogMel) else None
        self.samples: Array = resampled(sound.channels.mean(axis=0), sound.rate, rate)
        self._front = (
            FrontEndExplainer(sound.channels, sound.rate, self.samples, formula)
            if isinstance(formula, FrontEnd)
            else None
        )
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
        values, found = self._nearest(output)
        usable = bool(is_finite(values).all())
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

    def _nearest(self, output: PipelineOutput) -> tuple[Values, Explanation[Scale]]:
        """Of several inputs of a batch the one of this sound; the first if none is."""
        first: tuple[Values, Explanation[Scale]] | None = None
        # llama.cpp's inputs are parts of one sound.
        for values in output.inputs[: _MOST_INPUTS if output.name == "array" else 1]:
            finite = is_finite(values)
            usable = bool(finite.all())
            found = self._explain(values, output) if usable else not_finite(finite)
            if first is None or (found.identified and not first[1].identified):
                first = values, found
            if found.residual is not None and found.residual <= MEL_FORMULA:
                return values, found
        assert first is not None
        return first

    def _explain(self, values: Values, output: PipelineOutput) -> Explanation[Scale]:
        if self._front is not None:
            return self._front.explain(values.astype(np.float64))
        if self._formula is None:
            return Explanation(
                (), "compared as a tensor: its formula is not known here", None, None
            )
        n_mel, n_frames = self._formula.shape
        n = self.comparable(values.shape[1], n_frames)
        if not n:
            return Explanation((), "too few frames to tell", None, None, identified=False)
        rows = values.shape[0]
        found = explain(
            values[:, :n].astype(np.float64),
            self._spectra(rows),
            self._whole,
            batch=_decades_of_batch(output),
            n_sound=self.frames_of_sound(n) + _AFTER,
            pairs=self._pairs(rows),
        )
        if rows == n_mel:
            return found
        text = f"{rows} mel bins, not {n_mel}; {found.text}"
        return replace(found, mistakes=("mel-bins", *found.mistakes), text=text)

    def _with_bins(self, n_mel: int) -> LogMel:
        assert self._formula is not None
        right = self._formula.shape[0] == n_mel
        return self._formula if right else self._formula.with_bins(n_mel)

    def _made(self, n_mel: int) -> tuple[Spectrum, ...]:
        return tuple(spectra(self._sound.channels, self._sound.rate, self._with_bins(n_mel)))

    def _pairs(self, n_mel: int) -> Pairs:
        return pairs_of(self._sound.channels, self._sound.rate, self._with_bins(n_mel))

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


def _decades_of_batch(output: PipelineOutput) -> float | None:
    """Of the loudest value of all inputs, if they are scaled as expected."""
    if output.name != "array" or len(output.inputs) < 2:
        return None
    loudest = max(float(values.max()) for values in output.inputs)
    return 4 * loudest - 4 if np.isfinite(loudest) else None
