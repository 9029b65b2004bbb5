"""What several pipelines feed an audio encoder, compared, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.result import Result


@dataclass(frozen=True)
class SoundFacts:
    """The sound that was given.

    Attributes:
        path: of the file.
        rate: samples a second.
        channels: how many; pipelines are fed their mean.
        seconds: how long it is.
        peak: the largest absolute sample, 1 at most in files of integers.
    """

    path: str
    rate: int
    channels: int
    seconds: float
    peak: float


@dataclass(frozen=True)
class ExpectedMel:
    """What should be fed.

    Attributes:
        source: where that is taken from.
        rate: of the samples that it is computed of, in Hz.
        n_mel: mel bins.
        n_frames: of one input.
        n_fft: samples of a window.
        hop: samples from one window to the next.
        formula: what becomes of mel energies; Whisper's if it is empty.
        fixed: whether every input has that many frames, however long its sound is.
    """

    source: str
    rate: int
    n_mel: int
    n_frames: int
    n_fft: int
    hop: int
    formula: str = ""
    fixed: bool = True


@dataclass(frozen=True)
class ExpectedWaveform:
    """What should be fed to a model that takes samples.

    Attributes:
        source: where that is taken from.
        rate: of the samples, in Hz.
        normalized: to zero mean and unit variance, or as they are.
    """

    source: str
    rate: int
    normalized: bool


@dataclass(frozen=True)
class AudioPipeline:
    """What one pipeline feeds its model.

    Attributes:
        name: ``transformers``, ``numpy``, ``llama.cpp`` or ``array``.
        source: the folder or file that decides what it does.
        shape: of all it feeds, ``(inputs, mel bins, frames)``, of waveforms ``(inputs, 1,
            samples)``; one is looked at.
        mean: of its values; None if one is not finite.
        std: the same.
        minimum: the same.
        maximum: the same.
        histogram: values of the frames that hold the sound, counted in 32 bins from the
            minimum to the maximum.
        normalization: what was done, in words.
        mistakes: names of what is not as expected.
        told: whether the values could tell what was done.
        gain: of a decade of energy, of waveforms of a sample from -1 to 1; None if not known.
        offset: the value of an energy of 1, or of a sample of 0; None if not known.
        residual: relative L2 distance of what is said to have been done from the values.
        thumbnail: the frames that hold the sound as a PNG in base64, low frequencies at the
            bottom, in colours of the first pipeline's range. None of waveforms, if a value is
            not finite or Pillow is not installed.
    """

    name: str
    source: str
    shape: tuple[int, int, int]
    mean: float | None
    std: float | None
    minimum: float | None
    maximum: float | None
    histogram: tuple[int, ...]
    normalization: str
    mistakes: tuple[str, ...]
    told: bool
    gain: float | None
    offset: float | None
    residual: float | None
    thumbnail: str | None


@dataclass(frozen=True)
class AudioComparison:
    """Two pipelines, value by value.

    Attributes:
        a: name of the first.
        b: name of the second.
        rel_l2: relative L2 distance of ``b`` from ``a`` over the frames that both have; None
            if their mel bins differ or a value is not finite.
        explanation: what makes the difference.
        residual: the same distance with both scaled as expected: what the sound, its
            windows and its filters make of it. None if it cannot be told.
    """

    a: str
    b: str
    rel_l2: float | None
    explanation: str
    residual: float | None


@dataclass(frozen=True)
class AudioReport(Result):
    """How a sound reaches a model in each pipeline.

    Attributes:
        sound: that was given.
        expected: what should be fed, None if no formula of it is known.
        pipelines: each one's values, in figures.
        comparisons: of the first pipeline with each other.
        findings: the most severe first.
        verdict: all of it in one sentence.
        waveform: what should be fed to a model that takes samples, None for one that takes
            spectrograms.
    """

    sound: SoundFacts
    expected: ExpectedMel | None
    pipelines: tuple[AudioPipeline, ...]
    comparisons: tuple[AudioComparison, ...]
    findings: tuple[FeedFinding, ...]
    verdict: str
    waveform: ExpectedWaveform | None = None
