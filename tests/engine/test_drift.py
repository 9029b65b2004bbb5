"""The whole main job, run through llama.cpp on real and on damaged models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ggufnorm
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.report.document import document
from ggufnorm.samples import default_text
from tests import framework_models, models, plain_decode

ARCHITECTURES = ["llama", "gpt2", "qwen3moe"]


@pytest.fixture(scope="module")
def sample_drift(sample: Path, sample_q4: Path) -> DriftReport:
    return ggufnorm.drift(sample, sample_q4, chunks=6)


def run(ref: Path, quant: Path, text: str, **options: int) -> DriftReport:
    return ggufnorm.drift(ref, quant, text=text, **{"n_ctx": 32, "chunks": 4, **options})


# -- the sample, against an independent witness ------------------------------------------


def test_predictions_agree_with_an_unobserved_run(
    sample: Path, sample_q4: Path, sample_drift: DriftReport
) -> None:
    ref, following = plain_decode.logits(sample, default_text(), n_ctx=512, chunks=6)
    quant, _ = plain_decode.logits(sample_q4, default_text(), n_ctx=512, chunks=6)
    expected = plain_decode.statistics(ref, quant, following)
    got = sample_drift.logits
    assert got is not None
    assert got.n_tokens == 6 * 255
    assert got.mean_kld == pytest.approx(expected["mean_kld"], rel=1e-5)
    assert got.max_kld == pytest.approx(expected["max_kld"], rel=1e-5)
    assert got.same_top1 == expected["same_top1"]
    assert got.ppl_ref == pytest.approx(expected["ppl_ref"], rel=1e-6)
    assert got.ppl_quant == pytest.approx(expected["ppl_quant"], rel=1e-6)


def test_every_norm_of_the_sample_is_found_and_recomputed(sample_drift: DriftReport) -> None:
    names = [f"blk.{i}.{role}_norm.weight" for i in range(5) for role in ("attn", "ffn")]
    assert [n.tensor for n in sample_drift.norms] == [*names, "output_norm.weight"]
    for n in sample_drift.norms:
        assert n.kind == "rms"
        assert n.epsilon_used == n.epsilon_metadata == 1e-5
        assert n.weight is not None
        assert n.weight.rel_l2 == 0
        assert n.recompute_residual is not None
        assert 0 < n.recompute_residual < 1e-6
        assert n.recompute_residual_ref is not None
        assert 0 < n.recompute_residual_ref < 1e-6


def test_quantization_drift_passes_through_norms_but_is_not_made_there(
    sample_drift: DriftReport,
) -> None:
    for n in sample_drift.norms:
        assert n.local.rel_l2 == 0
        assert n.output.rel_l2 is not None
        assert n.output.rel_l2 > 0.005
    matmuls = [o for o in sample_drift.operations if o.role == "matmul"]
    assert len(matmuls) == 5 * 7 + 1
    for o in matmuls:
        assert o.local.rel_l2 is not None
        assert 1e-4 < o.local.rel_l2 < 0.2
    assert sample_drift.culprit is None
    assert "gradually" in sample_drift.verdict
    assert "No norm is at fault" in sample_drift.verdict


def test_first_drift_is_the_embedding_row_error(
    sample: Path, sample_q4: Path, sample_drift: DriftReport
) -> None:
    """The first norm's input is an embedding row: its drift follows from the files alone."""
    ref, quant = (
        plain_decode.embedding_rows(p, default_text(), 512, 6) for p in (sample, sample_q4)
    )
    expected = np.linalg.norm(quant - ref) / np.linalg.norm(ref)
    assert sample_drift.norms[0].input.rel_l2 == pytest.approx(expected, rel=1e-5)


# -- any architecture --------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_identical_files_do_not_drift(arch: str, tiny: dict[str, Path], text: str) -> None:
    report = run(tiny[arch], tiny[arch], text)
    assert all(o.cumulative.rel_l2 == 0 and o.local.rel_l2 == 0 for o in report.operations)
    assert report.logits is not None
    assert (report.logits.max_kld, report.logits.same_top1) == (0.0, 1.0)
    assert report.culprit is None
    assert report.verdict.startswith("No drift")
    assert report.skipped == ()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_recompute_matches_llama_cpp_at_every_site(
    arch: str, tiny: dict[str, Path], text: str
) -> None:
    report = run(tiny[arch], tiny[arch], text)
    expected = {"llama": 7, "gpt2": 7, "qwen3moe": 13}
    kinds = {"llama": "rms", "gpt2": "layer", "qwen3moe": "rms"}
    assert len(report.norms) == expected[arch]
    for n in report.norms:
        assert n.kind == kinds[arch]
        assert n.recompute_residual is not None
        assert 0 < n.recompute_residual < 1e-6


def test_chunks_longer_than_a_batch_are_run_whole(sample: Path, text: str) -> None:
    """A chunk of 1,024 tokens takes two decodes of llama.cpp's 512."""
    report = ggufnorm.drift(sample, sample, n_ctx=1024, chunks=1)
    assert report.logits is not None
    assert report.logits.n_tokens == 511
    assert report.norms[0].input.rows == 1024
    assert report.norms[-1].input.rows == 512
    assert report.verdict.startswith("No drift")


def test_an_operation_without_a_partner_is_listed_and_the_rest_compared(
    text: str, tmp_path: Path
) -> None:
    """One side adds a bias to Q in one layer: the walk meets at all else."""
    llama = framework_models.NETWORKS["llama"]
    tensors = framework_models.converted(framework_models.build(llama), llama)
    bias = {"blk.1.attn_q.bias": np.ones(framework_models.WIDTH, np.float32)}
    plain, biased = (
        framework_models.write(tmp_path / name, llama, values)
        for name, values in (("plain.gguf", tensors), ("biased.gguf", tensors | bias))
    )
    n_plain = len(run(plain, plain, text, chunks=1).operations)
    for ref, quant, side in ((plain, biased, "the reference's"), (biased, plain, "the other")):
        report = run(ref, quant, text, chunks=1)
        assert [s.reason for s in report.skipped] == [f"has no partner in {side} graph"]
        assert report.skipped[0].what.startswith("Qcur-1")
        assert len(report.operations) == n_plain
        # What the bias does shows where Q goes next, and nowhere else.
        local = [o.node for o in report.operations if o.local.rel_l2]
        assert local == ["kqv_out-1"]


def test_memory_does_not_grow_with_the_text(sample: Path, sample_q4: Path) -> None:
    """Neither with what is run of it nor with what is only cut into tokens."""
    text = 32 * default_text()
    short, more, long = (
        ggufnorm.drift(sample, sample_q4, text=text, chunks=chunks).cost.peak_memory or 0
        for text, chunks in ((None, 2), (None, 24), (text, 24))
    )
    assert short > 0
    assert more - short < 4 << 20
    assert long - more < 4 << 20


# -- planted faults ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def quantized(
    request: pytest.FixtureRequest, tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A reference and its sound Q4_K copy."""
    quant = tmp_path_factory.mktemp("faults") / f"{request.param}-q4.gguf"
    quantize(tiny[request.param], quant, "Q4_K_S")
    return tiny[request.param], quant


def test_a_sound_quantization_has_no_culprit(quantized: tuple[Path, Path], text: str) -> None:
    assert run(*quantized, text).culprit is None


@pytest.mark.parametrize("layer", [0, 2])
def test_a_scaled_norm_weight_is_named(
    quantized: tuple[Path, Path], layer: int, text: str, tmp_path: Path
) -> None:
    ref, quant = quantized
    name = f"blk.{layer}.ffn_norm.weight"
    bad = models.edited(quant, tmp_path / "bad.gguf", {name: lambda w: w * np.float32(1.2)})
    report = run(ref, bad, text)
    assert report.culprit is not None
    assert (report.culprit.tensor, report.culprit.layer) == (name, layer)
    assert "RMS 1.2 times" in report.culprit.reason
    norm = next(n for n in report.norms if n.tensor == name)
    assert norm.local.rel_l2 == pytest.approx(0.2, rel=0.2)  # gpt2's bias is not scaled
    assert "1 of 7 norms is at fault" in report.verdict


def test_a_changed_epsilon_is_named(
    quantized: tuple[Path, Path], text: str, tmp_path: Path
) -> None:
    ref, quant = quantized
    key = "layer_norm_rms_epsilon" if "llama" in ref.name else "layer_norm_epsilon"
    key = f"{ref.stem}.attention.{key}"
    bad = models.edited(quant, tmp_path / "bad.gguf", floats={key: 0.5})
    report = run(ref, bad, text)
    for n in report.norms:
        assert (n.epsilon_used_ref, n.epsilon_used, n.epsilon_metadata) == (1e-5, 0.5, 0.5)
    assert report.culprit is not None
    # Epsilon counts most where the hidden state is smallest: at the embeddings.
    assert report.culprit.tensor == "blk.0.attn_norm.weight"
    assert "its epsilon is 0.5 where the reference uses 1e-05" in report.culprit.reason


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_noise_in_a_weight_is_named(
    tiny: dict[str, Path], layer: int, text: str, tmp_path: Path
) -> None:
    name = f"blk.{layer}.ffn_down.weight"
    noisy = models.edited(
        tiny["llama"], tmp_path / "noisy.gguf", {name: models.noise(0.25, seed=layer)}
    )
    quantize(noisy, tmp_path / "bad.gguf", "Q4_K_S")
    report = run(tiny["llama"], tmp_path / "bad.gguf", text)
    assert report.culprit is not None
    assert (report.culprit.tensor, report.culprit.layer) == (name, layer)
    assert "No norm is at fault" in report.verdict


def test_a_nan_is_named_where_it_first_appears(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    def poison(w: np.ndarray) -> np.ndarray:
        w[7] = np.nan
        return w

    bad = models.edited(tiny["llama"], tmp_path / "bad.gguf", {"blk.1.attn_output.weight": poison})
    report = run(tiny["llama"], bad, text)
    assert report.culprit is not None
    assert report.culprit.tensor == "blk.1.attn_output.weight"
    assert "NaN" in report.culprit.reason
    assert report.logits is not None
    assert report.logits.mean_kld is None
    json.dumps(document(report), allow_nan=False)


# -- refusals ----------------------------------------------------------------------------


def test_models_of_different_depth_are_refused(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    other = models.llama(tmp_path / "deep.gguf", models.Shape(n_layer=4))
    with pytest.raises(ggufnorm.InputError, match="the number of layers is 4 and not 3"):
        run(tiny["llama"], other, text)


def test_models_of_different_vocabulary_are_refused(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    other = models.llama(tmp_path / "wide.gguf", models.Shape(n_vocab=330))
    with pytest.raises(ggufnorm.InputError, match="the size of the vocabulary is 330 and not 320"):
        run(tiny["llama"], other, text)


def test_different_architectures_are_refused(tiny: dict[str, Path], text: str) -> None:
    with pytest.raises(ggufnorm.InputError, match="the architecture is gpt2 and not llama"):
        run(tiny["llama"], tiny["gpt2"], text)


def test_text_shorter_than_a_chunk_is_refused(tiny: dict[str, Path]) -> None:
    with pytest.raises(ggufnorm.InputError, match="fewer than one chunk of 32"):
        run(tiny["llama"], tiny["llama"], "short")


def test_empty_text_is_refused(tiny: dict[str, Path]) -> None:
    with pytest.raises(ggufnorm.InputError, match="is empty"):
        run(tiny["llama"], tiny["llama"], " \n")


# -- as data -----------------------------------------------------------------------------


def test_document_holds_the_promised_names(sample_drift: DriftReport) -> None:
    d = json.loads(json.dumps(document(sample_drift), allow_nan=False))
    assert (d["schema"], d["version"]) == ("ggufnorm/drift", 1)
    norm = d["norms"][0]
    for name in ("tensor", "layer", "role", "kind", "epsilon_metadata", "epsilon_used"):
        assert name in norm
    assert isinstance(norm["recompute_residual"], float)
    for part in ("input", "output", "weight"):
        for name in ("rel_l2", "cosine", "rms_ratio", "max_abs"):
            assert isinstance(norm[part][name], float)
    for name in ("mean_kld", "mean_kld_se", "p999_kld", "max_kld", "same_top1", "ppl_ref",
                 "ppl_quant", "n_tokens"):  # fmt: skip
        assert isinstance(d["logits"][name], (int, float))
    assert d["culprit"] is None


def test_report_survives_a_round_trip_through_plain_data(sample_drift: DriftReport) -> None:
    again = from_plain(DriftReport, json.loads(json.dumps(to_plain(sample_drift))))
    assert again == sample_drift
