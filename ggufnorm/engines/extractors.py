"""The Hugging Face feature extractor of a folder, as Transformers runs it."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.front_ends import FrontEnd
from ggufnorm.core.log_mel import LogMel
from ggufnorm.core.waveform import Waveform
from ggufnorm.engines.front_ends import front_end_of
from ggufnorm.engines.pretrained import first_line, load_pretrained, quiet
from ggufnorm.errors import InputError

INSTALL_HINT = 'pip install "ggufnorm[audio]"'

_WHISPERS = ("WhisperFeatureExtractor", "Qwen3ASRFeatureExtractor")
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
    def formula(self) -> LogMel | FrontEnd | None:
        """What its configuration says, None if its kind of log-mel is not known here.

        Raises:
            InputError: what it says is impossible.
        """
        e = self._extractor
        if self.name not in _WHISPERS:
            return self._front_end()
        if min(e.n_fft // 2, e.hop_length, e.n_samples // max(e.n_fft, 1)) < 1:
            sizes = f"n_fft {e.n_fft}, hop_length {e.hop_length}, chunk_length {e.chunk_length}"
            raise InputError(f"{self.path}: no spectrogram can be made with {sizes}")
        filters = np.asarray(e.mel_filters, np.float64)
        return LogMel(e.sampling_rate, e.n_fft, e.hop_length, e.n_samples, filters)

    def _front_end(self) -> FrontEnd | None:
        try:
            return front_end_of(self._extractor)
        except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
            why = first_line(error)
            raise InputError(f"{self.path}: no spectrogram can be made with it: {why}") from None

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
        frame = int(getattr(e, "audio_samples_per_token", 0))
        return Waveform(self.rate, normalized, masked, frame)

    def feed(self, samples: NDArray[np.float64]) -> Spectrogram:
        """What it makes of a sound, ``(mel bins, frames)``, or a waveform ``(samples,)``.

        Args:
            samples: of one channel, from -1 to 1, at :attr:`rate`.

        Raises:
            InputError: it fails, or gives something that is neither.
        """
        # Gemma's extractors know their rate, and Gemma 4's fails with a sound that is not in a
        # list.
        options = {} if self.name.startswith("Gemma") else {"sampling_rate": self.rate}
        with quiet():
            try:
                out = self._extractor([samples.astype(np.float32)], return_tensors="np", **options)
            except Exception as error:
                raise InputError(f"{self.path}: {self.name} fails: {first_line(error)}") from None
        given = next((out[key] for key in _KEYS if key in out), ())
        values: NDArray[Any] = np.asarray(given, np.float32)
        if values.ndim == 2 and values.size:
            return np.asarray(values[0])
        if values.ndim != 3 or not values.size:
            raise InputError(
                f"{self.path}: {self.name} gives neither a spectrogram as input_features nor a"
                " waveform as input_values"
            )
        if 1 in values.shape[1:]:  # codecs' (inputs, channels, samples)
            return np.asarray(values[0].ravel())
        if getattr(self._extractor, "audio_samples_per_token", 0):  # Gemma 4 Unified's frames
            return np.asarray(values[0].ravel())
        formula = self.formula
        if isinstance(formula, LogMel):
            return np.asarray(values[0])
        n_bins = formula.n_bins if formula else self._extractor.feature_size
        return np.asarray(values[0].T if values.shape[2] == n_bins else values[0])
