"""The waveform that a model is fed: samples as they are, or of zero mean and unit variance.

As ``zero_mean_unit_var_norm`` in transformers' ``feature_extraction_wav2vec2.py``, which
wav2vec 2.0, HuBERT, WavLM, UniSpeech and Data2Vec share; codecs (EnCodec, DAC) take samples
as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

VARIANCE_EPSILON = 1e-7
"""Added to the variance by ``zero_mean_unit_var_norm``."""


@dataclass(frozen=True)
class Waveform:
    """What should be done to samples.

    Attributes:
        rate: samples a second.
        normalized: to zero mean and unit variance over the clip, without its padding.
        masked: whether padding is told to the model; if not, Transformers takes mean and
            variance over the padding of a batch, too.
        frame: samples that are fed as one row; 0 for a plain waveform.
    """

    rate: int
    normalized: bool
    masked: bool = True
    frame: int = 0

    def apply(self, samples: Array) -> Array:
        """What the model is fed of samples at :attr:`rate`."""
        return Gain.of(samples).apply(samples) if self.normalized else samples


@dataclass(frozen=True)
class Gain:
    """``gain · sample + offset``."""

    gain: float
    offset: float

    @classmethod
    def of(cls, samples: Array, epsilon: float = VARIANCE_EPSILON) -> Gain:
        """To zero mean and unit variance."""
        return cls.by(float(samples.mean()), float(np.sqrt(samples.var() + epsilon)))

    @classmethod
    def by(cls, mean: float, std: float) -> Gain:
        """Less a mean, divided by a deviation."""
        return cls(1 / std, -mean / std)

    def apply(self, samples: Array) -> Array:
        """Values of samples."""
        return samples * self.gain + self.offset

    def undo(self, values: Array) -> Array:
        """Samples of values."""
        return (values - self.offset) / self.gain

    @property
    def mean(self) -> float:
        """That this subtracts, of samples from -1 to 1."""
        return -self.offset / self.gain

    @property
    def std(self) -> float:
        """That this divides by."""
        return 1 / self.gain


PROJECTORS = {
    "gemma4ua": Waveform(16_000, normalized=False, frame=640),
    "pockettts_spkenc": Waveform(24_000, normalized=False),
}
"""Of encoders in mtmd that take samples as they are, by ``clip.projector_type``
(``mtmd_context::init_audio`` in ``tools/mtmd/mtmd.cpp``)."""
