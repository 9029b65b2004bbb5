"""Front ends of encoders that are not Whisper's, held against Transformers' extractors."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufnorm
from ggufnorm.core.audio_report import AudioReport
from ggufnorm.core.front_ends import PROJECTORS, FrontEnd
from ggufnorm.core.log_mel import whisper
from ggufnorm.engines.extractors import Extractor
from tests.front_ends import EXTRACTORS, write_front_end_mmproj, wrong
from tests.sounds import RATE, sound, write_wav


def write_config(folder: Path, kind: str, **entries: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"feature_extractor_type": kind, "sampling_rate": RATE} | entries
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Path, dict[str, Path]]:
    """A sound whose length is no multiple of anything, its file, and folders of extractors."""
    folder = tmp_path_factory.mktemp("ends")
    samples = sound(1.237)
    wav = write_wav(folder / "s.wav", samples, dtype="<f4")
    return samples, wav, {k: write_config(folder / k, k, **e) for k, e in EXTRACTORS.items()}


def formula_of(folder: Path) -> FrontEnd:
    formula = Extractor(folder).formula
    assert isinstance(formula, FrontEnd)
    return formula


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_right_spectrograms_give_no_finding(
    kind: str, heard: tuple[np.ndarray, Path, dict[str, Path]], tmp_path: Path
) -> None:
    samples, wav, folders = heard
    values = Extractor(folders[kind]).feed(samples)
    np.save(tmp_path / "a.npy", values.T[None])
    report = ggufnorm.audio(wav, processor=folders[kind], array=tmp_path / "a.npy")
    assert [p.name for p in report.pipelines] == ["transformers", "numpy", "array"]
    assert [p.mistakes for p in report.pipelines] == [(), (), ("axes-exchanged",)]
    assert all((p.residual or 0) < 1e-5 for p in report.pipelines)
    assert {f.name for f in report.findings} == {"axes-exchanged"}
    assert report.expected is not None
    assert not report.expected.fixed


def feed(
    front: FrontEnd, heard: tuple[np.ndarray, Path, dict[str, Path]], kind: str, tmp_path: Path
) -> AudioReport:
    samples, wav, folders = heard
    np.save(tmp_path / "a.npy", front.apply(samples).astype(np.float32))
    return ggufnorm.audio(wav, processor=folders[kind], array=tmp_path / "a.npy")


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_each_mistake_is_named(
    kind: str, heard: tuple[np.ndarray, Path, dict[str, Path]], tmp_path: Path
) -> None:
    right = formula_of(heard[2][kind])
    for name, change in wrong(right).items():
        report = feed(change(right), heard, kind, tmp_path)
        assert report.pipelines[-1].mistakes == (name,), name
        assert [f.name for f in report.findings if f.severity == "error"] == [name]


@pytest.mark.parametrize("kind", ["Gemma4AudioFeatureExtractor", "SeamlessM4TFeatureExtractor"])
def test_two_mistakes_are_both_named(
    kind: str, heard: tuple[np.ndarray, Path, dict[str, Path]], tmp_path: Path
) -> None:
    right = formula_of(heard[2][kind])
    pairs = [
        pair
        for pair in combinations(wrong(right).items(), 2)
        if not any(n.startswith(("logarithm", "normalized", "not-")) for n, _ in pair)
    ]
    for (first, a), (second, b) in pairs[:8]:
        if {first, second} == {"window-missing", "window-of-another"}:
            continue
        report = feed(b(a(right)), heard, kind, tmp_path)
        assert set(report.pipelines[-1].mistakes) == {first, second}


def test_another_level_and_another_sound(
    heard: tuple[np.ndarray, Path, dict[str, Path]], tmp_path: Path
) -> None:
    samples, wav, folders = heard
    kind = "Gemma3nAudioFeatureExtractor"
    right = formula_of(folders[kind])
    for values, name in (
        (right.apply(samples / 2), "level"),
        (2 * right.apply(samples), "constants-unknown"),
        (right.apply(sound(1.237, seed=5)), "not-told"),
    ):
        np.save(tmp_path / "a.npy", values)
        report = ggufnorm.audio(wav, processor=folders[kind], array=tmp_path / "a.npy")
        assert report.findings[0].name == name


@pytest.mark.parametrize("projector", PROJECTORS)
def test_every_projector_has_a_formula(projector: str) -> None:
    """Of all that ``mtmd_context::init_audio`` knows, but Whisper's and waveforms."""
    front = PROJECTORS[projector](160 if projector == "granite_speech" else 80)
    values = front.apply(sound(0.8, front.mel.rate))
    assert len(values) == front.n_bins
    assert np.isfinite(values).all()
    assert front.in_words


def test_chunks_of_60_seconds_and_unpadded_ones_are_whispers() -> None:
    samples = 2 * sound(1.0)
    unpadded, padded = PROJECTORS["qwen3a"](80).apply(samples), whisper(80).apply(samples)
    assert unpadded.shape == (80, 100)
    assert np.abs(unpadded[:, :98] - padded[:, :98]).max() < 1e-12
    assert PROJECTORS["dots3note_a"](80).apply(samples).shape == (80, 6000)


# -- llama.cpp ---------------------------------------------------------------------------


@pytest.mark.parametrize(("projector", "n_mel"), [("gemma4a", 128), ("lfm2a", 128)])
def test_llama_cpp_computes_the_projectors_formula(
    projector: str, n_mel: int, heard: tuple[np.ndarray, Path, dict[str, Path]], tmp_path: Path
) -> None:
    _, wav, _ = heard
    mmproj = write_front_end_mmproj(tmp_path / "m.gguf", projector, n_mel)
    report = ggufnorm.audio(wav, mmproj=mmproj)
    assert [p.name for p in report.pipelines] == ["numpy", "llama.cpp"]
    assert report.findings == ()
    assert report.comparisons[0].rel_l2 is not None
    assert report.comparisons[0].rel_l2 < 1e-6


def test_llama_cpps_floor_of_gemma_4_is_a_bound(
    heard: tuple[np.ndarray, Path, dict[str, Path]], tmp_path: Path
) -> None:
    _, wav, folders = heard
    mmproj = write_front_end_mmproj(tmp_path / "m.gguf", "gemma4a", 128)
    report = ggufnorm.audio(wav, processor=folders["Gemma4AudioFeatureExtractor"], mmproj=mmproj)
    assert [(f.severity, f.name, f.pipeline) for f in report.findings] == [
        ("warning", "mel-floor", "llama.cpp")
    ]


@pytest.mark.parametrize("with_processor", [True, False])
def test_llama_cpp_feeds_gemma_4_unified_samples(
    with_processor: bool, heard: tuple[np.ndarray, Path, dict[str, Path]], tmp_path: Path
) -> None:
    samples, wav, _ = heard
    mmproj = write_front_end_mmproj(tmp_path / "m.gguf", "gemma4ua", 640)
    folder = write_config(tmp_path / "hf", "Gemma4UnifiedAudioFeatureExtractor", feature_size=640)
    processor = folder if with_processor else None
    rows = np.pad(samples, (0, -len(samples) % 640)).reshape(-1, 640)
    np.save(tmp_path / "a.npy", rows)
    report = ggufnorm.audio(wav, processor=processor, mmproj=mmproj, array=tmp_path / "a.npy")
    assert report.waveform is not None
    assert report.findings == ()
    np.save(tmp_path / "a.npy", 32768 * rows)
    report = ggufnorm.audio(wav, processor=processor, mmproj=mmproj, array=tmp_path / "a.npy")
    assert [f.name for f in report.findings] == ["levels-not-scaled"]
