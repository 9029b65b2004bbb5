"""Whisper's spectrograms with several mistakes at once, in batches, and apart from padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.cli.main import cli
from ggufnorm.core.audio_report import AudioReport
from ggufnorm.core.log_mel import scaled
from ggufnorm.core.mel_filters import Bank
from tests.frameworks.test_audio import decades
from tests.sounds import sound, write_extractor, write_wav
from tests.unit.core.test_log_mel import WHISPER, loud


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A loud sound of 2 s, and Whisper's extractor."""
    folder = tmp_path_factory.mktemp("spectrograms")
    wav = write_wav(folder / "loud.wav", loud(), dtype="<f4")
    return wav, write_extractor(folder / "hf")


def feed(values: np.ndarray, files: tuple[Path, Path], tmp_path: Path) -> AudioReport:
    np.save(tmp_path / "a.npy", values.astype(np.float32))
    return ggufnorm.audio(files[0], processor=files[1], array=tmp_path / "a.npy")


HTK = WHISPER.with_bins(80, htk=True)

PAIRS = {
    "HTK, no norm, no window": (
        {"mel-scale-of-another", "window-missing"},
        replace(HTK, window="none").apply,
    ),
    "no norm, magnitudes": (
        {"mel-not-normalized", "magnitudes"},
        replace(WHISPER.with_bins(80, area=False), power=1.0).apply,
    ),
    "HTK, not centred": (
        {"mel-scale-of-another", "not-centred"},
        replace(HTK, centred=False).apply,
    ),
    "torchaudio's defaults, ln": (
        {"mel-scale-of-another", "mel-not-normalized", "not-scaled", "natural-logarithm",
         "clamp-missing"},
        lambda x: np.log(
            np.maximum(WHISPER.with_bins(80, htk=True, area=False).energies(x), 1e-10)
        ),
    ),
    "Hamming, pre-emphasis, not scaled": (
        {"window-of-another", "pre-emphasis", "not-scaled"},
        lambda x: clamped_of(replace(WHISPER, window="hamming"))(
            np.append(x[:1], x[1:] - 0.97 * x[:-1])
        ),
    ),
    "int16, HTK": (
        {"levels-not-scaled", "mel-scale-of-another"},
        lambda x: HTK.apply(32768 * x),
    ),
    "zeros at the start, HTK": (
        {"edges-of-another", "mel-scale-of-another"},
        replace(HTK, edge="zeros").apply,
    ),
}  # fmt: skip


def clamped_of(formula: object) -> object:
    def made(x: np.ndarray) -> np.ndarray:
        logs = np.log10(np.maximum(formula.energies(x), 1e-10))
        return np.maximum(logs, logs.max() - 8)

    return made


@pytest.mark.parametrize("pair", PAIRS)
def test_several_mistakes_are_all_named(
    pair: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    names, pipeline = PAIRS[pair]
    report = feed(pipeline(loud()), files, tmp_path)
    assert set(report.pipelines[-1].mistakes) == names


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("edges-of-another", replace(WHISPER, edge="zeros")),
        ("edges-of-another", replace(WHISPER, edge="repeat")),
        ("window-symmetry", replace(WHISPER, window="hann-symmetric")),
    ],
)
def test_small_differences_are_warnings(
    name: str, formula: object, files: tuple[Path, Path], tmp_path: Path
) -> None:
    report = feed(formula.apply(loud()), files, tmp_path)
    assert [(f.severity, f.name) for f in report.findings] == [("warning", name)]


def test_filters_from_20_hz_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    formula = WHISPER.with_bank(Bank(low=20.0))
    report = feed(formula.apply(loud()), files, tmp_path)
    assert report.pipelines[-1].mistakes == ("mel-range",)


# -- Padding -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.5, "noise"])
def test_padding_is_told_apart_from_the_sound(
    value: float | str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for names, values in (
        ((), WHISPER.apply(loud())),
        (("mel-scale-of-another",), HTK.apply(loud())),
    ):
        rest = rng.normal(size=(80, 2790)) if value == "noise" else value
        values[:, 210:] = rest
        report = feed(values, files, tmp_path)
        assert report.pipelines[-1].mistakes == (*names, "padding-of-another")


# -- Batches -----------------------------------------------------------------------------


def test_the_sound_is_found_in_a_batch(files: tuple[Path, Path], tmp_path: Path) -> None:
    others = [WHISPER.apply(2 * sound(seed=seed)) for seed in (7,)]
    report = feed(np.stack([*others, WHISPER.apply(loud())]), files, tmp_path)
    assert report.findings == ()
    assert report.pipelines[-1].shape == (2, 80, 3000)
    report = feed(np.stack([*others, HTK.apply(loud())]), files, tmp_path)
    assert report.pipelines[-1].mistakes == ("mel-scale-of-another",)


def test_a_maximum_of_the_batch_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    both = np.stack([decades(loud()), decades(300 * loud())])
    values = (np.maximum(both, both.max() - 8) + 4) / 4
    report = feed(values, files, tmp_path)
    assert report.pipelines[-1].mistakes == ("clamp-of-batch",)
    apart = np.stack([scaled(10**logs) for logs in both])
    assert feed(apart, files, tmp_path).findings == ()


def test_not_of_this_sound_is_a_warning_and_no_all_clear(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    report = feed(WHISPER.apply(loud()[::-1]), files, tmp_path)
    assert [(f.severity, f.name) for f in report.findings] == [("warning", "not-told")]
    words = ["audio", str(files[0]), "--processor", str(files[1]), "--array",
             str(tmp_path / "a.npy")]  # fmt: skip
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.return_value == 1
    assert "cannot be told" in done.stdout
