"""Image encoders: Transformers, mtmd and ONNX Runtime agree, and a mistake is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

import ggufnorm
from ggufnorm.analysis.crosscheck.encoder import run_encoder
from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.cli.main import cli
from ggufnorm.core.frameworks import EngineComparison, FrameworksReport
from ggufnorm.core.rounding import HALF_ULP
from ggufnorm.engines import worker
from ggufnorm.engines.hf.norms import watch_norms
from ggufnorm.engines.images import read_picture
from ggufnorm.errors import ConfigError, EngineError, GgufnormError, InputError
from ggufnorm.samples import default_picture
from tests import framework_models as made
from tests import in_process, towers, vision

IN_A_CHILD = worker.call

NAMES = ("siglip", "gemma3")
"""Encoders that llama.cpp computes as their source does; CLIP below is none."""

Change = Callable[[made.Tensors], None]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("towers")


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    with in_process.engine():
        yield


def tower(name: str) -> towers.Tower:
    return towers.VIT if name == "vit" else towers.TOWERS[name]


@lru_cache
def model(name: str) -> Any:
    return towers.build(tower(name))


def checkpoint(folder: Path, name: str) -> str:
    path = folder / name
    if not path.exists():
        vision.write_processor(made.save(model(name), path))
    return f"hf:{path}"


def exported(folder: Path, name: str) -> str:
    path = folder / f"{name}.onnx"
    return str(path if path.exists() else towers.export(model(name), path))


def tensors(name: str) -> made.Tensors:
    return {k: v.copy() for k, v in towers.converted(model(name), tower(name)).items()}


def mmproj(folder: Path, name: str, changed: made.Tensors | None = None, **how: Any) -> str:
    return str(towers.write(folder / "mmproj.gguf", tower(name), changed or tensors(name), **how))


def compare(source: str, *engines: str, **how: Any) -> FrameworksReport:
    return compare_frameworks(source, engines, n_threads=1, **how)


def compared(
    folder: Path, name: str, changed: made.Tensors | None = None, **how: Any
) -> EngineComparison:
    report = compare(checkpoint(folder, name), mmproj(folder, name, changed, **how))
    return report.comparisons[0]


def largest(found: EngineComparison) -> float:
    return max(max(s.input.rel_l2 or 0, s.output.rel_l2 or 0) for s in found.sites)


# -- all is well ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_right_encoder_agrees_at_every_norm(folder: Path, name: str) -> None:
    report = compare(checkpoint(folder, name), mmproj(folder, name), exported(folder, name))
    n_norms = 2 * towers.LAYERS + 1 + (name == "gemma3")
    for found in report.comparisons:
        assert found.first_wrong is None, found.verdict
        assert not found.unmatched_source
        assert not found.unmatched_engine
        assert len(found.sites) == n_norms
        assert max(s.local for s in found.sites if s.local is not None) < 1e-6
        assert {s.status for s in found.sites} <= {"agrees", "precision"}
        assert not any(s.causes for s in found.sites)
    mtmd, onnx = report.comparisons
    # ggml_conv_2d rounds pixels and kernel to half precision; 2^-11 is 4.9e-4.
    assert 1e-5 < largest(mtmd) < 2.0**-11
    assert largest(onnx) < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_norms_are_named_as_in_the_file_and_in_the_checkpoint(folder: Path, name: str) -> None:
    sites = compared(folder, name).sites
    before = "" if name == "siglip" else "model.vision_tower."
    assert [(s.key, s.source.name) for s in sites[:2]] == [
        ("v.blk.0.ln1.weight", f"{before}encoder.layers.0.layer_norm1"),
        ("v.blk.0.ln2.weight", f"{before}encoder.layers.0.layer_norm2"),
    ]
    assert [(s.layer, s.role) for s in sites[1:3]] == [(0, "v.ffn"), (1, "v.attn")]
    assert {s.engine.kind for s in sites[:7]} == {"layer"}
    assert {(s.source.epsilon, s.engine.epsilon) for s in sites} == {(1e-6, 1e-6)}
    assert {s.engine.epsilon_stated for s in sites[:7]} == {1e-6}
    if name == "gemma3":
        assert (sites[-1].key, sites[-1].engine.kind) == ("mm.soft_emb_norm.weight", "rms")
        assert sites[-1].source.offset == 1.0


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_rounded_matrices_are_precision_and_no_mistake(folder: Path, dtype: str) -> None:
    found = compared(folder, "gemma3", dtype=gguf.GGMLQuantizationType[dtype])
    assert found.first_wrong is None, found.verdict
    assert found.verdict.startswith("No mistake")
    assert largest(found) > largest(compared(folder, "gemma3"))


@pytest.mark.parametrize(("dtype", "sharpness"), [("F16", 8), ("BF16", 24)])
def test_rounding_that_attention_makes_larger_is_no_mistake(
    tmp_path: Path, dtype: str, sharpness: float
) -> None:
    sharp = towers.build(tower("gemma3"))
    with torch.no_grad():
        for name, p in sharp.named_parameters():
            if "vision" in name and name.endswith(("q_proj.weight", "k_proj.weight")):
                p.mul_(sharpness)
            if name.endswith("patch_embedding.weight"):
                p.mul_(0.1)
    source = made.save(sharp, tmp_path / "hf")
    file = towers.write(tmp_path / "m.gguf", tower("gemma3"),
                        towers.converted(sharp, tower("gemma3")),
                        dtype=gguf.GGMLQuantizationType[dtype])  # fmt: skip
    (found,) = compare(f"hf:{source}", str(file)).comparisons
    second = found.sites[1].input.rel_l2
    assert second is not None
    # More than four times the type's rounding, and than eight times what the first norm saw.
    assert second > max(4 * HALF_ULP[dtype], 8 * (found.sites[0].output.rel_l2 or 0))
    assert found.first_wrong is None, found.verdict


def test_vit_agrees_in_onnx(folder: Path) -> None:
    report = compare(checkpoint(folder, "vit"), exported(folder, "vit"))
    (found,) = report.comparisons
    assert found.first_wrong is None
    assert [s.status for s in found.sites] == ["agrees"] * (2 * towers.LAYERS + 1)
    assert largest(found) < 2e-6
    assert not found.skipped
    assert report.picture is not None
    assert report.picture.name == "generated"
    assert report.picture.pixels.startswith("Gemma3ImageProcessor")


def test_a_layer_s_scale_is_no_norm() -> None:
    options = {k: v for k, v in towers.SHAPE.items() if k != "intermediate_size"}
    dino = transformers.Dinov2Model(transformers.Dinov2Config(**options)).eval()
    x = torch.randn(1, 3, towers.SIZE, towers.SIZE, generator=torch.Generator().manual_seed(0))
    _output, norms, skipped = watch_norms(dino, lambda: dino(pixel_values=x), 0)
    assert len(norms) == 2 * towers.LAYERS + 1
    assert all("norm" in n.name for n in norms)
    assert not skipped


# -- seeded mistakes ------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """What is done to the file, where that shows first, and the cause that is to be named."""

    name: str
    key: str
    cause: str
    change: Change


def _edit(tensor: str, how: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(t: made.Tensors) -> None:
        t[tensor] = np.ascontiguousarray(how(t[tensor]), np.float32)

    return change


def _swap(a: str, b: str) -> Change:
    def change(t: made.Tensors) -> None:
        t[a], t[b] = t[b], t[a]

    return change


def _drop(norm: str) -> Change:
    def change(t: made.Tensors) -> None:
        del t[f"{norm}.weight"], t[f"{norm}.bias"]

    return change


def _drop_weight(weight: str) -> Change:
    def change(t: made.Tensors) -> None:
        del t[weight]

    return change


def _damage(w: np.ndarray) -> np.ndarray:
    w[5] *= 3
    return w


def _raw(_w: np.ndarray) -> np.ndarray:
    values = model("gemma3").state_dict()["model.multi_modal_projector.mm_soft_emb_norm.weight"]
    return np.asarray(values)


LN1, LN2 = "v.blk.1.ln1.weight", "v.blk.1.ln2.weight"
SOFT, POST = "mm.soft_emb_norm.weight", "v.post_ln.weight"

NORM_MISTAKES = (
    Mistake("offset", LN1, "offset", _edit(LN1, lambda w: w + 1)),
    Mistake("scaled", LN2, "scale", _edit(LN2, lambda w: w * 1.5)),
    Mistake("reversed", LN1, "permutation", _edit(LN1, lambda w: w[::-1])),
    Mistake("interleaved", LN2, "permutation", _edit(LN2, lambda w: w.reshape(2, -1).T.ravel())),
    Mistake("ln1 for ln2", LN1, "elsewhere", _swap(LN1, LN2)),
    Mistake("another layer's", LN2, "elsewhere", _swap(LN2, "v.blk.2.ln2.weight")),
    Mistake("one element", LN1, "partial", _edit(LN1, _damage)),
    Mistake("bias zero", LN2, "bias", _edit("v.blk.1.ln2.bias", np.zeros_like)),
    Mistake("post norm's bias", POST, "bias", _edit("v.post_ln.bias", lambda b: b + 0.5)),
    Mistake("offset missing", SOFT, "offset", _edit(SOFT, _raw)),
    Mistake("offset doubled", SOFT, "offset", _edit(SOFT, lambda w: w + 1)),
)


@pytest.mark.parametrize("mistake", NORM_MISTAKES, ids=lambda m: m.name)
def test_the_first_wrong_norm_and_its_reason_are_named(folder: Path, mistake: Mistake) -> None:
    changed = tensors("gemma3")
    mistake.change(changed)
    found = compared(folder, "gemma3", changed)
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.where) == (mistake.key, "norm")
    assert found.first_wrong.causes == (mistake.cause,)
    before = found.sites[: [s.key for s in found.sites].index(mistake.key)]
    assert {s.status for s in before} <= {"agrees", "precision"}
    assert found.first_wrong.after == before[-1].key


def test_another_epsilon_is_named(folder: Path) -> None:
    found = compared(folder, "siglip", epsilon=1e-2)
    assert found.first_wrong is not None
    assert found.first_wrong.key == "v.blk.0.ln1.weight"
    assert found.first_wrong.causes == ("epsilon",)
    assert "its epsilon is 0.01, in Transformers 1e-06" in found.verdict


def _shifted(w: np.ndarray) -> np.ndarray:
    return np.roll(w, 1, axis=0)


BETWEEN_MISTAKES = (
    Mistake("BGR", "v.blk.0.ln1.weight", "before the first norm",
            _edit("v.patch_embd.weight", lambda w: w[:, ::-1])),
    Mistake("positions shifted", "v.blk.0.ln1.weight", "before the first norm",
            _edit("v.position_embd.weight", _shifted)),
    Mistake("queries permuted", LN2, f"after {LN1}",
            _edit("v.blk.1.attn_q.weight", lambda w: made.permuted(w, towers.HEADS))),
    Mistake("no weight", LN2, "after v.blk.0.ln2.weight, where the source alone runs"
            " model.vision_tower.encoder.layers.1.layer_norm1 and the engine alone runs"
            " layer_inp_normed-1", _drop_weight(LN1)),
    Mistake("no bias of the MLP", LN1, "after v.blk.0.ln2.weight",
            _edit("v.blk.0.ffn_down.bias", np.zeros_like)),
    Mistake("no post norm", SOFT, "after v.blk.2.ln2.weight, where the source alone runs"
            " model.vision_tower.post_layernorm", _drop("v.post_ln")),
)  # fmt: skip


@pytest.mark.parametrize("mistake", BETWEEN_MISTAKES, ids=lambda m: m.name)
def test_a_mistake_between_norms_is_told_by_its_place(folder: Path, mistake: Mistake) -> None:
    changed = tensors("gemma3")
    mistake.change(changed)
    found = compared(folder, "gemma3", changed)
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.where) == (mistake.key, "before")
    assert found.first_wrong.reason.endswith(f"llama.cpp does something else {mistake.cause}")


def test_another_activation_shows_before_the_next_block(folder: Path) -> None:
    found = compared(folder, "siglip", silu=True)
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.where) == (LN1, "before")
    assert found.first_wrong.after == "v.blk.0.ln2.weight"


def test_the_class_token_behind_the_patches_is_found_in_llama_cpp(folder: Path) -> None:
    # https://github.com/ggml-org/llama.cpp/issues/25814: of LLaVA's CLIP the class token
    # stands last, and each patch gets its neighbour's position.
    report = compare(checkpoint(folder, "clip"), mmproj(folder, "clip"), exported(folder, "clip"))
    mtmd, onnx = report.comparisons
    assert onnx.first_wrong is None
    assert mtmd.first_wrong is not None
    assert "order of rows" in {s.what for s in mtmd.skipped}
    assert (mtmd.first_wrong.key, mtmd.first_wrong.where) == ("v.pre_ln.weight", "before")
    assert {s.local is not None and s.local < 1e-6 for s in mtmd.sites} == {True}
    # The penultimate block gives LLaVA its features: the last one is not run.
    assert mtmd.unmatched_source == (
        "encoder.layers.2.layer_norm1", "encoder.layers.2.layer_norm2",
    )  # fmt: skip


def test_with_its_position_behind_too_the_class_token_is_right(folder: Path) -> None:
    changed = tensors("clip")
    _edit("v.position_embd.weight", lambda w: np.roll(w, -1, axis=0))(changed)
    found = compared(folder, "clip", changed)
    assert found.first_wrong is None, found.verdict
    assert largest(found) < 2.0**-11


def test_a_wrong_norm_in_onnx_is_named(folder: Path, tmp_path: Path) -> None:
    wrong = towers.build(towers.VIT)
    with torch.no_grad():
        wrong.vit.layers[1].layernorm_before.weight += 1
    report = compare(checkpoint(folder, "vit"), str(towers.export(wrong, tmp_path / "w.onnx")))
    first = report.comparisons[0].first_wrong
    assert first is not None
    assert (first.key, first.where) == ("vit.layers.1.layernorm_before", "norm")
    assert first.causes == ("offset",)


# -- the pixels before the first norm -------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        (vision.SIGLIP, vision.CLIP, "std 0.2686, 0.2613, 0.2758 (CLIP); expected"),
        (vision.SIGLIP, vision.IMAGENET, "std 0.229, 0.224, 0.225 (ImageNet); expected"),
        (vision.CLIP, (vision.CLIP[0], vision.CLIP[0]), "std 0.4815, 0.4578, 0.4082; expected"),
        (vision.CLIP, vision.SIGLIP, "std 0.5, 0.5, 0.5 (SigLIP and Inception (-1 to 1))"),
    ],
    ids=["clip", "imagenet", "std is mean", "siglip"],
)
def test_other_image_constants_come_before_every_norm(
    folder: Path, tmp_path: Path, right: Any, wrong: Any, words: str
) -> None:
    source = vision.write_processor(made.save(model("siglip"), tmp_path / "hf"), right)
    report = compare(f"hf:{source}", mmproj(folder, "siglip", constants=wrong))
    (found,) = report.comparisons
    assert found.first_wrong is not None
    assert (found.first_wrong.where, found.first_wrong.after) == ("before", None)
    assert found.first_wrong.causes == ("pixels",)
    assert words in found.verdict
    # All got the same pixels: the network itself is right.
    assert {s.status for s in found.sites} <= {"agrees", "precision"}


def test_a_second_encoder_gets_the_pixels_of_the_first(folder: Path, tmp_path: Path) -> None:
    right = mmproj(folder, "gemma3")
    other = towers.write(tmp_path / "o.gguf", tower("gemma3"), tensors("gemma3"),
                         constants=vision.IMAGENET)  # fmt: skip
    one, two = compare(checkpoint(folder, "gemma3"), right, str(other)).comparisons
    assert one.first_wrong is None
    assert two.first_wrong is not None
    assert two.first_wrong.causes == ("pixels",)
    assert [s.output for s in one.sites] == [s.output for s in two.sites]


def test_pixels_are_the_picture_s(folder: Path, tmp_path: Path) -> None:
    picture = vision.write_picture(tmp_path / "p.png", 48, 40)
    file = mmproj(folder, "siglip")
    own, other = (
        run_encoder(file, levels, n_threads=1)[1]
        for levels in (read_picture(picture).levels, default_picture())
    )
    assert own.shape == other.shape == (1, towers.SIZE, towers.SIZE, 3)
    assert not np.array_equal(own, other)
    replaced, made_again = run_encoder(file, default_picture(), pixels=own, n_threads=1)
    assert np.array_equal(made_again, other)
    plain, _ = run_encoder(file, read_picture(picture).levels, n_threads=1)
    assert [np.array_equal(a.x, b.x) for a, b in zip(plain.norms, replaced.norms)] == [True] * 7


def test_without_a_processor_the_constants_are_listed_as_skipped(
    folder: Path, tmp_path: Path
) -> None:
    source = made.save(model("siglip"), tmp_path / "hf")
    found = compare(f"hf:{source}", mmproj(folder, "siglip")).comparisons[0]
    assert found.first_wrong is None
    reasons = {s.what: s.reason for s in found.skipped}
    assert reasons["image constants"] == f"{source} has no preprocessor_config.json"
    (source / "preprocessor_config.json").write_text("{}")
    found = compare(f"hf:{source}", mmproj(folder, "siglip")).comparisons[0]
    reasons = {s.what: s.reason for s in found.skipped}
    assert "cannot load an image processor" in reasons["image constants"]


def test_without_picture_and_processor_noise_is_run(folder: Path, tmp_path: Path) -> None:
    source = made.save(model("vit"), tmp_path / "hf")
    report = compare(f"hf:{source}", exported(folder, "vit"))
    assert report.picture is not None
    assert report.picture.pixels == "normal noise"
    assert report.picture.shape == (1, towers.SIZE, towers.SIZE, 3)
    assert report.comparisons[0].first_wrong is None


# -- refusals -------------------------------------------------------------------------------


def test_bad_input_is_an_error_in_a_line(folder: Path, tmp_path: Path) -> None:
    source, file, onnx = checkpoint(folder, "siglip"), mmproj(folder, "siglip"), "m.onnx"
    llama = made.build(made.NETWORKS["llama"])
    text = f"hf:{made.save(llama, tmp_path / 'llama')}"
    network = made.NETWORKS["llama"]
    words = made.write(tmp_path / "words.gguf", network, made.converted(llama, network))
    wide = towers.write(tmp_path / "wide.gguf", tower("siglip"), _larger(), size=64)
    bare = f"hf:{made.save(model('siglip'), tmp_path / 'bare')}"
    picture = str(vision.write_picture(tmp_path / "p.png", 32, 32))
    (tmp_path / "no.png").write_text("no picture")
    onnx = exported(folder, "siglip")
    cases: tuple[tuple[str, list[str], dict[str, Any], type[GgufnormError], str], ...] = (
        (text, [file], {}, InputError, "llama has no image encoder"),
        (source, [file, str(words)], {}, InputError, "words.gguf: no image encoder"),
        (source, [file], {"text": "a text"}, ConfigError, "take no text"),
        (source, [file], {"n_tokens": 16}, ConfigError, "take no text"),
        (source, [file, str(wide)], {}, InputError, "its pixels are 1×64×64×3"),
        (bare, [str(wide), onnx], {}, InputError, "the model fails"),
        (onnx, [str(wide)], {}, InputError, "takes 1×3×32×32, the pixels are 1×3×64×64"),
        (bare, [onnx], {"image": picture}, ConfigError, "--image needs"),
        (onnx, [onnx], {"image": picture}, ConfigError, "--image needs"),
        (source, [file], {"image": tmp_path / "no.png"}, InputError, "no picture that Pillow"),
        (source, [file], {"image": tmp_path / "none.png"}, InputError, "there is no such file"),
    )
    for origin, engines, how, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            compare(origin, *engines, **how)
        assert len(str(caught.value).splitlines()) == 1


def _larger() -> made.Tensors:
    changed = tensors("siglip")
    changed["v.position_embd.weight"] = np.zeros((64, towers.WIDTH), np.float32)
    return changed


@pytest.mark.parametrize(
    ("tensor", "words"),
    [("v.blk.1.attn_q.weight", "crashed"), ("mm.model.fc.weight", "cannot load")],
)
def test_a_damaged_encoder_is_an_error_of_the_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tensor: str, words: str
) -> None:
    monkeypatch.setattr(worker, "call", IN_A_CHILD)
    changed = tensors("siglip")
    del changed[tensor]
    with pytest.raises(EngineError, match=words):
        run_encoder(mmproj(folder, "siglip", changed), default_picture(), n_threads=1)


# -- the command ----------------------------------------------------------------------------


def run(*words: str) -> Any:
    return CliRunner().invoke(cli, ["compare", *words, "-t", "1"], standalone_mode=False)


def test_the_command_tells_the_verdict_in_every_format(folder: Path, tmp_path: Path) -> None:
    source = checkpoint(folder, "gemma3")
    picture = str(vision.write_picture(tmp_path / "photo.png", 40, 40))
    changed = tensors("gemma3")
    changed[LN2] = changed[LN2] * 2
    wrong = mmproj(folder, "gemma3", changed, constants=vision.CLIP)
    text = " ".join(run(source, wrong, "--image", picture).stdout.split())
    assert f"1 picture of 32×32 (llama.cpp's mtmd): {picture}" in text
    assert "First wrong at v.blk.0.ln1.weight (layer 0): the encoder's file has mean 0.4815" in text
    assert "1 more of 8 norms are wrong by themselves" in text
    assert "llama.cpp: normalized with the constants of CLIP" in text
    document = json.loads(run(source, wrong, "--format", "json").stdout)
    assert document["picture"]["shape"] == [1, 32, 32, 3]
    (found,) = document["comparisons"]
    assert [p["name"] for p in found["pixels"]] == ["constants-differ", "constants-of-another"]
    markdown = run(source, wrong, "--format", "markdown").stdout
    assert "the constants of CLIP" in markdown
    assert run(source, wrong, "--max-rel", "0.01").return_value == 1


def test_a_saved_report_is_read_again(folder: Path, tmp_path: Path) -> None:
    wrong = mmproj(folder, "siglip", constants=vision.CLIP)
    report = compare(checkpoint(folder, "siglip"), wrong)
    report.save(tmp_path / "report.json")
    assert ggufnorm.load(tmp_path / "report.json") == report
    report.save(tmp_path / "report.html")
    assert "the constants of CLIP" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("option", ["--tokens", "--max-kld"])
def test_options_for_text_do_not_go_with_a_picture(option: str) -> None:
    done = run("hf:x", "y.gguf", "--image", "z.png", option, "3")
    assert f"{option} does not go with --image" in str(done.exception)
