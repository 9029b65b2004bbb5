"""``audio``: run the pipelines on one sound and compare what they feed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import numpy as np
from gguf.constants import Keys

from ggufnorm.analysis.preprocessing.arrays import read_spectrograms, read_waveforms
from ggufnorm.analysis.preprocessing.audio.compare import compare
from ggufnorm.analysis.preprocessing.audio.explain import SoundDiagnoser
from ggufnorm.analysis.preprocessing.audio.verdict import Evidence, judge
from ggufnorm.analysis.preprocessing.audio.waveforms import WaveformDiagnoser
from ggufnorm.analysis.preprocessing.audio.waveforms import judge as judge_waveforms
from ggufnorm.analysis.preprocessing.pipelines import PipelineOutput, compare_with_first
from ggufnorm.core.audio_report import AudioReport, ExpectedMel, ExpectedWaveform, SoundFacts
from ggufnorm.core.log_mel import WHISPER_RATE, Array, LogMel, whisper
from ggufnorm.engines.extractors import Extractor
from ggufnorm.engines.llama.sound import capture_sound
from ggufnorm.errors import ConfigError, InputError
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.wav import Sound, read_sound

Location = str | os.PathLike[str]

# PROJECTOR_TYPE_NAMES in tools/mtmd/clip-impl.h, those of encoders that
# mtmd_context::init_audio in tools/mtmd/mtmd.cpp gives Whisper's preprocessing.
_WHISPERS = frozenset(
    {"ultravox", "qwen2a", "qwen2.5o", "qwen3a", "glma", "voxtral", "meralion", "musicflamingo"}
)
_MOST_BINS = 1024


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
    if loaded is not None and loaded.feeds_waveforms:
        return _of_waveforms(original, loaded, mmproj, array)
    of_file = None if mmproj is None else _file_facts(local_path(mmproj))
    formula = loaded.formula if loaded else _whisper_of(of_file, mmproj)
    rate = loaded.rate if loaded else WHISPER_RATE
    diagnoser = SoundDiagnoser(original, rate, formula)
    outputs = _outputs(diagnoser.samples, rate, formula, loaded, mmproj, array)
    diagnoses = [diagnoser.diagnose(output) for output in outputs]
    pipelines = tuple(d.pipeline for d in diagnoses)
    comparisons = compare_with_first(diagnoses, partial(compare, diagnoser=diagnoser))
    source = loaded.path if loaded else os.fspath(mmproj or "")
    expected = None if formula is None else _expected(source, formula)
    n_mel = of_file[1] if of_file else None
    findings, verdict = judge(Evidence(expected, pipelines, comparisons, n_mel))
    return AudioReport(
        sound=_facts(original),
        expected=expected,
        pipelines=pipelines,
        comparisons=comparisons,
        findings=findings,
        verdict=verdict,
    )


def _of_waveforms(
    original: Sound, loaded: Extractor, mmproj: Location | None, array: Location | None
) -> AudioReport:
    """The report of a model that takes samples, not a spectrogram of them."""
    if mmproj is not None:
        raise InputError(
            f"{loaded.path}: {loaded.name} feeds samples, {os.fspath(mmproj)} takes what llama.cpp"
            " makes of them: give the folder that the encoder was converted from"
        )
    expected = loaded.waveform
    diagnoser = WaveformDiagnoser(original, expected)
    outputs = [
        PipelineOutput("transformers", loaded.path, [loaded.feed(diagnoser.samples)]),
        PipelineOutput(
            "numpy",
            "(sample - mean) / sqrt(variance + 1e-7)" if expected.normalized else "samples",
            [expected.apply(diagnoser.samples).astype(np.float32)],
        ),
    ]
    if array is not None:
        values, exchanged = read_waveforms(array)
        outputs.append(PipelineOutput("array", os.fspath(array), list(values), exchanged=exchanged))
    diagnoses = [diagnoser.diagnose(output) for output in outputs]
    comparisons, findings, verdict = judge_waveforms(diagnoses)
    return AudioReport(
        sound=_facts(original),
        expected=None,
        pipelines=tuple(d.pipeline for d in diagnoses),
        comparisons=comparisons,
        findings=findings,
        verdict=verdict,
        waveform=ExpectedWaveform(loaded.path, expected.rate, expected.normalized),
    )


def _file_facts(path: Location) -> tuple[str, int | None]:
    """An encoder's projector, and its mel bins if it says a number of them."""
    with open_model(path) as file:
        get = file.metadata.get
        projector = get(Keys.ClipAudio.PROJECTOR_TYPE) or get(Keys.Clip.PROJECTOR_TYPE)
        n_mel = get(Keys.ClipAudio.NUM_MEL_BINS)
    usable = n_mel if isinstance(n_mel, int) and 0 < n_mel <= _MOST_BINS else None
    return str(projector), usable


def _whisper_of(of_file: tuple[str, int | None] | None, mmproj: Location | None) -> LogMel:
    projector, n_mel = of_file or ("", None)
    if projector not in _WHISPERS:
        raise InputError(
            f"{mmproj}: what an encoder of projector {projector} expects is not known here: give"
            " --processor"
        )
    if n_mel is None:
        raise InputError(f"{mmproj}: {Keys.ClipAudio.NUM_MEL_BINS} is no number of mel bins")
    return whisper(n_mel)


def _outputs(
    samples: Array,
    rate: int,
    formula: LogMel | None,
    loaded: Extractor | None,
    mmproj: Location | None,
    array: Location | None,
) -> Iterator[PipelineOutput]:
    n_mel = 0
    if loaded is not None:
        made = loaded.feed(samples)
        n_mel = len(made)
        yield PipelineOutput("transformers", loaded.path, [made])
    if formula is not None:
        n_mel = formula.shape[0]
        made = formula.apply(samples).astype(np.float32)
        yield PipelineOutput("numpy", "(max(log10 energy, maximum - 8) + 4) / 4", [made])
    if mmproj is not None:
        path = local_path(mmproj)
        yield PipelineOutput("llama.cpp", os.fspath(path), capture_sound(path, samples, rate))
    if array is not None:
        values, exchanged = read_spectrograms(array, n_mel)
        yield PipelineOutput("array", os.fspath(array), list(values), exchanged=exchanged)


def _facts(sound: Sound) -> SoundFacts:
    n_channels, n_samples = sound.channels.shape
    peak = float(np.abs(sound.channels).max())
    return SoundFacts(sound.path, sound.rate, n_channels, n_samples / sound.rate, peak)


def _expected(source: str, formula: LogMel) -> ExpectedMel:
    return ExpectedMel(source, formula.rate, *formula.shape, formula.n_fft, formula.hop)
