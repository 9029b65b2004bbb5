"""Waveforms that pipelines feed, and what made them of a sound's samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.cli.main import cli
from ggufnorm.core.audio_report import AudioReport
from ggufnorm.errors import InputError
from ggufnorm.report.formats import render
from tests.sounds import RATE, sound, write_audio_mmproj, write_wav
from tests.waves import (
    RIGHT,
    STEREO_RATE,
    WARNINGS,
    WRONG,
    Recording,
    normalized,
    padded,
    recording,
)


def write_wave_extractor(folder: Path, **entries: object) -> Path:
    """A folder with ``preprocessor_config.json``; by default HuBERT's."""
    defaults = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "do_normalize": True, "return_attention_mask": True, "padding_value": 0.0,
        "padding_side": "right", "sampling_rate": RATE,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps({**defaults, **entries})
    (folder / "preprocessor_config.json").write_text(config, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, Path, Path]:
    """A recording, its WAV file and a folder of an extractor."""
    folder = tmp_path_factory.mktemp("waves")
    made = recording()
    wav = write_wav(folder / "s.wav", made.channels.T, STEREO_RATE, "<f4")
    return made, wav, write_wave_extractor(folder / "hf")


def feed(
    values: np.ndarray, wav: Path, folder: Path, tmp_path: Path, dtype: type | None = np.float32
) -> AudioReport:
    kept = values if values.dtype in (np.int16, np.float16) else values.astype(dtype)
    np.save(tmp_path / "array.npy", kept)
    return ggufnorm.audio(wav, processor=folder, array=tmp_path / "array.npy")


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_named(
    mistake: str, taken: tuple[Recording, Path, Path], tmp_path: Path
) -> None:
    made, wav, folder = taken
    names, pipeline = WRONG[mistake]
    report = feed(pipeline(made), wav, folder, tmp_path)
    assert [p.mistakes for p in report.pipelines] == [(), (), names]
    found = {f.name: f.severity for f in report.findings if f.pipeline == "array"}
    assert {n: found[n] for n in names} == {
        n: "warning" if n in WARNINGS else "error" for n in names
    }


@pytest.mark.parametrize("how", RIGHT)
def test_right_waveforms_give_no_mistake(
    how: str, taken: tuple[Recording, Path, Path], tmp_path: Path
) -> None:
    made, wav, folder = taken
    report = feed(RIGHT[how](made), wav, folder, tmp_path)
    assert all(p.mistakes == () and p.told for p in report.pipelines)
    assert not [f for f in report.findings if f.severity == "error"]
    if how not in ("half precision", "unbiased"):
        assert report.findings == ()
        assert report.verdict.endswith("all feed the same waveform")


def test_padding_belongs_to_a_model_without_a_mask(
    taken: tuple[Recording, Path, Path], tmp_path: Path
) -> None:
    made, wav, _ = taken
    folder = write_wave_extractor(tmp_path / "hf", return_attention_mask=False)
    values = normalized(padded(made.mono))
    report = feed(values, wav, folder, tmp_path)
    assert report.pipelines[-1].mistakes == ()
    assert "without an attention mask" in report.pipelines[-1].normalization


CODECS = {
    "EncodecFeatureExtractor": {"chunk_length_s": None},
    "DacFeatureExtractor": {"hop_length": 512},
    "SpeechT5FeatureExtractor": {"do_normalize": False},
    "Wav2Vec2FeatureExtractor": {"do_normalize": False},
}


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize(
    ("names", "scale"),
    [((), 1.0), (("levels-not-scaled",), 32768.0), (("scale-of-another",), 32768 / 32767),
     (("level",), 0.5), (("normalized",), None)],
)  # fmt: skip
def test_models_that_take_samples_as_they_are(
    kind: str, names: tuple[str, ...], scale: float | None, taken: tuple[Recording, Path, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    made, wav, _ = taken
    folder = write_wave_extractor(
        tmp_path / "hf", feature_extractor_type=kind, do_normalize=False,
        **{k: v for k, v in CODECS[kind].items() if k != "do_normalize"},
    )  # fmt: skip
    x = made.mono
    report = feed(normalized(x) if scale is None else scale * x, wav, folder, tmp_path)
    assert report.waveform is not None
    assert not report.waveform.normalized
    assert [p.mistakes for p in report.pipelines] == [(), (), names]


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_a_wav_of_another_rate_is_resampled_for_all(rate: int, tmp_path: Path) -> None:
    wav = write_wav(tmp_path / "s.wav", sound(1.0, rate), rate)
    report = ggufnorm.audio(wav, processor=write_wave_extractor(tmp_path / "hf"))
    assert [p.name for p in report.pipelines] == ["transformers", "numpy"]
    assert report.findings == ()
    assert report.pipelines[0].shape == (1, 1, RATE)


def test_part_of_a_sound_has_its_own_mean_and_variance(
    taken: tuple[Recording, Path, Path], tmp_path: Path
) -> None:
    made, wav, folder = taken
    first = made.mono[:9000]
    report = feed(normalized(first), wav, folder, tmp_path)
    assert report.pipelines[-1].mistakes == ()
    assert [f.name for f in report.findings] == ["length"]
    report = feed(normalized(made.mono)[:9000], wav, folder, tmp_path)
    assert report.pipelines[-1].mistakes == ("normalized-over-whole",)
    assert {f.severity for f in report.findings} == {"warning"}


def test_another_sound_and_silence_are_no_all_clear(
    taken: tuple[Recording, Path, Path], tmp_path: Path
) -> None:
    _, wav, folder = taken
    for values in (normalized(sound(2.0, seed=77)), np.random.default_rng(0).normal(size=32_000)):
        report = feed(values, wav, folder, tmp_path)
        assert [(f.severity, f.name) for f in report.findings] == [("warning", "not-told")]
        assert "not of this sound" in report.findings[0].message
        words = ["audio", str(wav), "--processor", str(folder), "--array", f"{tmp_path}/array.npy"]
        assert CliRunner().invoke(cli, words, standalone_mode=False).return_value == 1
    silent = write_wav(tmp_path / "silent.wav", np.zeros(RATE))
    report = ggufnorm.audio(silent, processor=folder)
    assert {f.name for f in report.findings} == {"not-told"}


def test_all_faces_tell_of_waveforms(taken: tuple[Recording, Path, Path], tmp_path: Path) -> None:
    made, wav, folder = taken
    report = feed(made.mono, wav, folder, tmp_path)
    for face in ("text", "markdown", "html"):
        text = render(report, face)
        assert "Waveforms" in text
        assert "zero mean and unit variance" in text
    document = json.loads(render(report, "json"))
    assert document["waveform"] == {"source": str(folder), "rate": RATE, "normalized": True}
    assert document["expected"] is None


def test_what_are_no_waveforms_are_input_errors(
    taken: tuple[Recording, Path, Path], tmp_path: Path
) -> None:
    _, wav, folder = taken
    for values in (np.zeros((2, 80, 300)), np.zeros(0), np.zeros((2, 2, 2, 2))):
        with pytest.raises(InputError, match="neither samples nor several inputs"):
            feed(values, wav, folder, tmp_path)
    mmproj = write_audio_mmproj(tmp_path / "m.gguf")
    with pytest.raises(InputError, match="feeds samples"):
        ggufnorm.audio(wav, processor=folder, mmproj=mmproj)
