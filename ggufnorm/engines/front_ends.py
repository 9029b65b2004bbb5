"""Front ends of Transformers' feature extractors, by what their configurations say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ggufnorm.core.front_ends import FrontEnd, Scaling, gemma3n, gemma4, kaldi, nemo


def front_end_of(extractor: Any) -> FrontEnd | None:
    """What an extractor computes, None if that is not known here.

    Raises:
        AttributeError, TypeError, ValueError, ZeroDivisionError: its configuration is
            impossible.
    """
    make = _KINDS.get(type(extractor).__name__)
    return None if make is None else make(extractor)


def _nemo(e: Any) -> FrontEnd:
    front = nemo(int(e.feature_size), float(e.preemphasis or 0.0))
    mel = replace(
        front.mel, rate=int(e.sampling_rate), n_fft=int(e.n_fft), win=int(e.win_length),
        hop=int(e.hop_length),
    )  # fmt: skip
    return replace(front, mel=mel.with_bank(mel.bank))


def _gemma(e: Any, front: FrontEnd) -> FrontEnd | None:
    if e.per_bin_mean is not None or e.per_bin_stddev is not None or e.dither:
        return None
    if e.preemphasis and not e.preemphasis_htk_flavor:
        return None
    mel = replace(
        front.mel, rate=int(e.sampling_rate), n_fft=int(e.fft_length), win=int(e.frame_length),
        hop=int(e.hop_length), preemphasis=float(e.preemphasis), framewise=True,
        level=float(e.input_scale_factor),
    )  # fmt: skip
    half = float(e.max_frequency) * 2 == mel.rate
    bank = replace(
        mel.bank, low=float(e.min_frequency), high=0.0 if half else float(e.max_frequency)
    )
    log = replace(front.log, floor=float(e.mel_floor))
    return replace(front, mel=mel.with_bank(bank), log=log)


def _seamless(e: Any) -> FrontEnd:
    scaling = Scaling("bins", epsilon=1e-7)
    return kaldi(int(e.num_mel_bins), "povey", 2.0**15, scaling, int(e.stride))


def _speech_to_text(e: Any) -> FrontEnd:
    if e.do_ceptral_normalize and e.normalize_means:
        kind = "bins" if e.normalize_vars else "bins-mean"
    else:
        kind = "none"
    return kaldi(int(e.num_mel_bins), "povey", 2.0**15, Scaling(kind, unbiased=False))


def _ast(e: Any) -> FrontEnd:
    fixed = Scaling("fixed", float(e.mean), 2 * float(e.std))
    scaling = fixed if e.do_normalize else Scaling()
    return kaldi(int(e.num_mel_bins), "hann-symmetric", 1.0, scaling)


_KINDS: dict[str, Callable[[Any], FrontEnd | None]] = {
    "ASTFeatureExtractor": _ast,
    "Gemma3nAudioFeatureExtractor": lambda e: _gemma(e, gemma3n(int(e.feature_size))),
    "Gemma4AudioFeatureExtractor": lambda e: _gemma(e, gemma4(int(e.feature_size))),
    "ParakeetFeatureExtractor": _nemo,
    "SeamlessM4TFeatureExtractor": _seamless,
    "Speech2TextFeatureExtractor": _speech_to_text,
}
