"""What pipelines feed audio encoders, and what made it of a sound."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import ggufnorm
from ggufnorm.cli.main import cli
from ggufnorm.core.audio_report import AudioReport
from ggufnorm.core.log_mel import mel_filters, scaled, whisper
from ggufnorm.engines.extractors import Extractor
from ggufnorm.engines.llama.sound import capture_sound
from ggufnorm.errors import ConfigError, EngineError, InputError, MissingPackageError
from tests.pages import check_html
from tests.sounds import RATE, sound, write_audio_mmproj, write_extractor, write_wav
from tests.unit.core.test_log_mel import WHISPER, loud
from tests.vision import write_mmproj

F32_NOISE = 1e-6
"""Relative L2 distance of float32 from float64: 1e-8 to 1e-7 was measured."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Feature extractors and encoders of 80 and 128 mel bins, and a loud sound of 2 s."""
    folder = tmp_path_factory.mktemp("audio")
    return {
        "hf": write_extractor(folder / "hf"),
        "hf128": write_extractor(folder / "hf128", feature_size=128),
        "mmproj": write_audio_mmproj(folder / "mmproj.gguf"),
        "mmproj128": write_audio_mmproj(folder / "mmproj128.gguf", 128),
        "loud": write_wav(folder / "loud.wav", loud(), dtype="<f4"),
    }


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# -- The formula -------------------------------------------------------------------------


@pytest.mark.parametrize("n_mel", [80, 128])
@pytest.mark.parametrize("amplitude", [1.0, 0.01])
def test_numpy_gives_what_transformers_gives(n_mel: int, amplitude: float, tmp_path: Path) -> None:
    extractor = Extractor(write_extractor(tmp_path, feature_size=n_mel))
    formula = extractor.formula
    assert formula is not None
    samples = amplitude * sound(3.3)
    made = extractor.feed(samples)
    assert made.shape == formula.shape == (n_mel, 3000)
    assert distance(formula.apply(samples), made) < F32_NOISE
    assert np.abs(mel_filters(RATE, 400, n_mel) - formula.filters).max() < 1e-12


def test_filter_banks_of_other_kinds_are_those_of_transformers() -> None:
    from transformers.audio_utils import mel_filter_bank

    for scale, norm in (("htk", None), ("htk", "slaney"), ("slaney", None)):
        theirs = mel_filter_bank(257, 64, 0.0, 8000.0, RATE, norm, scale)
        ours = mel_filters(RATE, 512, 64, htk=scale == "htk", area=norm is not None)
        assert np.abs(ours - theirs).max() < 1e-12


# -- llama.cpp ---------------------------------------------------------------------------


@pytest.mark.parametrize("projector", ["qwen2a", "ultravox"])
@pytest.mark.parametrize("n_mel", [80, 128])
def test_llama_cpp_agrees_on_a_loud_sound(projector: str, n_mel: int, tmp_path: Path) -> None:
    mmproj = write_audio_mmproj(tmp_path / "m.gguf", n_mel, projector)
    (made,) = capture_sound(mmproj, loud(), RATE)
    assert made.shape == (n_mel, 3000)
    assert distance(made, whisper(n_mel).apply(loud())) < F32_NOISE


def test_llama_cpp_does_not_pad_for_qwen3_asr(files: dict[str, Path], tmp_path: Path) -> None:
    mmproj = write_audio_mmproj(tmp_path / "m.gguf", projector="qwen3a")
    report = ggufnorm.audio(files["loud"], processor=files["hf"], mmproj=mmproj)
    assert report.pipelines[2].shape == (1, 80, 300)
    assert [(f.severity, f.name) for f in report.findings] == [("warning", "length")]
    assert report.comparisons[1].rel_l2 is not None
    assert report.comparisons[1].rel_l2 < F32_NOISE


def test_llama_cpps_least_energy_shows_in_a_quiet_sound(files: dict[str, Path]) -> None:
    """``filter_params::mel_floor`` is 2^-24 where Whisper's is 1e-10."""
    quiet = 0.01 * sound()
    (made,) = capture_sound(files["mmproj"], quiet, RATE)
    energies = whisper(80).energies(quiet)
    assert distance(made, scaled(energies)) > 0.1
    assert distance(made, scaled(np.maximum(energies, 2.0**-24))) < F32_NOISE


def test_llama_cpp_cuts_a_long_sound_and_clamps_by_the_whole(tmp_path: Path) -> None:
    samples = loud(34)
    samples[: 31 * RATE] *= 0.02
    path = write_wav(tmp_path / "long.wav", samples, dtype="<f4")
    report = ggufnorm.audio(
        path,
        processor=write_extractor(tmp_path / "hf"),
        mmproj=write_audio_mmproj(tmp_path / "m.gguf"),
    )
    assert [p.shape for p in report.pipelines] == [(1, 80, 3000), (1, 80, 3000), (2, 80, 3000)]
    assert [f.severity for f in report.findings] == ["warning"]
    assert report.findings[0].name == "clamp-of-whole"
    assert report.pipelines[2].residual is not None
    assert report.pipelines[2].residual < 1e-5


def test_files_without_an_audio_encoder_are_told(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no audio encoder"):
        capture_sound(write_mmproj(tmp_path / "vision.gguf"), loud(), RATE)
    with pytest.raises(InputError, match="takes sounds of 16,000 Hz, not 8,000 Hz"):
        capture_sound(write_audio_mmproj(tmp_path / "m.gguf"), loud(), 8000)
    with pytest.raises(EngineError, match="cannot load"):
        capture_sound(sample, loud(), RATE)


# -- Sound pipelines ---------------------------------------------------------------------


@pytest.mark.parametrize(("hf", "mmproj"), [("hf", "mmproj"), ("hf128", "mmproj128")])
def test_a_sound_conversion_gives_no_finding(hf: str, mmproj: str, files: dict[str, Path]) -> None:
    report = ggufnorm.audio(files["loud"], processor=files[hf], mmproj=files[mmproj])
    assert [p.name for p in report.pipelines] == ["transformers", "numpy", "llama.cpp"]
    assert report.findings == ()
    assert all(p.mistakes == () and (p.gain, p.offset) == (0.25, 1.0) for p in report.pipelines)
    assert all(c.rel_l2 is not None and c.rel_l2 < F32_NOISE for c in report.comparisons)
    assert report.verdict.endswith("all feed the same spectrogram")


def test_without_a_processor_the_encoder_says_what_is_expected(files: dict[str, Path]) -> None:
    report = ggufnorm.audio(files["loud"], mmproj=files["mmproj128"])
    assert [p.name for p in report.pipelines] == ["numpy", "llama.cpp"]
    assert report.expected is not None
    assert (report.expected.n_mel, report.expected.n_frames) == (128, 3000)
    assert report.findings == ()


def test_an_encoder_of_other_mel_bins_is_an_error(files: dict[str, Path]) -> None:
    report = ggufnorm.audio(files["loud"], processor=files["hf"], mmproj=files["mmproj128"])
    errors = [(f.name, f.pipeline) for f in report.findings if f.severity == "error"]
    assert errors == [("mel-bins-differ", None), ("mel-bins", "llama.cpp")]
    assert report.comparisons[1].explanation == "80 and 128 mel bins"
    assert report.comparisons[1].rel_l2 is None


def test_a_stereo_sound_of_another_rate_is_mixed_and_resampled_for_all(
    files: dict[str, Path], tmp_path: Path
) -> None:
    both = np.stack([1.5 * sound(1.5, 44_100), 1.5 * sound(1.5, 44_100, seed=5)], axis=1)
    path = write_wav(tmp_path / "stereo.wav", both, 44_100, "<f4")
    report = ggufnorm.audio(path, processor=files["hf"], mmproj=files["mmproj"])
    assert (report.sound.rate, report.sound.channels, report.sound.seconds) == (44_100, 2, 1.5)
    assert [p.mistakes for p in report.pipelines[:2]] == [(), ()]
    assert not any(f.severity == "error" for f in report.findings)


def test_an_extractor_whose_formula_is_not_known_is_compared_as_a_tensor(
    files: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_extractor(
        tmp_path / "other", feature_extractor_type="LasrFeatureExtractor", win_length=400,
    )  # fmt: skip
    made = Extractor(folder).feed(loud())
    np.save(tmp_path / "array.npy", 2 * made + 1)
    report = ggufnorm.audio(files["loud"], processor=folder, array=tmp_path / "array.npy")
    assert [p.name for p in report.pipelines] == ["transformers", "array"]
    assert report.expected is None
    assert [(f.severity, f.name) for f in report.findings] == [("warning", "sounds-differ")]
    assert "2 times the first and 1 leave" in report.findings[0].message


# -- A user's own array ------------------------------------------------------------------


def decades(x: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(WHISPER.energies(x), 1e-10))


def clamped(x: np.ndarray) -> np.ndarray:
    return np.maximum(decades(x), decades(x).max() - 8)


def in_natural_logarithms(x: np.ndarray) -> np.ndarray:
    logs = np.log(np.maximum(WHISPER.energies(x), 1e-10))
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


Pipeline = Callable[[np.ndarray], np.ndarray]

MISTAKES: dict[str, tuple[tuple[str, ...], Pipeline]] = {
    "no (x + 4) / 4": (("not-scaled",), clamped),
    "twice": (("scaled-twice",), lambda x: (WHISPER.apply(x) + 4) / 4),
    "no + 4": (("offset-missing",), lambda x: clamped(x) / 4),
    "no / 4": (("divisor-missing",), lambda x: clamped(x) + 4),
    "ln": (("natural-logarithm",), in_natural_logarithms),
    "no clamp": (("clamp-missing",), lambda x: (decades(x) + 4) / 4),
    "no logarithm": (("logarithm-missing",), WHISPER.energies),
    "dB": (("not-scaled", "decibels"), lambda x: 10 * clamped(x)),
    "dB below the top": (("decibels",), lambda x: 10 * (clamped(x) - clamped(x).max())),
    "log of librosa's melspectrogram": (
        ("not-scaled", "natural-logarithm", "clamp-missing"),
        lambda x: np.log(np.maximum(WHISPER.energies(x), 1e-10)),
    ),
    "HTK": (("mel-scale-of-another",), WHISPER.with_bins(80, htk=True).apply),
    "no norm": (("mel-not-normalized",), WHISPER.with_bins(80, area=False).apply),
    "magnitudes": (("magnitudes",), replace(WHISPER, power=1.0).apply),
    "center=False": (("not-centred",), replace(WHISPER, centred=False).apply),
    "Hamming": (("window-of-another",), replace(WHISPER, window="hamming").apply),
    "no window": (("window-missing",), replace(WHISPER, window="none").apply),
    "int16": (("levels-not-scaled",), lambda x: WHISPER.apply(np.round(32768 * x))),
    "pre-emphasis": (
        ("pre-emphasis",),
        lambda x: WHISPER.apply(np.append(x[0], x[1:] - 0.97 * x[:-1])),
    ),
    "HTK and ln": (
        ("mel-scale-of-another", "not-scaled", "natural-logarithm", "clamp-missing"),
        lambda x: np.log(np.maximum(WHISPER.with_bins(80, htk=True).energies(x), 1e-10)),
    ),
    "128 bins": (("mel-bins",), whisper(128).apply),
    "128 bins in ln": (
        ("mel-bins", "not-scaled", "natural-logarithm", "clamp-missing"),
        lambda x: np.log(np.maximum(whisper(128).energies(x), 1e-10)),
    ),
    "transposed": (("axes-exchanged",), lambda x: WHISPER.apply(x).T),
    "least energy of 1e-5": (
        ("clamp-of-another",),
        lambda x: (np.log10(np.maximum(WHISPER.energies(x), 1e-5)) + 4) / 4,
    ),
    "other constants": (("constants-unknown",), lambda x: 0.3 * decades(x) + 0.7),
    "constant": (("constant",), lambda x: np.zeros((80, 3000))),
    "NaN": (("non-finite",), lambda x: np.where(np.arange(3000) == 7, np.nan, WHISPER.apply(x))),
}


def feed(
    files: dict[str, Path], tmp_path: Path, values: np.ndarray, path: Path | None = None
) -> AudioReport:
    """Write an array down, and compare it with Transformers' features."""
    np.save(tmp_path / "array.npy", values.astype(np.float32))
    wav = path or files["loud"]
    return ggufnorm.audio(wav, processor=files["hf"], array=tmp_path / "array.npy")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str, files: dict[str, Path], tmp_path: Path) -> None:
    names, pipeline = MISTAKES[mistake]
    report = feed(files, tmp_path, pipeline(loud()))
    assert [(f.severity, f.name, f.pipeline) for f in report.findings] == [
        ("error", name, "array") for name in names
    ]
    assert report.verdict.startswith("Not as expected: array")


@pytest.mark.parametrize("batched", [True, False])
def test_an_array_that_is_right_gives_no_finding(
    batched: bool, files: dict[str, Path], tmp_path: Path
) -> None:
    values = WHISPER.apply(loud())
    report = feed(files, tmp_path, values[None] if batched else values)
    assert report.findings == ()


def test_samples_that_were_not_resampled_are_told(files: dict[str, Path], tmp_path: Path) -> None:
    samples = sound(2, 22_050)
    path = write_wav(tmp_path / "s.wav", samples, 22_050, "<f4")
    report = feed(files, tmp_path, WHISPER.apply(samples), path)
    assert [(f.severity, f.name) for f in report.findings] == [("error", "not-resampled")]
    assert "22,050 Hz were taken for ones of 16,000 Hz" in report.findings[0].message


def test_one_channel_and_another_level_are_warnings(files: dict[str, Path], tmp_path: Path) -> None:
    both = np.stack([sound(), sound(seed=3)])
    path = write_wav(tmp_path / "s.wav", both.T, dtype="<f4")
    report = feed(files, tmp_path, WHISPER.apply(both[0]), path)
    assert [(f.severity, f.name) for f in report.findings] == [("warning", "one-channel")]
    report = feed(files, tmp_path, WHISPER.apply(loud() / 4))
    assert [(f.severity, f.name) for f in report.findings] == [("warning", "level")]
    assert "12 dB quieter" in report.findings[0].message


def test_a_sound_that_was_not_padded_is_a_warning(files: dict[str, Path], tmp_path: Path) -> None:
    short = replace(WHISPER, n_samples=2 * RATE).apply(loud())
    report = feed(files, tmp_path, short)
    assert report.pipelines[-1].shape == (1, 80, 200)
    assert [(f.severity, f.name) for f in report.findings] == [("warning", "length")]
    assert report.comparisons[-1].rel_l2 is not None
    assert report.comparisons[-1].rel_l2 < F32_NOISE


def test_mistakes_are_named_where_the_sound_was_resampled_in_another_way(
    files: dict[str, Path], tmp_path: Path
) -> None:
    samples = sound(2, 44_100)
    path = write_wav(tmp_path / "s.wav", samples, 44_100, "<f4")
    linear = np.interp(np.arange(2 * RATE) / RATE, np.arange(len(samples)) / 44_100, samples)
    report = feed(files, tmp_path, WHISPER.apply(linear), path)
    assert [(f.severity, f.name) for f in report.findings] == [("warning", "sounds-differ")]
    for mistake in ("ln", "HTK", "no (x + 4) / 4"):
        names, pipeline = MISTAKES[mistake]
        report = feed(files, tmp_path, pipeline(linear), path)
        assert [f.name for f in report.findings if f.severity == "error"] == list(names)
        assert 0.01 < (report.pipelines[-1].residual or 0) < 0.1


@pytest.mark.parametrize("what", ["hiss", "late", "8 bits", "16 bits", "a hair louder"])
def test_a_sound_that_differs_a_little_is_no_mistake(
    what: str, files: dict[str, Path], tmp_path: Path
) -> None:
    samples = loud()
    noise = np.random.default_rng(0).normal(scale=0.01 * samples.std(), size=len(samples))
    values = {
        "hiss": WHISPER.apply(samples + noise),
        "late": WHISPER.apply(np.roll(samples, 80)),
        "8 bits": WHISPER.apply(np.round(127 * samples) / 127),
        "16 bits": WHISPER.apply(np.round(32767 * samples) / 32767),
        "a hair louder": WHISPER.apply(1.003 * samples),
    }[what]
    report = feed(files, tmp_path, values)
    (found,) = report.findings
    assert (found.severity, found.pipeline) == ("warning", "array")
    assert found.name in ("sounds-differ", "not-told")


def test_silence_tells_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    path = write_wav(tmp_path / "s.wav", np.zeros(RATE))
    report = ggufnorm.audio(path, processor=files["hf"], mmproj=files["mmproj"])
    assert {(f.severity, f.name) for f in report.findings} == {("warning", "not-told")}


def test_another_sound_and_too_few_frames_tell_nothing(
    files: dict[str, Path], tmp_path: Path
) -> None:
    report = feed(files, tmp_path, np.random.default_rng(0).normal(size=(80, 3000)))
    assert [(f.severity, f.name) for f in report.findings] == [("warning", "not-told")]
    report = feed(files, tmp_path, WHISPER.apply(loud())[:, :2])
    assert {f.name for f in report.findings} == {"not-told", "length"}


# -- Files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.zeros(80), "neither mel bins and frames"),
        (np.zeros((0, 80, 3000)), "neither mel bins and frames"),
        (np.array(["a"]), "array of numbers"),
    ],
)
def test_arrays_that_are_none_are_input_errors(
    values: np.ndarray, problem: str, files: dict[str, Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "array.npy", values)
    with pytest.raises(InputError, match=problem):
        ggufnorm.audio(files["loud"], processor=files["hf"], array=tmp_path / "array.npy")


@pytest.mark.parametrize(
    "entries",
    [
        {"n_fft": 0},
        {"hop_length": 0},
        {"chunk_length": 0},
        {"sampling_rate": "fast"},
        {"feature_extractor_type": "NoSuchExtractor"},
        {"feature_extractor_type": "ViTImageProcessor"},
    ],
)
def test_extractors_that_cannot_be_used_are_input_errors(
    entries: dict[str, object], files: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_extractor(tmp_path, **entries)
    with pytest.raises(InputError) as caught:
        ggufnorm.audio(files["loud"], processor=folder)
    assert "\n" not in str(caught.value)


def test_what_is_expected_must_be_known(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --processor or --mmproj"):
        ggufnorm.audio(files["loud"])
    with pytest.raises(InputError, match="projector gemma3 expects is not known"):
        ggufnorm.audio(files["loud"], mmproj=write_mmproj(tmp_path / "vision.gguf"))
    with pytest.raises(InputError, match="no number of mel bins"):
        ggufnorm.audio(files["loud"], mmproj=write_audio_mmproj(tmp_path / "m.gguf", 0))


def test_an_absent_package_says_what_to_install(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r'pip install "ggufnorm\[audio\]"'):
        ggufnorm.audio(files["loud"], processor=files["hf"])


# -- The command -------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, ["audio", *map(str, words)], standalone_mode=False)


@pytest.fixture
def wrong(files: dict[str, Path], tmp_path: Path) -> list[object]:
    """A command line whose array has natural logarithms."""
    np.save(tmp_path / "array.npy", in_natural_logarithms(loud()))
    return [files["loud"], "--processor", files["hf"], "--mmproj", files["mmproj"],
            "--array", tmp_path / "array.npy"]  # fmt: skip


def test_the_command_exits_1_and_names_the_mistake(
    wrong: list[object], files: dict[str, Path]
) -> None:
    done = run(*wrong)
    assert done.return_value == 1
    assert "the logarithm is natural, not to base 10" in done.stdout
    assert "\nNot as expected: array (natural-logarithm)\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert run(files["loud"], "--processor", files["hf"]).return_value == 0


def test_all_faces_show_all_pipelines_and_the_page_their_pictures(
    wrong: list[object], tmp_path: Path
) -> None:
    from PIL import Image

    out = tmp_path / "report.html"
    assert run(*wrong, "-o", out).return_value == 1
    document = json.loads(run(*wrong, "--format", "json").stdout)
    assert (document["schema"], document["version"]) == ("ggufnorm/audio", 1)
    names = [p["name"] for p in document["pipelines"]]
    assert names == ["transformers", "numpy", "llama.cpp", "array"]
    page = check_html(out.read_text(encoding="utf-8"))
    images = [a for tag, a in zip(page.tags, page.attributes) if tag == "img"]
    assert [a["alt"] for a in images] == [f"As the model hears it: {name}" for name in names]
    assert [sum(p["histogram"]) for p in document["pipelines"]] == [80 * 200] * 4
    pictures = []
    for pipeline, image in zip(document["pipelines"], images):
        assert image["src"] == f"data:image/png;base64,{pipeline['thumbnail']}"
        with Image.open(io.BytesIO(base64.b64decode(pipeline["thumbnail"]))) as png:
            pictures.append(np.asarray(png).astype(int))
    assert pictures[0].shape == (80, 200, 3)  # of the sound, without its padding
    right, ours, theirs, mistaken = pictures
    for other in (ours, theirs):
        assert np.abs(other - right).max() <= 1
    assert np.abs(mistaken - right).mean() > 20
    upright = right.sum(axis=-1)[::-1]  # low frequencies are at the bottom
    assert np.corrcoef(upright.ravel(), WHISPER.apply(loud())[:, :200].ravel())[0, 1] > 0.99
    assert "| transformers |" in run(*wrong, "--format", "markdown").stdout
