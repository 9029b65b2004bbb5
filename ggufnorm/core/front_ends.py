"""What encoders are fed of mel energies: a logarithm, and what becomes of it.

Each encoder's formula is that of its own feature extractor in Transformers, and of
``mtmd_audio_preprocessor_*`` in llama.cpp's ``tools/mtmd/mtmd-audio.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ggufnorm.core.log_mel import FLOOR, Array, LogMel, whisper
from ggufnorm.core.mel_filters import SLANEY, Bank

RATE, HOP = 16_000, 160
MTMD_FLOOR = 2.0**-24
"""``filter_params::mel_floor``, and NeMo's ``log_zero_guard_value``."""
KALDI_FLOOR = 2.0**-23
"""The least float32 above 0 that Kaldi's ``ComputeFbank`` takes the logarithm of."""


@dataclass(frozen=True)
class Logarithm:
    """``ln(max(e, floor))`` and its kin.

    Attributes:
        base: ``e``, ``10``, ``dB``, or ``none`` for the energies themselves.
        floor: least energy.
        added: whether that is added, not a bound.
    """

    base: str = "e"
    floor: float = FLOOR
    added: bool = False

    def apply(self, energies: Array) -> Array:
        """Values of energies."""
        if self.base == "none":
            return energies
        e = energies + self.floor if self.added else np.maximum(energies, self.floor)
        scale = {"e": 1.0, "10": 1 / np.log(10), "dB": 10 / np.log(10)}[self.base]
        return np.asarray(np.log(e) * scale)


@dataclass(frozen=True)
class Scaling:
    """What becomes of the logarithms.

    Attributes:
        kind: ``none``; ``bins`` for zero mean and unit variance of each mel bin over the
            frames; ``bins-mean`` for the former alone; ``all`` of all values together;
            ``fixed`` for ``(x - mean) / std``; ``whisper`` for its clamp and ``(x + 4) / 4``.
        mean: of ``fixed``.
        std: of ``fixed``.
        unbiased: whether variances are divided by one frame less.
        epsilon: added to the variance, or to its root.
        after_root: whether to its root.
    """

    kind: str = "none"
    mean: float = 0.0
    std: float = 1.0
    unbiased: bool = True
    epsilon: float = 0.0
    after_root: bool = False

    def apply(self, logs: Array) -> Array:
        """Values of logarithms ``(mel bins, frames)``."""
        if self.kind == "none":
            return logs
        if self.kind == "fixed":
            return np.asarray((logs - self.mean) / self.std)
        if self.kind == "whisper":
            return np.asarray((np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0)
        axis = None if self.kind == "all" else 1
        centred = logs - logs.mean(axis=axis, keepdims=True)
        if self.kind == "bins-mean":
            return np.asarray(centred)
        variance = logs.var(axis=axis, keepdims=True, ddof=int(self.unbiased and logs.shape[1] > 1))
        if self.after_root:
            return np.asarray(centred / (np.sqrt(variance) + self.epsilon))
        return np.asarray(centred / np.sqrt(variance + max(self.epsilon, 1e-300)))


@dataclass(frozen=True, eq=False)
class FrontEnd:
    """How an encoder's input is computed of samples.

    Attributes:
        name: whose it is.
        mel: its mel energies; their number of samples is the sound's if there is no fixed one.
        log: the logarithm.
        scaling: what becomes of it.
        seconds: that a sound is padded or cut to before; 0 to take it as it is.
        multiple: of samples that it is padded to.
        stacked: frames on one another, as one.
        masked: which frames are zero, and not of mean and variance: ``last``, which the end
            has a part in; ``outside``, those whose window reaches beyond the sound; or none.
    """

    name: str
    mel: LogMel
    log: Logarithm
    scaling: Scaling = field(default_factory=Scaling)
    seconds: float = 0.0
    multiple: int = 1
    stacked: int = 1
    masked: str = ""

    @property
    def n_bins(self) -> int:
        """Rows of what is fed."""
        return int(self.mel.filters.shape[1]) * self.stacked

    def of_length(self, n: int) -> LogMel:
        """The mel energies of a sound of ``n`` samples."""
        fixed = round(self.seconds * self.mel.rate)
        return replace(self.mel, n_samples=fixed or -(-n // self.multiple) * self.multiple)

    def _heard(self, n_samples: int) -> int:
        """Frames that are not masked."""
        mel = self.of_length(n_samples)
        if self.masked == "last":
            return n_samples // mel.hop
        if self.masked == "outside":
            return replace(mel, n_samples=n_samples).n_frames
        return mel.n_frames

    def finish(self, energies: Array, n_samples: int) -> Array:
        """What is fed of mel energies.

        Args:
            energies: ``(mel bins, frames)``.
            n_samples: of the sound.
        """
        logs = self.log.apply(energies)
        heard = max(1, min(self._heard(n_samples), logs.shape[1])) if self.masked else None
        values = self.scaling.apply(logs[:, :heard])
        values = np.pad(values, ((0, 0), (0, logs.shape[1] - values.shape[1])))
        if self.stacked == 1:
            return values
        n = values.shape[1] // self.stacked
        parts = values[:, : n * self.stacked].reshape(len(values), n, self.stacked)
        return np.asarray(parts.transpose(2, 0, 1).reshape(-1, n))

    def apply(self, samples: Array) -> Array:
        """What the encoder is fed, ``(mel bins, frames)``."""
        return self.finish(self.of_length(len(samples)).energies(samples), len(samples))

    @property
    def in_words(self) -> str:
        """The formula."""
        floor = f"{self.log.floor:.3g}"
        inner = f"energy + {floor}" if self.log.added else f"max(energy, {floor})"
        name = {"e": "ln", "10": "log10", "dB": "10 log10"}.get(self.log.base, "")
        text = f"{name}({inner})" if name else "energy"
        return {
            "none": text,
            "fixed": f"({text} - {self.scaling.mean:.4g}) / {self.scaling.std:.4g}",
            "bins": f"{text} of zero mean and unit variance in each mel bin",
            "bins-mean": f"{text} of zero mean in each mel bin",
            "all": f"{text} of zero mean and unit variance",
            "whisper": f"(max({text}, maximum - 8) + 4) / 4",
        }[self.scaling.kind]


def _mel(
    n_mel: int, bank: Bank, n_fft: int, *, rate: int = RATE, hop: int = HOP, **how: Any
) -> LogMel:
    filters = bank.filters(rate, n_fft, n_mel)
    return replace(LogMel(rate, n_fft, hop, 0, filters, bank=bank), **how)


HTK = Bank("htk", area=False)
KALDI = Bank("htk", area=False, low=20.0, in_mel=True)


def kaldi(n_mel: int, window: str, level: float, scaling: Scaling, stacked: int = 1) -> FrontEnd:
    """Kaldi's filter banks, as SeamlessM4T, AST and Speech2Text take them."""
    mel = _mel(
        n_mel, KALDI, 512, win=400, window=window, centred=False, frames="inside",
        preemphasis=0.97, framewise=True, remove_mean=True, level=level,
    )  # fmt: skip
    return FrontEnd("Kaldi's", mel, Logarithm(floor=KALDI_FLOOR), scaling, stacked=stacked)


def nemo(n_mel: int, preemphasis: float = 0.97) -> FrontEnd:
    """NeMo's, of Parakeet and LFM2-Audio."""
    mel = _mel(
        n_mel, SLANEY, 512, win=400, window="hann-symmetric", edge="zeros", frames="all",
        preemphasis=preemphasis,
    )  # fmt: skip
    log = Logarithm(floor=MTMD_FLOOR, added=True)
    scaling = Scaling("bins", epsilon=1e-5, after_root=True)
    return FrontEnd("NeMo's", mel, log, scaling, masked="last")


def gemma3n(n_mel: int = 128) -> FrontEnd:
    """Gemma 3n's, of the Universal Speech Model (``feature_extraction_gemma3n.py``)."""
    bank = replace(HTK, low=125.0, high=7600.0)
    mel = _mel(
        n_mel, bank, 1024, win=512, power=1.0, centred=False, frames="next",
        preemphasis=0.97, framewise=True,
    )  # fmt: skip
    return FrontEnd("Gemma 3n's", mel, Logarithm(floor=1e-5), multiple=128)


def gemma4(n_mel: int = 128, *, added: bool = True) -> FrontEnd:
    """Gemma 4's (``feature_extraction_gemma4.py``).

    Args:
        n_mel: mel bins.
        added: whether the floor is added, as Transformers does; mtmd takes it as a bound.
    """
    mel = _mel(n_mel, HTK, 512, win=320, power=1.0, edge="zeros", frames="next")
    return FrontEnd(
        "Gemma 4's", mel, Logarithm(floor=1e-3, added=added), multiple=128, masked="outside"
    )


def granite_speech(n_mel: int) -> FrontEnd:
    """Granite Speech's: torchaudio's mels in Whisper's scale, two frames stacked."""
    mel = _mel(n_mel, HTK, 512, win=400, frames="all")
    log, scaling = Logarithm("10", FLOOR), Scaling("whisper")
    return FrontEnd("Granite Speech's", mel, log, scaling, stacked=2)


def unpadded_whisper(n_mel: int) -> FrontEnd:
    """Whisper's of a sound that is not padded to 30 seconds, as Qwen3-ASR's."""
    return _whispers(n_mel, 0)


def dots_note(n_mel: int) -> FrontEnd:
    """Whisper's of chunks of 60 seconds, as dots.note's."""
    return _whispers(n_mel, 60)


def _whispers(n_mel: int, seconds: int) -> FrontEnd:
    return FrontEnd(
        "Whisper's", whisper(n_mel), Logarithm("10", FLOOR), Scaling("whisper"), seconds
    )


def mimo_audio(n_mel: int) -> FrontEnd:
    """MiMo-Audio's: torchaudio's magnitudes at 24 kHz, ``log(clip(e, 1e-7))``."""
    mel = _mel(n_mel, HTK, 960, rate=24_000, hop=240, power=1.0, frames="all")
    return FrontEnd("MiMo-Audio's", mel, Logarithm(floor=1e-7))


PROJECTORS: dict[str, Callable[[int], FrontEnd]] = {
    "lfm2a": nemo,
    "parakeet": nemo,
    "gemma4a": lambda n_mel: gemma4(n_mel, added=False),
    "granite_speech": lambda n_mel: granite_speech(n_mel // 2),
    "qwen3a": unpadded_whisper,
    "dots3note_a": dots_note,
    "mimo_audio": mimo_audio,
}
"""Of encoders in mtmd, by ``clip.projector_type``: a formula with their ``num_mel_bins``
(``mtmd_context::init_audio`` in ``tools/mtmd/mtmd.cpp``). Whisper's own are not among them."""
