"""Faults that no single tensor shows: does the verdict name the kind and the place?"""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggufnorm
from ggufnorm.analysis.drift.edits import describe
from ggufnorm.core.drift import DriftReport
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.runs.options import SideOptions
from tests import in_process, models

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 4
PLAIN = SideOptions()

BUILD = {
    name: getattr(models, name)
    for name in (
        "llama", "gpt2", "qwen3", "qwen3moe", "gemma3", "olmo", "stablelm", "phi2", "mamba",
        "jamba", "rwkv7", "t5",
    )
}  # fmt: skip
ROTARY = ("llama", "qwen3", "qwen3moe", "gemma3", "olmo", "stablelm", "phi2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verdict")


def model(folder: Path, arch: str) -> Path:
    path = folder / f"{arch}.gguf"
    return path if path.exists() else BUILD[arch](path)


def drift(ref: Path, quant: Path, options: SideOptions = PLAIN) -> DriftReport:
    with in_process.engine():
        return ggufnorm.drift(
            ref, quant, text=TEXT, n_ctx=32, chunks=2, n_threads=1, options=options
        )


def halves(path: Path) -> list[str]:
    """Matrices in half precision inside the blocks, in the file's order."""
    return [
        t.name
        for t in gguf.GGUFReader(path).tensors
        if t.tensor_type == gguf.GGMLQuantizationType.F16 and "blk." in t.name
    ]


def low_rank(w: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(w.size)
    a, b = rng.standard_normal((*w.shape[:-1], 2)), rng.standard_normal((2, w.shape[-1]))
    update = a @ b
    wide = w.astype(np.float32)
    return (wide + 0.2 * np.linalg.norm(wide) / np.linalg.norm(update) * update).astype(w.dtype)


def rolled(w: np.ndarray) -> np.ndarray:
    return np.roll(w, 1, axis=-2)


# -- sound files -------------------------------------------------------------------------------


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_K_M", "Q2_K"])
@pytest.mark.parametrize("arch", BUILD)
def test_a_sound_file_is_not_accused_in_either_order(
    arch: str, file_type: str, folder: Path
) -> None:
    ref, target = model(folder, arch), folder / "sound.gguf"
    with in_process.engine():
        quantize(ref, target, file_type, n_threads=1)
    for pair in ((ref, target), (target, ref)):
        report = drift(*pair)
        assert report.culprit is None, report.verdict


@pytest.mark.parametrize("arch", ["mamba", "jamba", "rwkv7"])
def test_a_recurrent_state_over_several_batches_is_not_accused(arch: str, folder: Path) -> None:
    ref, target = model(folder, arch), folder / "long.gguf"
    with in_process.engine():
        quantize(ref, target, "Q4_K_M", n_threads=1)
        report = ggufnorm.drift(ref, target, n_ctx=1024, chunks=1, n_threads=1)
    assert report.culprit is None, report.verdict


# -- weights of one type ---------------------------------------------------------------------


@pytest.mark.parametrize("arch", BUILD)
def test_an_update_of_all_matrices_is_told_from_the_first_on(arch: str, folder: Path) -> None:
    ref = model(folder, arch)
    names = halves(ref)
    other = models.rewritten(ref, folder / "lora.gguf", tensors=dict.fromkeys(names, low_rank))
    report = drift(ref, other)
    assert report.culprit is not None
    assert report.culprit.tensor in names
    read = {o.tensor for o in report.operations}
    assert f"{len(read.intersection(names))} of " in report.culprit.reason
    assert "the files are not two versions of the same weights" in report.culprit.reason
    assert "by a rank-2 update: an adapter that was not merged" in report.culprit.reason
    assert "gradually" not in report.verdict


@pytest.mark.parametrize("arch", BUILD)
def test_a_single_matrix_of_the_same_type_is_named(arch: str, folder: Path) -> None:
    ref = model(folder, arch)
    name = halves(ref)[-1]
    other = models.rewritten(ref, folder / "one.gguf", tensors={name: models.noise(0.01)})
    report = drift(ref, other)
    assert report.culprit is not None
    assert report.culprit.tensor == name
    assert "though both files hold it in F16" in report.culprit.reason


def test_a_role_transposed_in_every_layer_is_named_so(folder: Path) -> None:
    ref = model(folder, "llama")
    names = [f"blk.{i}.ffn_down.weight" for i in range(3)]
    turned = dict.fromkeys(names, lambda w: np.ascontiguousarray(w.T))
    report = drift(ref, models.rewritten(ref, folder / "turned.gguf", tensors=turned))
    assert report.culprit is not None
    assert report.culprit.tensor == names[0]
    assert "3 of 23 matrices of the same type differ (all ffn_down), from layer 0 on" in (
        report.culprit.reason
    )
    assert report.culprit.reason.endswith("(transposed)")


# -- other weights in another type -------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3", "qwen3moe", "gemma3", "phi2"])
def test_one_fault_in_all_layers_does_not_hide_behind_its_peers(arch: str, folder: Path) -> None:
    ref = model(folder, arch)
    names = [n for n in halves(ref) if "attn_output" in n]
    changed = models.rewritten(ref, folder / "rolled.gguf", tensors=dict.fromkeys(names, rolled))
    target = folder / "rolled-q8.gguf"
    with in_process.engine():
        quantize(changed, target, "Q8_0", n_threads=1)
    report = drift(ref, target)
    assert report.culprit is not None
    assert report.culprit.tensor in names
    assert "those of attn_output are off by 1.4" in report.culprit.reason


# -- weights equal, keys different -------------------------------------------------------------


@pytest.mark.parametrize("arch", ROTARY)
def test_a_rotary_base_is_named_where_it_first_acts(arch: str, folder: Path) -> None:
    ref, key = model(folder, arch), f"{arch}.rope.freq_base"
    for other in (
        models.rewritten(ref, folder / "base.gguf", {key: 500.0}),
        quantized(models.rewritten(ref, folder / "base-q.gguf", {key: 500.0}), folder),
    ):
        report = drift(ref, other)
        assert report.culprit is not None
        assert report.culprit.tensor is None
        assert report.culprit.layer == (0 if arch != "gemma3" else report.culprit.layer)
        assert f"{key} is missing in the reference and 500.0" in report.culprit.reason


def quantized(path: Path, folder: Path) -> Path:
    target = folder / "quantized.gguf"
    with in_process.engine():
        quantize(path, target, "Q4_K_M", n_threads=1)
    return target


def test_a_routing_key_is_named(folder: Path) -> None:
    ref, key = model(folder, "qwen3moe"), "qwen3moe.expert_used_count"
    report = drift(ref, models.rewritten(ref, folder / "used.gguf", {key: 1}))
    assert report.culprit is None or key in report.culprit.reason
    assert f"{key} is 2 in the reference and 1 in the model under test" in report.verdict


def test_a_key_that_this_architecture_does_not_read_is_not_named(folder: Path) -> None:
    ref = model(folder, "llama")
    report = drift(
        ref, models.rewritten(ref, folder / "idle.gguf", {"llama.attn_logit_softcapping": 5.0})
    )
    assert report.verdict.startswith("No drift")
    assert "softcapping" not in report.verdict


def test_rotary_factors_that_one_file_lacks_are_named(folder: Path) -> None:
    lacking = model(folder, "llama")
    factors = np.linspace(1, 8, 32).astype(np.float32)
    ref = models.rewritten(lacking, folder / "factors.gguf", tensors={"rope_freqs.weight": factors})
    report = drift(ref, lacking)
    assert report.culprit is not None
    assert "the model under test lacks rope_freqs.weight" in report.culprit.reason


# -- a cache in a small type -------------------------------------------------------------------


def biased(layer: int) -> dict[str, object]:
    def change(b: np.ndarray) -> np.ndarray:
        b[np.arange(0, 256, 64) + 40] += 300
        return b

    return {f"blk.{layer}.attn_k.bias": change}


@pytest.mark.parametrize("layer", range(3))
def test_biased_keys_ruin_a_quantized_cache_in_their_layer(layer: int, folder: Path) -> None:
    path = models.rewritten(model(folder, "phi2"), folder / "biased.gguf", tensors=biased(layer))
    report = drift(path, path, SideOptions(cache_type_k="q4_0"))
    assert report.culprit is not None
    assert (report.culprit.layer, report.culprit.tensor) == (layer, None)
    reason = report.culprit.reason
    assert f"the attention of layer {layer} is off by" in reason
    assert "K is cached in q4_0" in reason
    assert "its keys reach" in reason
    assert "keep K at higher precision (-ctk f16" in reason


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3", "qwen3moe", "gemma3", "olmo", "phi2"])
@pytest.mark.parametrize("cache", ["q8_0", "q5_0", "q4_0"])
def test_a_quantized_cache_of_a_sound_model_is_not_accused(
    arch: str, cache: str, folder: Path
) -> None:
    path = model(folder, arch)
    options = SideOptions(flash_attention="on", cache_type_k=cache, cache_type_v=cache)
    report = drift(path, path, options)
    assert report.culprit is None, report.verdict


# -- the order of the arguments, and what was not compared -------------------------------------


def test_a_reference_that_was_quantized_before_is_recognised(folder: Path) -> None:
    q4 = folder / "q4_0.gguf"
    with in_process.engine():
        quantize(model(folder, "llama"), q4, "Q4_0", n_threads=1)
    tensors = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        for t in gguf.GGUFReader(q4).tensors
        if t.tensor_type == gguf.GGMLQuantizationType.Q4_0
    }
    plain = models.rewritten(q4, folder / "plain.gguf", tensors=dict.fromkeys(tensors))
    back = models.rewritten(plain, folder / "back.gguf", tensors=tensors)
    report = drift(back, q4)
    assert report.culprit is None, report.verdict
    report = drift(back, quantized(model(folder, "llama"), folder))
    assert report.culprit is None, report.verdict
    assert "it was quantized before" in report.verdict


def test_what_was_not_compared_is_the_last_sentence(folder: Path) -> None:
    path = models.bert(folder / "bert.gguf")
    report = drift(path, path)
    assert report.logits is None
    assert re.search(
        r" \d+ operations were compared; not compared: (.*; )?predictions, but the embedding was.$",
        report.verdict,
    )


# -- one matrix, and the two files alone -------------------------------------------------------


def test_what_was_done_to_a_matrix_is_told_from_its_values() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 64)).astype(np.float32)
    update = np.outer(rng.standard_normal(64), rng.standard_normal(64)).astype(np.float32)
    assert describe(w, w + 0.1 * update) == "by a rank-1 update"
    assert describe(w, np.ascontiguousarray(w.T)) == "transposed"
    assert describe(w, w * np.float32(1.5)) == "scaled by 1.5"
    assert describe(w, w[::-1].copy()) == "the same values in another order"
    assert describe(w, w + 0.1 * rng.standard_normal(w.shape).astype(np.float32)) is None
    assert describe(w, np.full_like(w, np.nan)) is None


def test_what_was_done_is_told_through_the_noise_of_a_type() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((256, 256)).astype(np.float32)
    noise = rng.standard_normal(w.shape).astype(np.float32)
    update = rng.standard_normal((256, 8)) @ rng.standard_normal((8, 256))
    update *= np.linalg.norm(w) / np.linalg.norm(update)
    part, column = w.copy(), w.copy()
    part[64:128], column[:, 7] = 0, 50 * w[:, 7]
    for cost in (0.005, 0.07):
        off = np.float32(cost) * noise
        assert describe(w, (w + 0.15 * update + off).astype(np.float32), cost) == (
            "by a rank-8 update"
        )
        assert describe(w, w.T + off, cost) == "transposed"
        assert describe(w, 1.5 * w + off, cost) == "scaled by 1.5"
        assert describe(w, np.roll(w, 3, axis=0) + off, cost) == "the same values in another order"
        assert describe(w, w + off, cost) is None
        assert describe(w, w + 4 * off, cost) is None
        assert describe(w, column + off, cost) == "1 of 256 columns differ, and no other"
    zeroed = np.where(part == 0, 0, part + 0.07 * noise).astype(np.float32)
    assert describe(w, zeroed, 0.07) == "64 of 256 rows are all zero"


def test_diff_asks_whether_the_files_were_exchanged(folder: Path) -> None:
    ref = model(folder, "llama")
    target = quantized(ref, folder)
    exchanged = ggufnorm.diff(target, ref).verdict
    assert exchanged.startswith("The reference is quantized more coarsely than the model under")
    assert "damaged" not in exchanged
    assert "swapped" not in ggufnorm.diff(ref, target).verdict


def test_diff_counts_weights_of_one_type_with_other_values(folder: Path) -> None:
    ref = model(folder, "llama")
    names = halves(ref)
    other = models.rewritten(ref, folder / "tuned.gguf", tensors=dict.fromkeys(names, low_rank))
    verdict = ggufnorm.diff(ref, other).verdict
    assert "21 of 23 tensors that both files hold in the same type have other values" in verdict
    assert "from layer 0 on: not two versions of the same weights" in verdict
