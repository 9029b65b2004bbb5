"""Sides that cut a chunk into other batches: each value beside the one of the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ggufnorm
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.runs.options import SideOptions
from tests import in_process

EXACT = {"flash_attention": "off", "cache_type_k": "f32", "cache_type_v": "f32"}


def drift(ref: Path, quant: Path, text: str, cut: tuple[int, int], **more: Any) -> Any:
    sides = [SideOptions(n_ubatch=n, **EXACT) for n in cut]  # type: ignore[arg-type]
    given = {"n_ctx": 32, "chunks": 2, "n_threads": 1, **more}
    with in_process.engine():
        return ggufnorm.drift(
            ref, quant, text=text, options_ref=sides[0], options=sides[1], **given
        )


@pytest.mark.parametrize(
    ("arch", "cut", "most"),
    [
        ("llama", (12, 20), 1e-5),
        ("gpt2", (8, 32), 1e-5),
        ("qwen3moe", (20, 12), 1e-5),
        ("llama", (1, 32), 2e-3),  # a single token takes other kernels
    ],
)
def test_the_same_model_is_the_same_however_it_is_cut(
    tiny: dict[str, Path], text: str, arch: str, cut: tuple[int, int], most: float
) -> None:
    alike = drift(tiny[arch], tiny[arch], text, (cut[1], cut[1]), floor=True)
    other = drift(tiny[arch], tiny[arch], text, cut, floor=True)
    assert [o.node for o in other.operations] == [o.node for o in alike.operations]
    # Whole chunks: nothing is left out, and nothing counts twice.
    rows = [(o.local.rows, o.cumulative.rows) for o in alike.operations]
    assert [(o.local.rows, o.cumulative.rows) for o in other.operations] == rows
    assert max(o.cumulative.rel_l2 for o in other.operations) < most
    assert max(o.local.rel_l2 for o in other.operations) < most
    assert [n.tensor for n in other.norms] == [n.tensor for n in alike.norms]
    assert other.logits.n_tokens == alike.logits.n_tokens
    assert other.logits.mean_kld < most / 100
    assert other.skipped == alike.skipped
    assert f"at most {cut[0]} and {cut[1]} tokens in a decode" in other.verdict


def test_a_quantization_costs_the_same_however_the_reference_is_cut(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    quant = tmp_path / "q4.gguf"
    quantize(tiny["llama"], quant, "Q4_0", n_threads=1)
    alike = drift(tiny["llama"], quant, text, (16, 16))
    other = drift(tiny["llama"], quant, text, (5, 16))
    for a, b in zip(alike.operations, other.operations, strict=True):
        assert b.local.rel_l2 == pytest.approx(a.local.rel_l2, rel=1e-3, abs=1e-6)
        assert b.cumulative.rel_l2 == pytest.approx(a.cumulative.rel_l2, rel=1e-3, abs=1e-6)
    assert other.logits.mean_kld == pytest.approx(alike.logits.mean_kld, rel=1e-4)


def test_where_a_chunk_is_one_batch_on_both_sides_the_limit_changes_nothing(
    tiny: dict[str, Path], text: str
) -> None:
    alike = drift(tiny["llama"], tiny["llama"], text, (512, 512))
    other = drift(tiny["llama"], tiny["llama"], text, (64, 512))
    assert other.operations == alike.operations
