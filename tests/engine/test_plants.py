"""More kinds of faults, planted in many architectures: is each named in its kind and place?

``python -m tests.engine.test_plants`` plants all of them and prints the table of
``docs/detection.md``; the tests plant each kind in some architectures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggufnorm
from ggufnorm.core.drift import DriftReport
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.runs.options import PLAIN, SideOptions
from tests import in_process, models
from tests.paths import ROOT

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 4
FLASH = SideOptions(flash_attention="on")

ALL = (
    "llama", "gpt2", "qwen3", "qwen3moe", "gemma2", "gemma3", "olmo", "stablelm", "phi2",
    "deepseek2", "mamba", "jamba", "rwkv7", "t5", "bert",
)  # fmt: skip
CACHED = ALL[:9]
ROTARY = ("llama", "qwen3", "qwen3moe", "gemma2", "gemma3", "olmo", "stablelm", "phi2", "deepseek2")
EXPERTS = ("qwen3moe", "deepseek2")
UNTIED = ("llama", "gpt2", "qwen3", "qwen3moe", "deepseek2")

Planted = tuple[DriftReport, str | None, Sequence[str]]
"""A report, the tensor that it has to name (empty for one of none, None for no culprit), and
words that have to be in the verdict."""
Change = Callable[[np.ndarray], np.ndarray]


class Bench:
    """A folder with models, and what is done to them."""

    def __init__(self, folder: Path, arch: str) -> None:
        self.folder, self.arch = folder, arch
        self.model = folder / f"{arch}.gguf"
        if not self.model.exists():
            getattr(models, arch)(self.model)

    @property
    def tensors(self) -> list[gguf.ReaderTensor]:
        return list(gguf.GGUFReader(self.model).tensors)

    @property
    def halves(self) -> list[str]:
        half = gguf.GGMLQuantizationType.F16
        return [t.name for t in self.tensors if t.tensor_type == half and "blk." in t.name]

    def changed(
        self,
        tensors: Mapping[str, Change | None] | None = None,
        keys: Mapping[str, float | int] | None = None,
    ) -> Path:
        return models.rewritten(
            self.model, self.folder / f"{self.arch}-changed.gguf", keys, tensors
        )

    def quantized(self, path: Path, file_type: str) -> Path:
        target = self.folder / f"{self.arch}-{file_type}.gguf"
        with in_process.engine():
            quantize(path, target, file_type, n_threads=1)
        return target

    def dequantized(self, file_type: str) -> Path:
        """The model, its matrices rounded to a type and stored in half precision again."""
        with GGUFFile(self.quantized(self.model, file_type)) as file:
            values = {
                t.name: np.ascontiguousarray(read_tensor(file, t.name)).astype(np.float16)
                for t in self.tensors
                if t.tensor_type == gguf.GGMLQuantizationType.F16
            }
        changes = {
            name: lambda w, v=v: v.reshape(w.shape)  # type: ignore[misc]
            for name, v in values.items()
        }
        target = self.folder / f"{self.arch}-rounded.gguf"
        return models.rewritten(self.model, target, tensors=changes)

    def drift(
        self,
        ref: Path,
        quant: Path,
        options: SideOptions = PLAIN,
        options_ref: SideOptions = PLAIN,
    ) -> DriftReport:
        with in_process.engine():
            return ggufnorm.drift(
                ref, quant, text=TEXT, n_ctx=32, chunks=2, n_threads=1,
                options=options, options_ref=options_ref,
            )  # fmt: skip


def in_float(change: Change) -> Change:
    """A change of float32 values, of a tensor in its own type."""
    return lambda w: change(w.astype(np.float32)).astype(w.dtype)


# -- what is planted ---------------------------------------------------------------------------


def large_values(b: Bench) -> Iterator[Planted]:
    """Large channels of one layer's values, cached in Q4_0: a block's scale loses the others."""

    def enlarged(w: np.ndarray, first: int = 0) -> np.ndarray:
        w[first + 8 :: 64] *= 400
        return w

    names = [t.name for t in b.tensors]
    fused = "blk.1.attn_v.weight" not in names
    name = "blk.1.attn_qkv.weight" if fused else "blk.1.attn_v.weight"
    change = in_float(partial(enlarged, first=512 if fused else 0))
    path = b.changed({name: change})
    report = b.drift(path, path, SideOptions(flash_attention="on", cache_type_v="q4_0"), FLASH)
    yield report, "", ["V is cached in q4_0", "layer 1"]


def other_kernel(b: Bench) -> Iterator[Planted]:
    """Flash attention on one side only: sound."""
    off = SideOptions(flash_attention="off")
    yield b.drift(b.model, b.model, FLASH, off), None, []


def key(name: str, value: float) -> Callable[[Bench], Iterator[Planted]]:
    """Another value of a key, weights equal, and then quantized."""

    def plant(b: Bench) -> Iterator[Planted]:
        full = f"{b.arch}.{name}"
        path = b.changed(keys={full: value})
        yield b.drift(b.model, path), "", [full]
        yield b.drift(b.model, b.quantized(path, "Q4_K_M")), "", [full]

    return plant


def zeroed(w: np.ndarray) -> np.ndarray:
    w[2] = 0
    return w


def exchanged(w: np.ndarray) -> np.ndarray:
    w[[0, 3]] = w[[3, 0]]
    return w


def experts(b: Bench) -> Iterator[Planted]:
    """One expert all zero, and two exchanged."""
    for name, change, said in (
        ("blk.1.ffn_down_exps.weight", zeroed, "expert 2 of 4 is all zero"),
        ("blk.2.ffn_up_exps.weight", exchanged, "expert 0 of 4 holds expert 3's values"),
    ):
        path = b.changed({name: change})
        yield b.drift(b.model, path), name, [said]
        for file_type in ("Q8_0", "Q4_K_M"):
            yield b.drift(b.model, b.quantized(path, file_type)), name, [said]


def rank_one(w: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(w.size)
    update = rng.standard_normal((*w.shape[:-1], 1)) @ rng.standard_normal((1, w.shape[-1]))
    return w + 0.1 * np.linalg.norm(w) / np.linalg.norm(update) * update


def adapter(b: Bench) -> Iterator[Planted]:
    """An update of rank 1 in one layer's matrices."""
    names = [n for n in b.halves if ".1." in n][:4]
    path = b.changed(dict.fromkeys(names, in_float(rank_one)))
    yield b.drift(b.model, path), "|".join(names), ["by a rank-1 update"]
    for file_type in ("Q8_0", "Q4_K_M"):
        report = b.drift(b.model, b.quantized(path, file_type))
        yield report, "|".join(names), ["by a rank-1 update"]


def fine_tune(b: Bench) -> Iterator[Planted]:
    """All matrices moved by 4 %."""
    path = b.changed({n: models.noise(0.04, i) for i, n in enumerate(b.halves)})
    yield b.drift(b.model, path), "*", ["not two versions of the same weights"]
    yield b.drift(b.model, b.quantized(path, "Q8_0")), "*", ["another fine-tune"]


def requantized(b: Bench) -> Iterator[Planted]:
    """Rounded to Q4_0 before it was stored in F16, or in Q8_0."""
    path = b.dequantized("Q4_0")
    yield b.drift(b.model, path), "*", ["rounded to Q4_0 before"]
    yield b.drift(b.model, b.quantized(path, "Q8_0")), "*", ["on the grid of Q4_0"]


def rounded_reference(b: Bench) -> Iterator[Planted]:
    """A reference that was rounded to Q4_0: sound."""
    ref = b.dequantized("Q4_0")
    yield b.drift(ref, b.quantized(b.model, "Q4_K_M")), None, ["it was quantized before"]


def swapped(b: Bench) -> Iterator[Planted]:
    """The arguments exchanged: sound."""
    for file_type in ("Q8_0", "Q4_K_M", "Q2_K"):
        yield b.drift(b.quantized(b.model, file_type), b.model), None, ["swapped?"]


def vectors(b: Bench) -> Iterator[Planted]:
    """A bias, or another vector of a block, half as large again."""
    plain = [
        t.name
        for t in b.tensors
        if t.tensor_type == gguf.GGMLQuantizationType.F32 and ".1." in t.name
        and t.name.endswith((".bias", "ssm_a", "ssm_d", ".w0"))
        and "norm" not in t.name and "_ln" not in t.name
    ]  # fmt: skip
    for name in plain[:2]:
        path = b.changed({name: in_float(lambda w: 1.5 * w)})
        yield b.drift(b.model, path), name, []
        yield b.drift(b.model, b.quantized(path, "Q4_K_M")), name, []


def lost_head(b: Bench) -> Iterator[Planted]:
    """A trained output matrix left out: the embedding stands in for it."""
    path = b.changed({"output.weight": None})
    yield b.drift(b.model, path), "output.weight", ["lost to tying"]


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what is done, where it applies, and where the tests plant it."""

    title: str
    plant: Callable[[Bench], Iterator[Planted]]
    archs: Sequence[str]
    tested: Sequence[str]


KINDS = (
    Kind("large values in a V cache of Q4_0", large_values, (*CACHED, "jamba"), ("qwen3",)),
    Kind("another rotary base", key("rope.freq_base", 500.0), ROTARY, ("deepseek2",)),
    Kind("another softcap of scores", key("attn_logit_softcapping", 0.5), ("gemma2",), ()),
    Kind("another softcap of logits", key("final_logit_softcapping", 2.0), ("gemma2",),
         ("gemma2",)),
    Kind("another window", key("attention.sliding_window", 2), ("gemma2", "gemma3"), ()),
    Kind("another scale of experts", key("expert_weights_scale", 2.5), ("deepseek2",),
         ("deepseek2",)),
    Kind("fewer experts used", key("expert_used_count", 1), ("deepseek2",), ()),
    Kind("an expert zeroed, two exchanged", experts, EXPERTS, ("qwen3moe",)),
    Kind("an adapter of rank 1 in one layer", adapter, ALL, ("jamba",)),
    Kind("another fine-tune (4 %)", fine_tune, ALL, ("bert",)),
    Kind("rounded to Q4_0 before", requantized, ALL, ("gemma2",)),
    Kind("a vector × 1.5", vectors, ("gpt2", "phi2", "mamba", "jamba", "rwkv7", "bert"),
         ("mamba",)),
    Kind("a trained output matrix lost", lost_head, UNTIED, ("llama",)),
    Kind("sound: flash attention on one side", other_kernel, ALL, ("stablelm",)),
    Kind("sound: a reference rounded to Q4_0", rounded_reference, ALL, ("gemma2",)),
    Kind("sound: the arguments exchanged", swapped, ALL, ("deepseek2",)),
)  # fmt: skip


def outcome(planted: Planted) -> str:
    """``found``, ``misnamed`` or ``missed``."""
    report, tensor, words = planted
    culprit = report.culprit
    if culprit is None:
        return "found" if tensor is None and _says(report, words) else "missed"
    named = tensor == "*" or (culprit.tensor or "") in (tensor or "-").split("|")
    if tensor == "":  # an operation that reads no weight, or none that differs
        named = True
    return "found" if named and _says(report, words) else "misnamed"


def _says(report: DriftReport, words: Sequence[str]) -> bool:
    return all(word in report.verdict for word in words)


def rows(folder: Path) -> Iterator[str]:
    """Found of planted, a row for each kind."""
    yield "| planted | architectures | found | misnamed | missed |"
    yield "|---|---:|---:|---:|---:|"
    for kind in KINDS:
        found = [outcome(p) for arch in kind.archs for p in kind.plant(Bench(folder, arch))]
        counts = " | ".join(str(found.count(o)) for o in ("found", "misnamed", "missed"))
        yield f"| {kind.title} | {len(kind.archs)} | {counts} |"


# -- tests -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plants")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "arch"),
    [(kind, arch) for kind in KINDS for arch in kind.tested],
    ids=lambda v: v if isinstance(v, str) else v.title,
)
def test_what_is_planted_is_named(kind: Kind, arch: str, folder: Path) -> None:
    for planted in kind.plant(Bench(folder, arch)):
        assert outcome(planted) == "found", planted[0].verdict


def test_the_document_has_a_row_for_each_kind() -> None:
    page = (ROOT / "docs" / "detection.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"| {kind.title} | {len(kind.archs)} |" in page


def test_each_expert_has_a_row(folder: Path) -> None:
    b = Bench(folder, "qwen3moe")
    name = "blk.1.ffn_down_exps.weight"

    def noisy(w: np.ndarray) -> np.ndarray:
        w[2] = models.noise(0.4)(w[2])
        return w

    report = b.drift(b.model, b.quantized(b.changed({name: noisy}), "Q8_0"))
    of_layer = {e.expert: e for e in report.experts if e.tensor == name}
    assert sorted(of_layer) == [0, 1, 2, 3]
    worst = max(of_layer.values(), key=lambda e: e.local or 0.0)
    assert worst.expert == 2
    assert (worst.local or 0) > 10 * max(
        e.local or 0.0 for e in of_layer.values() if e is not worst
    )
    assert sum(e.rows for e in of_layer.values()) == 2 * 2 * 32
    assert report.culprit is not None
    assert "expert 2 of 4 is off by 0.4" in report.culprit.reason
    unused = [e for e in report.experts if not e.rows]
    assert all(e.local is None for e in unused)
    assert any(s.what == "experts" for s in report.skipped) == bool(unused)


def test_a_reference_that_holds_nan_is_no_measure(folder: Path) -> None:
    b = Bench(folder, "llama")

    def broken(w: np.ndarray) -> np.ndarray:
        w[:] = np.nan
        return w

    path = b.changed({"blk.1.ffn_up.weight": in_float(broken)})
    for quant in (path, b.model):
        report = b.drift(path, quant)
        assert report.culprit is not None
        assert report.culprit.tensor == "blk.1.ffn_up.weight"
        assert "in the reference too" in report.culprit.reason
    report = b.drift(b.model, path)
    assert report.culprit is not None
    assert "in the reference" not in report.culprit.reason


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for row in rows(Path(name)):
            print(row, flush=True)
