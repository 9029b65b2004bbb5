"""The Hugging Face feature extractor of a folder, as Transformers runs it."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.log_mel import LogMel
from ggufnorm.core.waveform import Waveform
from ggufnorm.engines.pretrained import first_line, load_pretrained, quiet
from ggufnorm.errors import InputError

INSTALL_HINT = 'pip install "ggufnorm[audio]"'

_KEYS = ("input_features", "input_values")

Spectrogram = NDArray[np.float32]


class Extractor:
    """The feature extractor that ``AutoFeatureExtractor`` makes of a folder.

    Attributes:
        path: the folder.
        name: the class's.
        rate: of the samples that it takes, in Hz.

    Raises:
        MissingPackageError: Transformers is not installed.
        InputError: the folder has no feature extractor that Transformers can load, or one
            that is not of sounds.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = os.fspath(folder)
        self._extractor: Any = load_pretrained(
            "AutoFeatureExtractor", folder, "a feature extractor", INSTALL_HINT
        )
        self.name: str = type(self._extractor).__name__
        rate = getattr(self._extractor, "sampling_rate", None)
        if not isinstance(rate, int) or rate <= 0:
            raise InputError(f"{self.path}: {self.name} is of no sounds: sampling_rate is {rate}")
        self.rate = rate

    @property
    def formula(self) -> LogMel | None:
        """What its configuration says, None if it is not Whisper's kind of log-mel.

        Raises:
            InputError: what it says is impossible.
        """
        from transformers import WhisperFeatureExtractor

        e = self._extractor
        if not isinstance(e, WhisperFeatureExtractor):
            return None
        if min(e.n_fft // 2, e.hop_length, e.n_samples // max(e.n_fft, 1)) < 1:
            sizes = f"n_fft {e.n_fft}, hop_length {e.hop_length}, chunk_length {e.chunk_length}"
            raise InputError(f"{self.path}: no spectrogram can be made with {sizes}")
        filters = np.asarray(e.mel_filters, np.float64)
        return LogMel(e.sampling_rate, e.n_fft, e.hop_length, e.n_samples, filters)

    @cached_property
    def feeds_waveforms(self) -> bool:
        """Whether it makes no spectrogram of samples.

        Raises:
            InputError: as :meth:`feed` does.
        """
        tone = 0.1 * np.sin(2 * np.pi * 440 / self.rate * np.arange(self.rate))
        return self.feed(tone).ndim == 1

    @property
    def waveform(self) -> Waveform:
        """What its configuration says of a waveform."""
        e = self._extractor
        normalized = getattr(e, "do_normalize", False) is True
        # Wav2Vec2FeatureExtractor normalizes over the padding if it returns no mask; others
        # always know their padding.
        masked = getattr(e, "return_attention_mask", True) is not False
        return Waveform(self.rate, normalized, masked)

    def feed(self, samples: NDArray[np.float64]) -> Spectrogram:
        """What it makes of a sound, ``(mel bins, frames)``, or a waveform ``(samples,)``.

        Args:
            samples: of one channel, from -1 to 1, at :attr:`rate`.

        Raises:
            InputError: it fails, or gives something that is neither.
        """
        with quiet():
            try:
                out = self._extractor(
                    samples.astype(np.float32), sampling_rate=self.rate, return_tensors="np"
                )
            except Exception as error:
                raise InputError(f"{self.path}: {self.name} fails: {first_line(error)}") from None
        given = next((out[key] for key in _KEYS if key in out), ())
        values: Spectrogram = np.asarray(given, np.float32)
        if values.ndim == 2 and values.size:
            return values[0]
        if values.ndim != 3 or not values.size:
            raise InputError(
                f"{self.path}: {self.name} gives neither a spectrogram as input_features nor a"
                " waveform as input_values"
            )
        if 1 in values.shape[1:]:  # codecs' (inputs, channels, samples)
            return values[0].ravel()
        frames_first = values.shape[2] == self._extractor.feature_size
        return np.asarray(values[0].T if frames_first and self.formula is None else values[0])
