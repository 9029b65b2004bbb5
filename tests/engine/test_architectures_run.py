"""Every kind of graph that llama.cpp builds, run through the engine on random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ggufnorm
from ggufnorm.core.drift import DriftReport, OperationDrift
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.errors import EngineError
from ggufnorm.runs.options import SideOptions
from tests import in_process, models, plain_decode

BUILD = {
    "llama": models.llama,
    "gpt2": models.gpt2,
    "qwen3": models.qwen3,
    "qwen3moe": models.qwen3moe,
    "gemma3": models.gemma3,
    "olmo": models.olmo,
    "stablelm": models.stablelm,
    "phi2": models.phi2,
    "mamba": models.mamba,
    "jamba": models.jamba,
    "rwkv7": models.rwkv7,
    "t5": models.t5,
    "bert": models.bert,
}
N_NORMS = {"llama": 7, "gpt2": 7, "qwen3": 13, "qwen3moe": 13, "gemma3": 37, "olmo": 7,
           "stablelm": 10, "phi2": 4, "mamba": 4, "jamba": 13, "rwkv7": 14, "t5": 12,
           "bert": 7}  # fmt: skip
WITNESS = {"n_ctx": 32, "chunks": 2}


@pytest.fixture(autouse=True)
def _engine_in_this_process() -> Iterator[None]:
    with in_process.engine():
        yield


class Zoo:
    """Each model, its Q4_K_M copy, and the reports on them, made when first asked for."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.text = folder, text
        self.files: dict[str, tuple[Path, Path]] = {}
        self.reports: dict[tuple[str, bool], DriftReport] = {}

    def pair(self, arch: str) -> tuple[Path, Path]:
        if arch not in self.files:
            ref = BUILD[arch](self.folder / f"{arch}.gguf")
            quantize(ref, self.folder / f"{arch}-q4.gguf", "Q4_K_M", n_threads=1)
            self.files[arch] = ref, self.folder / f"{arch}-q4.gguf"
        return self.files[arch]

    def run(self, ref: Path, quant: Path, **options: SideOptions) -> DriftReport:
        return ggufnorm.drift(ref, quant, text=self.text, n_threads=1, **WITNESS, **options)

    def itself(self, arch: str) -> DriftReport:
        ref, _ = self.pair(arch)
        if (arch, False) not in self.reports:
            self.reports[arch, False] = self.run(ref, ref)
        return self.reports[arch, False]

    def quantized(self, arch: str) -> DriftReport:
        if (arch, True) not in self.reports:
            self.reports[arch, True] = self.run(*self.pair(arch))
        return self.reports[arch, True]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, text: str) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"), text)


def off(operations: tuple[OperationDrift, ...]) -> set[str]:
    """Roles of the operations that have an error of their own."""
    return {o.role for o in operations if o.local.rel_l2 != 0}


@pytest.mark.parametrize("arch", BUILD)
def test_a_model_does_not_differ_from_itself(arch: str, zoo: Zoo) -> None:
    report = zoo.itself(arch)
    assert all(o.cumulative.rel_l2 == 0 and o.local.rel_l2 == 0 for o in report.operations)
    assert report.culprit is None
    assert report.verdict.startswith("No drift")
    assert [s.what for s in report.skipped] == (["logits"] if arch == "bert" else [])


@pytest.mark.parametrize("arch", BUILD)
def test_every_norm_is_found_and_recomputed(arch: str, zoo: Zoo) -> None:
    for report in (zoo.itself(arch), zoo.quantized(arch)):
        assert len(report.norms) == N_NORMS[arch]
        for n in report.norms:
            for residual in (n.recompute_residual, n.recompute_residual_ref):
                assert residual is not None
                assert 0 < residual < 1e-6


@pytest.mark.parametrize("arch", BUILD)
def test_quantization_shows_where_it_is_and_nowhere_else(arch: str, zoo: Zoo) -> None:
    report = zoo.quantized(arch)
    for o in report.operations:
        if o.tensor is not None and o.dtype != o.dtype_ref:
            assert o.role in ("matmul", "embedding")
            assert o.local.rel_l2 is not None
            assert 1e-3 < o.local.rel_l2 < 0.2
        else:
            assert o.local.rel_l2 == 0, o.node
    read = {o.tensor for o in report.operations}
    quantized = {t for t in read if t and t.endswith(".weight") and "norm" not in t}
    assert len(quantized) > 10
    assert report.culprit is None
    assert report.operations[-1].cumulative.rel_l2
    assert {o.role for o in report.operations} > {"embedding", "matmul", "norm", "residual"}


@pytest.mark.parametrize("arch", [a for a in BUILD if a != "bert"])
def test_predictions_agree_with_an_unobserved_run(arch: str, zoo: Zoo) -> None:
    ref, quant = zoo.pair(arch)
    p, following = plain_decode.logits(ref, zoo.text, **WITNESS)
    q, _ = plain_decode.logits(quant, zoo.text, **WITNESS)
    expected = plain_decode.statistics(p, q, following)
    got = zoo.quantized(arch).logits
    assert got is not None
    assert got.n_tokens == len(following) == (32 if arch == "t5" else 30)
    for name, value in expected.items():
        assert getattr(got, name) == pytest.approx(value, rel=1e-5), name


def test_pooled_embeddings_agree_with_an_unobserved_run(zoo: Zoo) -> None:
    r, q = (plain_decode.embeddings(path, zoo.text, **WITNESS) for path in zoo.pair("bert"))
    # llama.cpp's embeddings are what the graph pools: the same length, not normalized.
    expected = np.linalg.norm(q - r) / np.linalg.norm(r)
    got = zoo.quantized("bert").embedding
    assert got is not None
    assert got.rows == 2
    assert got.rel_l2 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("arch", ["mamba", "gemma3", "olmo"])
def test_a_tied_embedding_is_watched_at_both_ends(arch: str, zoo: Zoo) -> None:
    uses = [o for o in zoo.quantized(arch).operations if o.tensor == "token_embd.weight"]
    assert [o.role for o in uses] == ["embedding", "matmul"]
    assert all(o.local.rel_l2 for o in uses)


def test_kinds_of_norms_are_told_from_the_graph(zoo: Zoo) -> None:
    kinds = {arch: {n.kind for n in zoo.itself(arch).norms} for arch in ("rwkv7", "olmo", "jamba")}
    assert kinds == {"rwkv7": {"layer", "l2"}, "olmo": {"layer"}, "jamba": {"rms"}}
    assert {n.tensor for n in zoo.itself("olmo").norms} == {None}
    per_head = [n for n in zoo.itself("stablelm").norms if n.role == "q"]
    assert [n.output.rows for n in per_head] == [64 * 4] * 3


def test_hard_coded_epsilons_are_the_ones_reported(zoo: Zoo) -> None:
    """rwkv7's time-mix norm uses 64e-5, whatever the metadata says (src/models/rwkv7-base.cpp)."""
    used = {n.tensor: n.epsilon_used for n in zoo.itself("rwkv7").norms if n.tensor}
    assert used["blk.0.attn_norm.weight"] == 1e-5
    assert used["blk.0.time_mix_ln.weight"] == pytest.approx(64e-5)


# -- one model, other options ------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3moe"])
@pytest.mark.parametrize(
    ("ref", "other"),
    [
        (SideOptions(flash_attention="off"), SideOptions(flash_attention="on")),
        (SideOptions(flash_attention="on"), SideOptions(flash_attention="off")),
        (SideOptions(), SideOptions(cache_type_k="q8_0")),
        (SideOptions(), SideOptions(cache_type_v="q8_0")),
    ],
    ids=["fa-on", "fa-off", "ctk", "ctv"],
)
def test_attention_options_are_told_at_attention_alone(
    arch: str, ref: SideOptions, other: SideOptions, zoo: Zoo
) -> None:
    path, _ = zoo.pair(arch)
    report = zoo.run(path, path, options_ref=ref, options=other)
    assert off(report.operations) == {"attention"}
    assert sum(o.role == "attention" for o in report.operations) == (6 if arch == "gemma3" else 3)
    assert report.logits is not None
    assert report.logits.max_kld is not None
    assert 0 < report.logits.max_kld < 1e-2
    assert report.culprit is None
    assert report.skipped == ()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "rwkv7"])
def test_unfused_norms_compute_what_fused_ones_do(arch: str, zoo: Zoo) -> None:
    path, _ = zoo.pair(arch)
    report = zoo.run(path, path, options=SideOptions(unfused_norms=True))
    assert report.logits is not None
    assert report.logits.max_kld is not None
    assert report.logits.max_kld < 1e-9
    for o in report.operations:
        assert o.local.rel_l2 is not None
        assert o.local.rel_l2 < 1e-6
    assert report.culprit is None


@pytest.mark.parametrize("n_head", [8, 16])
def test_heads_that_the_kernel_of_rwkv7_overruns_are_refused(tmp_path: Path, n_head: int) -> None:
    """The child died of it: "double free or corruption", or with a segmentation fault."""
    path = models.rwkv7(tmp_path / "m.gguf", models.Shape(n_head=n_head))
    with pytest.raises(EngineError, match=r"wkv\.head_size is .* multiple of 64: it cannot be run"):
        ggufnorm.drift(path, path, text="the rain in spain " * 40, n_threads=1, **WITNESS)
