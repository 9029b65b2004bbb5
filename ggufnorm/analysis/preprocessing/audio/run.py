"""``audio``: run the pipelines on one sound and compare what they feed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ggufnorm.analysis.preprocessing.arrays import read_spectrograms, read_waveforms
from ggufnorm.analysis.preprocessing.audio.compare import compare
from ggufnorm.analysis.preprocessing.audio.explain import SoundDiagnoser
from ggufnorm.analysis.preprocessing.audio.verdict import Evidence, judge
from ggufnorm.analysis.preprocessing.audio.waveforms import WaveformDiagnoser
from ggufnorm.analysis.preprocessing.audio.waveforms import judge as judge_waveforms
from ggufnorm.analysis.preprocessing.pipelines import PipelineOutput, compare_with_first
from ggufnorm.core.audio_report import AudioReport, ExpectedMel, ExpectedWaveform, SoundFacts
from ggufnorm.core.front_ends import PROJECTORS, FrontEnd
from ggufnorm.core.log_mel import WHISPER_RATE, WHISPERS_FORMULA, Array, LogMel, whisper
from ggufnorm.core.waveform import PROJECTORS as WAVEFORM_PROJECTORS
from ggufnorm.core.waveform import Waveform
from ggufnorm.engines.extractors import Extractor
from ggufnorm.engines.llama.sound import capture_sound
from ggufnorm.errors import ConfigError, InputError
from ggufnorm.formats.gguf_constants import Keys
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.wav import Sound, read_sound

Location = str | os.PathLike[str]

# PROJECTOR_TYPE_NAMES in tools/mtmd/clip-impl.h, those of encoders that
# mtmd_context::init_audio in tools/mtmd/mtmd.cpp gives Whisper's preprocessing.
_WHISPERS = frozenset(
    {"ultravox", "qwen2a", "qwen2.5o", "glma", "voxtral", "meralion", "musicflamingo"}
)
_MOST_BINS = 1024


@dataclass(frozen=True, eq=False)
class _Target:
    """What a model should be fed.

    Attributes:
        source: where that is taken from.
        rate: of the samples, in Hz.
        formula: of a spectrogram, None if it is not known.
        waveform: of samples, None for a spectrogram.
    """

    source: str
    rate: int
    formula: LogMel | FrontEnd | None = None
    waveform: Waveform | None = None


@dataclass(frozen=True)
class _EncoderFile:
    """An encoder's file, its projector, and its mel bins if it says a number of them."""

    path: str
    projector: str
    n_mel: int | None


def audio(
    sound: Location,
    *,
    processor: Location | None = None,
    mmproj: Location | None = None,
    array: Location | None = None,
) -> AudioReport:
    """Compare what a feature extractor, NumPy, llama.cpp and a user's own pipeline feed.

    All are given the mean of the sound's channels, at the rate that the model takes.

    Args:
        sound: a WAV file of 16 or 32 bits, or of floats.
        processor: folder of a Hugging Face feature extractor (``preprocessor_config.json``).
        mmproj: an audio encoder's GGUF file; llama.cpp's input is captured inside mtmd.
        array: a ``.npy`` file with what a pipeline feeds of the sound.

    Raises:
        ConfigError: neither a processor nor an encoder says what is expected.
        InputError: something cannot be read.
        MissingPackageError: Transformers is not installed.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp does not load the encoder, or crashes with it.
    """
    if processor is None and mmproj is None:
        raise ConfigError("what the model expects is not known: give --processor or --mmproj")
    original = read_sound(sound)
    loaded = None if processor is None else Extractor(processor)
    encoder = None if mmproj is None else _read_encoder(mmproj)
    target = _of_processor(loaded) if loaded else _of_encoder(encoder)
    if target.waveform is not None:
        return _waveforms(original, target, target.waveform, loaded, encoder, array)
    diagnoser = SoundDiagnoser(original, target.rate, target.formula)
    outputs = _outputs(diagnoser.samples, target, loaded, encoder, array)
    diagnoses = [diagnoser.diagnose(output) for output in outputs]
    pipelines = tuple(d.pipeline for d in diagnoses)
    comparisons = compare_with_first(diagnoses, partial(compare, diagnoser=diagnoser))
    expected = _expected(target, len(diagnoser.samples))
    n_mel = encoder.n_mel if encoder else None
    findings, verdict = judge(Evidence(expected, pipelines, comparisons, n_mel))
    return AudioReport(
        sound=_facts(original),
        expected=expected,
        pipelines=pipelines,
        comparisons=comparisons,
        findings=findings,
        verdict=verdict,
    )


def _waveforms(
    original: Sound,
    target: _Target,
    expected: Waveform,
    loaded: Extractor | None,
    encoder: _EncoderFile | None,
    array: Location | None,
) -> AudioReport:
    """The report of a model that takes samples, not a spectrogram of them."""
    if loaded and encoder and encoder.projector not in WAVEFORM_PROJECTORS:
        raise InputError(
            f"{loaded.path}: {loaded.name} feeds samples, {encoder.path} takes a spectrogram: give"
            " the folder that the encoder was converted from"
        )
    diagnoser = WaveformDiagnoser(original, expected)
    outputs = list(_waveform_outputs(diagnoser.samples, expected, loaded, encoder, array))
    diagnoses = [diagnoser.diagnose(output) for output in outputs]
    comparisons, findings, verdict = judge_waveforms(diagnoses, len(diagnoser.samples))
    return AudioReport(
        sound=_facts(original),
        expected=None,
        pipelines=tuple(d.pipeline for d in diagnoses),
        comparisons=comparisons,
        findings=findings,
        verdict=verdict,
        waveform=ExpectedWaveform(target.source, expected.rate, expected.normalized),
    )


def _waveform_outputs(
    samples: Array,
    expected: Waveform,
    loaded: Extractor | None,
    encoder: _EncoderFile | None,
    array: Location | None,
) -> Iterator[PipelineOutput]:
    if loaded is not None:
        yield PipelineOutput("transformers", loaded.path, [loaded.feed(samples)])
    how = "(sample - mean) / sqrt(variance + 1e-7)" if expected.normalized else "samples"
    yield PipelineOutput("numpy", how, [expected.apply(samples).astype(np.float32)])
    if encoder is not None:
        runs = capture_sound(encoder.path, samples, expected.rate)
        # mtmd feeds rows of samples as columns.
        made = np.concatenate([run.T.ravel() for run in runs])
        yield PipelineOutput("llama.cpp", encoder.path, [made])
    if array is not None:
        values, exchanged = read_waveforms(array, expected.frame)
        yield PipelineOutput("array", os.fspath(array), list(values), exchanged=exchanged)


def _read_encoder(mmproj: Location) -> _EncoderFile:
    path = local_path(mmproj)
    with open_model(path) as file:
        get = file.metadata.get
        projector = get(Keys.ClipAudio.PROJECTOR_TYPE) or get(Keys.Clip.PROJECTOR_TYPE)
        n_mel = get(Keys.ClipAudio.NUM_MEL_BINS)
    usable = n_mel if isinstance(n_mel, int) and 0 < n_mel <= _MOST_BINS else None
    return _EncoderFile(os.fspath(path), str(projector), usable)


def _of_processor(loaded: Extractor) -> _Target:
    if loaded.feeds_waveforms:
        return _Target(loaded.path, loaded.rate, waveform=loaded.waveform)
    return _Target(loaded.path, loaded.rate, loaded.formula)


def _of_encoder(encoder: _EncoderFile | None) -> _Target:
    assert encoder is not None
    path, projector, n_mel = encoder.path, encoder.projector, encoder.n_mel
    if projector in WAVEFORM_PROJECTORS:
        waveform = WAVEFORM_PROJECTORS[projector]
        return _Target(path, waveform.rate, waveform=waveform)
    if projector not in _WHISPERS and projector not in PROJECTORS:
        raise InputError(
            f"{path}: what an encoder of projector {projector} expects is not known here: give"
            " --processor"
        )
    if n_mel is None:
        raise InputError(f"{path}: {Keys.ClipAudio.NUM_MEL_BINS} is no number of mel bins")
    if projector in _WHISPERS:
        return _Target(path, WHISPER_RATE, whisper(n_mel))
    front = PROJECTORS[projector](n_mel)
    return _Target(path, front.mel.rate, front)


def _outputs(
    samples: Array,
    target: _Target,
    loaded: Extractor | None,
    encoder: _EncoderFile | None,
    array: Location | None,
) -> Iterator[PipelineOutput]:
    formula, n_mel = target.formula, 0
    if loaded is not None:
        made = loaded.feed(samples)
        n_mel = len(made)
        yield PipelineOutput("transformers", loaded.path, [made])
    if formula is not None:
        words = formula.in_words if isinstance(formula, FrontEnd) else WHISPERS_FORMULA
        made = formula.apply(samples).astype(np.float32)
        n_mel = len(made)
        yield PipelineOutput("numpy", words, [made])
    if encoder is not None:
        runs = capture_sound(encoder.path, samples, target.rate)
        yield PipelineOutput("llama.cpp", encoder.path, runs)
    if array is not None:
        values, exchanged = read_spectrograms(array, n_mel)
        yield PipelineOutput("array", os.fspath(array), list(values), exchanged=exchanged)


def _facts(sound: Sound) -> SoundFacts:
    n_channels, n_samples = sound.channels.shape
    peak = float(np.abs(sound.channels).max())
    return SoundFacts(sound.path, sound.rate, n_channels, n_samples / sound.rate, peak)


def _expected(target: _Target, n_samples: int) -> ExpectedMel | None:
    formula = target.formula
    if formula is None:
        return None
    if isinstance(formula, LogMel):
        return ExpectedMel(target.source, formula.rate, *formula.shape, formula.n_fft, formula.hop)
    mel = formula.of_length(n_samples)
    n_frames = mel.n_frames // formula.stacked
    return ExpectedMel(
        target.source, mel.rate, formula.n_bins, n_frames, mel.width, mel.hop,
        formula=formula.in_words, fixed=False,
    )  # fmt: skip
