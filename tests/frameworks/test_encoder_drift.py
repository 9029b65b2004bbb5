"""``drift`` of encoders of pictures and sounds: quantized, damaged, with other constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggufnorm
from ggufnorm.core.drift import DriftReport
from ggufnorm.errors import InputError, MismatchError
from ggufnorm.report.kinds import reports_of
from tests import models, sounds, towers, vision
from tests.processes import ggufnorm as run

Change = Callable[[np.ndarray], np.ndarray]
_NAMES = ("gemma3", "clip")
every_tower = pytest.mark.parametrize("name", _NAMES)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    found = {}
    for name in _NAMES:
        tower = towers.TOWERS[name]
        found[name] = folder / f"{name}.gguf"
        towers.write(found[name], tower, towers.converted(towers.build(tower), tower))
    return found


def quantized(
    source: Path, target: Path, kind: str = "Q8_0", changes: Mapping[str, Change] | None = None
) -> Path:
    """A copy with the blocks' matrices in a type, some of them changed first."""
    ggml_type = gguf.GGMLQuantizationType[kind]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "clip")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for t in reader.tensors:
        values = (changes or {}).get(t.name, lambda w: w)(np.array(t.data))
        if t.name.startswith(("v.blk.", "a.blk.")) and values.ndim == 2:
            raw = gguf.quants.quantize(values.astype(np.float32), ggml_type)
            writer.add_tensor(t.name, raw, raw_dtype=ggml_type)
        else:
            writer.add_tensor(t.name, values, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def drift(ref: Path, quant: Path, **options: object) -> DriftReport:
    return ggufnorm.drift(ref, quant, n_threads=1, **options)  # type: ignore[arg-type]


@every_tower
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_quantized_encoder_is_measured_and_not_accused(
    name: str, kind: str, encoders: dict[str, Path], tmp_path: Path
) -> None:
    target = quantized(encoders[name], tmp_path / "q.gguf", kind)
    report = drift(encoders[name], target)
    assert report.culprit is None, report.verdict
    assert report.logits is None
    assert report.embedding is not None
    assert 0 < (report.embedding.rel_l2 or 0) < (0.03 if kind == "Q8_0" else 0.3)
    assert all(n.local.rel_l2 == 0 for n in report.norms)
    (view,) = reports_of(report)
    assert (view.headline, view.status) == ("Nothing is out of line", "ok")
    assert view.figures[0].label == "Image embedding"
    assert "predictions" not in report.verdict
    swapped = drift(target, encoders[name])
    assert swapped.culprit is None
    assert "swapped?" in swapped.verdict


@every_tower
def test_an_encoder_against_itself_does_not_drift(name: str, encoders: dict[str, Path]) -> None:
    report = drift(encoders[name], encoders[name])
    assert report.verdict.startswith("No drift")
    assert report.embedding is not None
    assert report.embedding.rel_l2 == 0


@every_tower
def test_a_damaged_matrix_of_an_encoder_is_named(
    name: str, encoders: dict[str, Path], tmp_path: Path
) -> None:
    tensor = "v.blk.1.ffn_down.weight"
    changed = {tensor: models.noise(0.5)}
    plain = models.rewritten(encoders[name], tmp_path / "plain.gguf", tensors=changed)
    for other in (plain, quantized(encoders[name], tmp_path / "q.gguf", changes=changed)):
        report = drift(encoders[name], other)
        assert report.culprit is not None
        assert (report.culprit.tensor, report.culprit.layer) == (tensor, 1)


def test_another_models_constants_are_named(encoders: dict[str, Path], tmp_path: Path) -> None:
    tower = towers.TOWERS["gemma3"]
    other = tmp_path / "other.gguf"
    tensors = towers.converted(towers.build(tower), tower)
    towers.write(other, tower, tensors, constants=vision.CLIP)
    report = drift(encoders["gemma3"], other)
    assert report.culprit is not None
    assert "clip.vision.image_mean" in report.culprit.reason


def test_several_pictures_are_run_and_named(encoders: dict[str, Path], tmp_path: Path) -> None:
    pictures = [vision.write_picture(tmp_path / f"{i}.png", 40, 48, i) for i in range(2)]
    target = quantized(encoders["gemma3"], tmp_path / "q.gguf")
    both = drift(encoders["gemma3"], target, images=pictures)
    assert (both.run.n_chunks, both.run.text) == (2, f"{pictures[0]}, {pictures[1]}")
    assert both.embedding is not None
    one = drift(encoders["gemma3"], target, images=pictures[:1])
    assert one.embedding is not None
    assert both.embedding.rows == 2 * one.embedding.rows
    done = run("drift", encoders["gemma3"], target, "--image", pictures[0])
    assert done.returncode == 0
    assert f"pictures   {pictures[0]}" in done.stdout
    assert "1 picture " in done.stdout


# -- sounds ------------------------------------------------------------------------------------

_PROJECTORS = {"qwen2a": 80, "qwen3a": 128, "ultravox": 80}
every_projector = pytest.mark.parametrize("projector", _PROJECTORS)


def hearing(folder: Path, projector: str) -> Path:
    path = folder / f"{projector}.gguf"
    return sounds.write_audio_mmproj(path, _PROJECTORS[projector], projector, width=64)


@every_projector
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_quantized_audio_encoder_is_measured_and_not_accused(
    projector: str, kind: str, tmp_path: Path
) -> None:
    ref = hearing(tmp_path, projector)
    report = drift(ref, quantized(ref, tmp_path / "q.gguf", kind))
    assert report.culprit is None, report.verdict
    assert report.embedding is not None
    assert 0 < (report.embedding.rel_l2 or 0) < (0.03 if kind == "Q8_0" else 0.3)
    assert report.run.text == "generated sound"
    (view,) = reports_of(report)
    assert view.figures[0].label == "Audio embedding"
    assert (view.headline, view.status) == ("Nothing is out of line", "ok")


@every_projector
def test_a_damaged_matrix_of_an_audio_encoder_is_named(projector: str, tmp_path: Path) -> None:
    ref, tensor = hearing(tmp_path, projector), "a.blk.0.attn_q.weight"
    assert drift(ref, ref).verdict.startswith("No drift")
    changed = {tensor: models.noise(0.5)}
    plain = models.rewritten(ref, tmp_path / "plain.gguf", tensors=changed)
    for other in (plain, quantized(ref, tmp_path / "q.gguf", changes=changed)):
        report = drift(ref, other)
        assert report.culprit is not None
        assert (report.culprit.tensor, report.culprit.layer) == (tensor, 0)


def test_sounds_are_run_and_named(tmp_path: Path) -> None:
    ref = hearing(tmp_path, "qwen2a")
    wavs = [sounds.write_wav(tmp_path / f"{i}.wav", sounds.sound(1.0, seed=i)) for i in range(2)]
    target = quantized(ref, tmp_path / "q.gguf")
    both = drift(ref, target, sounds=wavs)
    assert (both.run.n_chunks, both.run.text) == (2, f"{wavs[0]}, {wavs[1]}")
    done = run("drift", ref, target, "--sound", wavs[0])
    assert done.returncode == 0
    assert f"sounds     {wavs[0]}" in done.stdout
    assert "1 sound " in done.stdout
    slow = sounds.write_wav(tmp_path / "slow.wav", sounds.sound(1.0, 8_000), 8_000)
    with pytest.raises(InputError, match="takes sounds of 16,000 Hz, not 8,000 Hz"):
        drift(ref, target, sounds=[slow])
    with pytest.raises(InputError, match="2 rates"):
        drift(ref, target, sounds=[slow, wavs[0]])
    with pytest.raises(InputError, match="no image encoder"):
        drift(ref, target, images=[vision.write_picture(tmp_path / "x.png", 40, 48)])
    with pytest.raises(InputError, match="pictures or sounds"):
        drift(ref, target, images=["x.png"], sounds=wavs)


def test_what_does_not_go_together_is_refused(encoders: dict[str, Path], tmp_path: Path) -> None:
    model = models.llama(tmp_path / "llama.gguf")
    with pytest.raises(InputError, match="is no image encoder"):
        drift(model, model, images=[tmp_path / "x.png"])
    with pytest.raises(InputError, match="compare hf:FOLDER"):
        drift(model, encoders["clip"])
    with pytest.raises(InputError, match="cannot read the picture"):
        drift(encoders["clip"], encoders["clip"], images=[tmp_path / "x.png"])
    with pytest.raises(MismatchError, match="is not a version of"):
        drift(encoders["clip"], vision.write_mmproj(tmp_path / "small.gguf"))
