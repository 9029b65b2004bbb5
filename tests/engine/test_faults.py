"""Faults planted in known places: does the report name the place?

``python -m tests.engine.test_faults`` prints the table of ``docs/detection.md``.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from unittest import mock

import gguf
import numpy as np
import pytest

import ggufnorm
from ggufnorm.core.drift import Culprit, DriftReport
from ggufnorm.engines.llama.quantize import quantize
from tests import in_process, models
from tests.paths import DOCS

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 4
Change = Callable[[np.ndarray], np.ndarray]

BUILD = {
    "llama": models.llama,
    "gpt2": models.gpt2,
    "qwen3": models.qwen3,
    "qwen3moe": models.qwen3moe,
}
FILE_TYPES = ("Q4_K_S", "Q4_K_M", "Q8_0")
EPSILON = {"llama": 1e-5, "gpt2": 1e-5, "qwen3": 1e-6, "qwen3moe": 1e-6}
SOUND_TYPES = (
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q4_K_M",
    "Q3_K_M",
    "Q2_K",
    "IQ4_XS",
    "Q4_0",
    "BF16",
    "F16",
)
WEIGHTS = {
    "llama": ("blk.0.attn_q", "blk.1.attn_output", "blk.2.ffn_down", "token_embd", "output"),
    "gpt2": ("blk.0.attn_qkv", "blk.1.attn_output", "blk.2.ffn_up", "token_embd", "output"),
    "qwen3": ("blk.0.attn_k", "blk.1.attn_v", "blk.2.ffn_gate", "token_embd", "output"),
    "qwen3moe": (
        "blk.0.attn_v",
        "blk.1.ffn_down_exps",
        "blk.2.ffn_up_exps",
        "token_embd",
        "output",
    ),
}


@dataclass(frozen=True)
class Case:
    """A fault in one model.

    Attributes:
        named: tensors of which any is right to name.
        before: changes to tensors ahead of quantization.
        after: changes to the quantized file's raw bytes.
        epsilon: factor on it in the quantized file.
    """

    arch: str
    file_type: str
    fault: str
    named: tuple[str, ...]
    before: Mapping[str, Change] = field(default_factory=dict, compare=False)
    after: Mapping[str, Change] = field(default_factory=dict, compare=False)
    epsilon: float = 1.0

    def __str__(self) -> str:
        return f"{self.arch}-{self.fault}-{self.named[0]}-{self.file_type}".replace(" ", "_")


def cases() -> Iterator[Case]:
    for seed, arch in enumerate(BUILD):
        types = [FILE_TYPES[(seed + k) % 3] for k in range(3)]
        rng = np.random.default_rng(seed)
        yield from weight_faults(arch, types, rng)
        yield from norm_faults(arch, types, rng)


def weight_faults(arch: str, types: list[str], rng: np.random.Generator) -> Iterator[Case]:
    names = [f"{name}.weight" for name in WEIGHTS[arch]]
    for k, name in enumerate(names):
        for level in (0.1, 0.5):
            change = models.noise(level, int(rng.integers(1 << 30)))
            yield Case(arch, types[k % 3], f"noise of {level:.0%}", (name,), {name: change})
    for k, name in enumerate(names[:3]):
        turned = [types[(k + j) % 3] for j in range(3)]
        for level in (0.03, 0.3):
            change = models.noise(level, int(rng.integers(1 << 30)))
            yield Case(arch, turned[1], f"noise of {level:.0%}", (name,), {name: change})
        column = times(50, int(rng.integers(256)))
        yield Case(arch, turned[2], "column × 50", (name,), {name: column})
        row = int(rng.integers(64))
        for fault, damage in (
            ("16 rows zeroed", zero_rows(row, 16)),
            ("one block zeroed", zero_rows(row, 1)),
            ("NaN scale in a block", nan_scale(row)),
        ):
            yield Case(arch, turned[0], fault, (name,), after={name: damage})


def norm_faults(arch: str, types: list[str], rng: np.random.Generator) -> Iterator[Case]:
    names = norm_names(arch)
    for k, i in enumerate(rng.choice(len(names), 3, replace=False).tolist()):
        channel = int(rng.integers(64))
        for fault, change in (
            ("norm × 1.003", lambda w: w * np.float32(1.003)),
            ("norm × 1.1", lambda w: w * np.float32(1.1)),
            ("norm - 1", lambda w: w - 1),
            ("norm channel × 50", times(50, channel)),
        ):
            yield Case(arch, types[k], fault, (names[i],), after={names[i]: change})
    for file_type, role in zip(types, ("attn_norm", "ffn_norm")):
        pair = f"blk.0.{role}.weight", f"blk.2.{role}.weight"
        yield Case(arch, file_type, "norms swapped", pair, after=swap(arch, *pair))
    for file_type in types:
        yield Case(arch, file_type, "epsilon × 100", names, epsilon=100.0)


def norm_names(arch: str) -> tuple[str, ...]:
    qk = ("attn_q_norm", "attn_k_norm") if arch.startswith("qwen3") else ()
    roles = ("attn_norm", "ffn_norm", *qk)
    return (*(f"blk.{i}.{r}.weight" for i in range(3) for r in roles), "output_norm.weight")


def times(factor: float, channel: int) -> Change:
    def change(w: np.ndarray) -> np.ndarray:
        w[..., channel] *= w.dtype.type(factor)
        return w

    return change


def swap(arch: str, a: str, b: str) -> dict[str, Change]:
    values = {t.name: np.array(t.data) for t in gguf.GGUFReader(reference(arch)).tensors}
    return {a: lambda _w: values[b], b: lambda _w: values[a]}


def zero_rows(row: int, n: int) -> Change:
    """Zeroes ``n`` rows of a quantized tensor; of a single one its first block only."""

    def change(raw: np.ndarray) -> np.ndarray:
        width = raw.shape[-1] if n > 1 else block_size(raw)
        raw[..., row : row + n, :width] = 0
        return raw

    return change


def nan_scale(row: int) -> Change:
    """Makes the scale of a row's first block NaN."""

    def change(raw: np.ndarray) -> np.ndarray:
        size = block_size(raw)
        at = size - 2 if size == Q6_K_BLOCK else 0  # where block_q6_K keeps its scale
        raw[..., row, at : at + 2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
        return raw

    return change


Q6_K_BLOCK = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q6_K][1]


def block_size(raw: np.ndarray) -> int:
    """Bytes of a block, told by the bytes of a row of 256 values."""
    for elements, size in gguf.GGML_QUANT_SIZES.values():
        if elements > 1 and 256 // elements * size == raw.shape[-1]:
            return size
    raise ValueError(f"no type has rows of {raw.shape[-1]} bytes")


# -- running -----------------------------------------------------------------------------

_keep = tempfile.TemporaryDirectory(prefix="ggufnorm-faults-")
FOLDER = Path(_keep.name)


@cache
def reference(arch: str) -> Path:
    return BUILD[arch](FOLDER / f"{arch}.gguf")


@cache
def sound(arch: str, file_type: str) -> Path:
    target = FOLDER / f"{arch}-{file_type}.gguf"
    with in_process.engine():
        quantize(reference(arch), target, file_type, n_threads=1)
    return target


def run(ref: Path, quant: Path) -> DriftReport:
    with in_process.engine():
        return ggufnorm.drift(ref, quant, text=TEXT, n_ctx=32, chunks=2, n_threads=1)


@cache
def sound_report(arch: str, file_type: str) -> DriftReport:
    return run(reference(arch), sound(arch, file_type))


@dataclass(frozen=True)
class Found:
    """What became of a case: how large the fault was, and whether it was named."""

    culprit: Culprit | None
    above_noise: bool
    right: bool


@cache
def found(case: Case) -> Found:
    report = run(reference(case.arch), damaged(case))
    named = report.culprit.tensor if report.culprit else None
    return Found(report.culprit, is_above_noise(case, report), named in case.named)


def damaged(case: Case) -> Path:
    source = sound(case.arch, case.file_type)
    if case.before:
        changed = models.edited(reference(case.arch), FOLDER / "changed.gguf", case.before)
        source = FOLDER / "quantized.gguf"
        with in_process.engine():
            quantize(changed, source, case.file_type, n_threads=1)
    key = f"{case.arch}.attention.layer_norm{'' if case.arch == 'gpt2' else '_rms'}_epsilon"
    floats = {key: case.epsilon * EPSILON[case.arch]} if case.epsilon != 1 else {}
    return models.edited(source, FOLDER / "damaged.gguf", case.after, floats)


def is_above_noise(case: Case, report: DriftReport) -> bool:
    """Whether the fault adds as much as quantization adds at a typical matrix product.

    What a fault adds is told from the local errors of the operations that read the damaged
    tensor, with the fault and without: ``sqrt(with² - without²)``. A NaN is always above.
    """
    before = {o.node: o for o in sound_report(case.arch, case.file_type).operations}
    products = [o.local.rel_l2 for o in before.values() if o.role == "matmul"]
    norms = {n.node for n in report.norms if n.tensor in case.named}  # it may end in a bias
    added = []
    for o in (o for o in report.operations if o.tensor in case.named or o.node in norms):
        if o.local.non_finite_rows:
            return True
        with_fault, without = o.local.rel_l2, before[o.node].local.rel_l2
        added.append(max(0.0, with_fault**2 - without**2) ** 0.5)
    return max(added) >= statistics.median(products)


CASES = tuple(cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_planted_fault_is_named(case: Case) -> None:
    f = found(case)
    if f.above_noise:
        assert f.right, f.culprit
    else:
        assert f.right or f.culprit is None, f.culprit
    if f.right and f.culprit and case.epsilon != 1:
        assert "its epsilon is" in f.culprit.reason


def test_most_faults_are_above_the_noise() -> None:
    """Otherwise the test before would have little to say."""
    assert sum(found(case).above_noise for case in CASES) > 120


# -- no false alarm ----------------------------------------------------------------------


def wide_matrix(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


@cache
def wide(arch: str) -> Path:
    """The model with weights in F32 that F16 does not hold."""
    with mock.patch.object(models, "_matrix", wide_matrix):
        return BUILD[arch](FOLDER / f"{arch}-f32.gguf", seed=1)


@pytest.mark.parametrize("file_type", SOUND_TYPES)
@pytest.mark.parametrize("arch", BUILD)
def test_a_sound_quantization_is_not_accused(arch: str, file_type: str) -> None:
    target = FOLDER / "sound.gguf"
    with in_process.engine():
        quantize(wide(arch), target, file_type, n_threads=1)
    report = run(wide(arch), target)
    assert report.culprit is None
    assert all(n.local.rel_l2 == 0 for n in report.norms)
    assert any(o.local.rel_l2 for o in report.operations)


@pytest.mark.parametrize("file_type", ["Q4_K_M", "Q2_K", "IQ3_S", "IQ2_XS"])
@pytest.mark.parametrize("arch", BUILD)
def test_an_importance_matrix_is_not_taken_for_damage(arch: str, file_type: str) -> None:
    rng = np.random.default_rng(5)
    importance = {
        t.name: np.exp(rng.normal(0, 1.5, int(np.prod(t.shape[2:])) * int(t.shape[0])))
        for t in gguf.GGUFReader(wide(arch)).tensors
        if len(t.shape) > 1
    }
    target = FOLDER / "weighted.gguf"
    in_process.quantize_by_importance(wide(arch), target, file_type, importance)
    assert run(wide(arch), target).culprit is None
    assert run(target, wide(arch)).culprit is None


@pytest.mark.parametrize("file_type", SOUND_TYPES)
@pytest.mark.parametrize("arch", BUILD)
def test_exchanged_arguments_accuse_nothing(arch: str, file_type: str) -> None:
    target = FOLDER / "exchanged.gguf"
    with in_process.engine():
        quantize(wide(arch), target, file_type, n_threads=1)
    report = run(target, wide(arch))
    assert report.culprit is None, report.verdict
    assert ("swapped?" in report.verdict) == (file_type not in ("BF16", "F16"))


# -- the document ------------------------------------------------------------------------


def table() -> str:
    """Per fault and architecture: named / planted above the noise; and below it."""
    rows = ["| fault | " + " | ".join(BUILD) + " | below the noise |", "|---|" + "---|" * 5]
    for fault in dict.fromkeys(case.fault for case in CASES):
        cells = [cell(c for c in CASES if (c.fault, c.arch) == (fault, arch)) for arch in BUILD]
        below = [found(c) for c in CASES if c.fault == fault and not found(c).above_noise]
        rest = f"{sum(f.right for f in below)}/{len(below)}" if below else ""
        rows.append(f"| {fault} | " + " | ".join(cells) + f" | {rest} |")
    above = [found(c) for c in CASES if found(c).above_noise]
    below = [found(c) for c in CASES if not found(c).above_noise]
    rows.append("")
    rows.append(
        f"Above the noise: {sum(f.right for f in above)} of {len(above)} named. Below it:"
        f" {sum(f.right for f in below)} of {len(below)} named,"
        f" {sum(f.culprit is not None and not f.right for f in below)} misattributed."
    )
    return "\n".join(rows)


def cell(chosen: Iterable[Case]) -> str:
    above = [f for f in map(found, chosen) if f.above_noise]
    return f"{sum(f.right for f in above)}/{len(above)}" if above else ""


def test_the_document_says_what_is_found() -> None:
    document = DOCS / "detection.md"
    assert table() in document.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
