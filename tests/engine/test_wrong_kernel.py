"""One kernel made wrong on purpose: its operation is named first, and what the fault depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ggufnorm
from ggufnorm.core.drift import DriftReport
from ggufnorm.runs.options import SideOptions
from tests.wrong_kernels import Fault, installed_libraries, wrong_build


def drift(model: Path, text: str, bad: Path, **options: Any) -> DriftReport:
    return ggufnorm.drift(
        model,
        model,
        text=text,
        n_ctx=32,
        chunks=1,
        n_threads=1,
        options_ref=SideOptions(llama_cpp=str(installed_libraries()), **options),
        options=SideOptions(llama_cpp=str(bad), **options),
    )


F16 = "d->src[0]->type == GGML_TYPE_F16"
ALWAYS = [
    (Fault("ggml_compute_forward_mul_mat", F16), "llama", "MUL_MAT with F16",
     "blk.0.attn_q.weight"),
    (Fault("ggml_compute_forward_mul_mat", F16, "NAN"), "gpt2", "MUL_MAT with F16",
     "blk.0.attn_qkv.weight"),
    (Fault("ggml_compute_forward_soft_max", value="*x * (1 + 0.1f * (i0 % 2))"), "qwen3moe",
     "SOFT_MAX", "ffn_moe_probs-0"),
    (Fault("ggml_compute_forward_rope"), "llama", "ROPE", "Qcur-0@3"),
    (Fault("ggml_compute_forward_flash_attn_ext"), "llama", "FLASH_ATTN_EXT",
     "flash_attn_ext after Kcur-0"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "arch", "kind", "at"), ALWAYS)
def test_a_wrong_kernel_is_named_first(
    tiny: dict[str, Path], text: str, tmp_path: Path, fault: Fault, arch: str, kind: str, at: str
) -> None:
    report = drift(tiny[arch], text, wrong_build(tmp_path / "bad", fault))
    assert report.culprit is not None, report.verdict
    assert report.culprit.reason.startswith(f"{kind} ") or f"{kind} with" in report.culprit.reason
    assert at in (report.culprit.tensor, report.culprit.node)
    assert "sources [" in report.culprit.reason
    assert "does not depend on the batch size" in report.verdict
    assert "no fault of a fusion" in report.verdict
    assert [c.op for c in report.circumstances if c.alone] == [kind.split()[0]]


def test_a_fault_of_large_batches_is_told_as_such(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    fault = Fault("ggml_compute_forward_mul_mat", f"{F16} && d->ne[1] > 8")
    report = drift(tiny["llama"], text, wrong_build(tmp_path / "bad", fault))
    assert report.culprit is not None
    assert "there in batches of 32 tokens, and not in batches of 8 tokens and 1" in report.verdict


def test_a_fault_of_single_tokens_is_not_missed(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    fault = Fault("ggml_compute_forward_mul_mat", f"{F16} && d->ne[1] == 1")
    # Chunks of 32 tokens have one such product: of the last token alone, for its logits.
    report = drift(tiny["gpt2"], text, wrong_build(tmp_path / "bad", fault))
    assert report.logits is not None
    assert report.culprit is not None, report.verdict
    assert report.culprit.reason.startswith("MUL_MAT with F16 is off by")
    assert "there in batches of 1 token, and not in batches of 32 tokens and 8" in report.verdict


def test_what_makes_up_for_a_fault_does_not_hide_it(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    fault = Fault("ggml_compute_forward_soft_max")  # the experts' weights are normalized again
    report = drift(tiny["qwen3moe"], text, wrong_build(tmp_path / "bad", fault))
    assert report.culprit is not None
    assert report.culprit.reason.startswith("SOFT_MAX is off by 0.01 NMSE")
    assert "only where each operation is watched by itself" in report.verdict


def test_a_fault_of_a_fusion_that_is_watched_whole_is_told_as_such(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    fault = Fault("ggml_compute_forward_rms_norm_mul_fused", kind="FUSED")
    report = drift(tiny["llama"], text, wrong_build(tmp_path / "bad", fault))
    assert report.culprit is not None
    assert report.culprit.tensor == "blk.0.attn_norm.weight"
    assert "the fault depends on the fusion of operations" in report.verdict


def test_a_fault_of_a_fusion_that_watching_prevents_is_found(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    fault = Fault("ggml_graph_compute", value="*x + (i0 % 7)", kind="GRAPH")
    report = drift(tiny["llama"], text, wrong_build(tmp_path / "bad", fault))
    assert report.logits is not None
    assert report.logits.max_kld == 0  # while operations are watched
    assert report.culprit is not None, report.verdict
    assert report.culprit.node == "fused operations"
    assert "fusion of operations, which watching prevents" in report.verdict


def test_a_build_without_a_fault_is_accused_of_nothing(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    build = wrong_build(tmp_path / "bad", Fault("ggml_compute_forward_mul_mat", "0"))
    for arch in ("llama", "gpt2"):
        report = drift(tiny[arch], text, build)
        assert report.culprit is None
        assert "in batches of 32 tokens, 8 tokens and 1 token, and with each" in report.verdict


def test_repacked_kernels_are_accused_of_nothing(sample_q4: Path) -> None:
    report = ggufnorm.drift(
        sample_q4, sample_q4, n_ctx=64, chunks=1, n_threads=1,
        options=SideOptions(flash_attention="on", use_extra_bufts=True),
        options_ref=SideOptions(flash_attention="off"),
    )  # fmt: skip
    assert report.culprit is None, report.verdict
    assert len(report.circumstances) == 4
