"""The log-mel formula and its mistakes, without a pipeline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ggufnorm.core.log_mel import resampled, whisper
from ggufnorm.core.log_mel_mistakes import Scale, explain, scales, spectra
from tests.sounds import RATE, sound


def loud(seconds: float = 2.0) -> np.ndarray:
    """A sound whose maximum less 8 decades is above 2^-24."""
    return 2 * sound(seconds)


WHISPER = whisper(80)


def test_a_resampled_tone_is_the_tone_at_the_other_rate() -> None:
    def tone(rate: int) -> np.ndarray:
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    assert np.abs(resampled(tone(44_100), 44_100, RATE) - tone(RATE)).max() < 1e-9
    assert resampled(tone(RATE), RATE, RATE).shape == (RATE,)


@pytest.mark.slow
def test_all_scales_of_two_mistakes_are_told_apart() -> None:
    """But for a floor below what is cut off anyway."""
    x = np.stack([loud(31)])
    x[:, : 30 * RATE] *= 0.1
    whole = float(np.log10(replace(WHISPER, n_samples=31 * RATE).energies(x[0]).max()))
    tried = list(spectra(x, RATE, WHISPER))[:1]
    energies = tried[0].energies
    told = 0
    for scale in scales(whole):
        if len(scale.mistakes) <= 2 and "mel-floor" not in scale.mistakes:
            values = scale.apply(energies, float(energies.max()))
            found = explain(values, tried, whole)
            assert found.mistakes == scale.mistakes
            told += 1
    assert told > 20


def test_undoing_a_scale_gives_the_energies_again() -> None:
    energies = WHISPER.energies(loud(0.5))[:, :50] + 1e-3
    for scale in (Scale((), ""), Scale((), "", gain=None), Scale((), "", 2.3, -1.0)):
        values = scale.apply(energies, float(energies.max()))
        assert np.allclose(scale.undo(values), energies, rtol=1e-9)
