"""Faults planted in known places: does the report name the place?

``python -m tests.test_faults`` prints the table of ``docs/detection.md``.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import ggufnorm
from ggufnorm.core.drift import DriftReport
from ggufnorm.engines.llama.quantize import quantize
from tests import in_process, models

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 4
Change = Callable[[np.ndarray], np.ndarray]

BUILD = {
    "llama": models.llama,
    "gpt2": models.gpt2,
    "qwen3": models.qwen3,
    "qwen3moe": models.qwen3moe,
}
FILE_TYPES = ("Q4_K_S", "Q4_K_M", "Q8_0")
EPSILON_KEYS = {
    arch: f"{arch}.attention.layer_norm{'' if arch == 'gpt2' else '_rms'}_epsilon" for arch in BUILD
}
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
        before: changes to tensors ahead of quantization.
        after: changes to the quantized file's raw bytes.
        epsilon: factor on it in the quantized file.
        named: tensors of which any is right to name.
    """

    arch: str
    file_type: str
    fault: str
    named: tuple[str, ...]
    before: dict[str, Change] = field(default_factory=dict, hash=False)
    after: dict[str, Change] = field(default_factory=dict, hash=False)
    epsilon: float = 1.0
    number: int = 0

    def __str__(self) -> str:
        return f"{self.arch}-{self.fault}-{self.named[0]}-{self.file_type}".replace(" ", "_")


def norm_names(arch: str) -> tuple[str, ...]:
    qk = ("attn_q_norm", "attn_k_norm") if arch.startswith("qwen3") else ()
    roles = ("attn_norm", "ffn_norm", *qk)
    return (*(f"blk.{i}.{r}.weight" for i in range(3) for r in roles), "output_norm.weight")


def cases() -> Iterator[Case]:
    for number, case in enumerate(_cases()):
        yield Case(**{**case.__dict__, "number": number})


def _cases() -> Iterator[Case]:
    for seed, arch in enumerate(BUILD):
        rng = np.random.default_rng(seed)
        weights = [f"{name}.weight" for name in WEIGHTS[arch]]
        types = [FILE_TYPES[(seed + k) % 3] for k in range(3)]

        def weight_fault(
            fault: str, k: int, i: int, *, before: Change | None = None, after: Change | None = None
        ) -> Case:
            name = weights[i]
            return Case(
                arch,
                types[k % 3],
                fault,
                (name,),
                {name: before} if before else {},
                {name: after} if after else {},
            )

        for k, i in enumerate((0, 1, 2, 3, 4)):
            yield weight_fault("noise 10 %", k, i, before=models.noise(0.1, seed + k))
            yield weight_fault("noise 50 %", k, i, before=models.noise(0.5, seed + k))
        for k, i in enumerate((0, 1, 2)):
            yield weight_fault("noise 30 %", k + 1, i, before=models.noise(0.3, seed + k))
            yield weight_fault("rows zeroed", k, i, after=zero_rows(16))
            yield weight_fault("block zeroed", k, i, after=zero_rows(1))
            yield weight_fault("NaN scale", k, i, after=nan_scale)
            yield weight_fault("column × 50", k + 2, i, before=times(50, int(rng.integers(256))))
        names = norm_names(arch)
        for k, i in enumerate(rng.choice(len(names), 3, replace=False).tolist()):
            name, channel = names[i], int(rng.integers(64))
            for fault, change in (
                ("norm × 1.1", lambda w: w * np.float32(1.1)),
                ("norm - 1", lambda w: w - 1),
                ("norm channel × 50", times(50, channel)),
            ):
                yield Case(arch, types[k], fault, (name,), after={name: change})
        for k, role in enumerate(("attn_norm", "ffn_norm")):
            yield swapped(arch, types[k], f"blk.0.{role}.weight", f"blk.2.{role}.weight")
        for file_type in types[:2]:
            yield Case(arch, file_type, "epsilon × 100", names, epsilon=100.0)


def zero_rows(n: int) -> Change:
    """Zeroes rows of a quantized tensor; a single one loses its first block only."""

    def change(raw: np.ndarray) -> np.ndarray:
        width = raw.shape[-1] if n > 1 else block_bytes(raw)
        raw[..., 7 : 7 + n, :width] = 0
        return raw

    return change


def block_bytes(raw: np.ndarray) -> int:
    """Bytes of a block, told by the bytes of a row of 256 values."""
    return {144: 144, 176: 176, 210: 210, 272: 34}[raw.shape[-1]]


def nan_scale(raw: np.ndarray) -> np.ndarray:
    size = block_bytes(raw)
    at = size - 2 if size == 210 else 0  # Q6_K keeps its scale at the end
    raw[..., 7, at : at + 2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    return raw


def times(factor: float, channel: int) -> Change:
    def change(w: np.ndarray) -> np.ndarray:
        w[..., channel] *= w.dtype.type(factor)
        return w

    return change


def swapped(arch: str, file_type: str, a: str, b: str) -> Case:
    held: dict[str, np.ndarray] = {}
    reference = {t: tensor(arch, t) for t in (a, b)}
    del held
    return Case(
        arch,
        file_type,
        "norms swapped",
        (a, b),
        after={a: lambda _w: reference[b], b: lambda _w: reference[a]},
    )


# -- running -----------------------------------------------------------------------------


@cache
def folder() -> Path:
    _keep.append(tempfile.TemporaryDirectory(prefix="ggufnorm-faults-"))
    return Path(_keep[0].name)


_keep: list[tempfile.TemporaryDirectory[str]] = []


@cache
def reference(arch: str) -> Path:
    return BUILD[arch](folder() / f"{arch}.gguf")


def tensor(arch: str, name: str) -> np.ndarray:
    import gguf

    found = next(t for t in gguf.GGUFReader(reference(arch)).tensors if t.name == name)
    return np.array(found.data)


@cache
def sound(arch: str, file_type: str) -> Path:
    target = folder() / f"{arch}-{file_type}.gguf"
    quantize(reference(arch), target, file_type, n_threads=1)
    return target


def run(arch: str, quant: Path) -> DriftReport:
    with in_process.engine():
        return ggufnorm.drift(
            reference(arch), quant, text=TEXT, n_ctx=32, chunks=2, n_threads=1, check_memory=False
        )


@cache
def sound_report(arch: str, file_type: str) -> DriftReport:
    with in_process.engine():
        return run(arch, sound(arch, file_type))


@dataclass(frozen=True)
class Found:
    report: DriftReport
    above_noise: bool
    right: bool


@cache
def found(case: Case) -> Found:
    bad = folder() / "bad.gguf"
    with in_process.engine():
        source = sound(case.arch, case.file_type)
        if case.before:
            damaged = models.edited(reference(case.arch), folder() / "damaged.gguf", case.before)
            source = folder() / "quantized.gguf"
            quantize(damaged, source, case.file_type, n_threads=1)
        floats = {}
        if case.epsilon != 1:
            key = EPSILON_KEYS[case.arch]
            floats[key] = case.epsilon * (1e-6 if case.arch.startswith("qwen3") else 1e-5)
        models.edited(source, bad, case.after, floats)
        report = run(case.arch, bad)
    named = report.culprit.tensor if report.culprit else None
    return Found(report, is_above_noise(case, report), named in case.named)


def is_above_noise(case: Case, report: DriftReport) -> bool:
    """Whether the fault adds as much as quantization does to a typical matrix product.

    What it adds is told from the local errors of the damaged tensor's operations, with and
    without the fault: ``sqrt(damaged² - sound²)``.
    """
    before = {o.node: o for o in sound_report(case.arch, case.file_type).operations}
    typical = statistics.median(
        o.local.rel_l2 or 0.0 for o in before.values() if o.role == "matmul"
    )
    added = 0.0
    for o in report.operations:
        if o.tensor in case.named or any(
            o.node == n.node for n in report.norms if n.tensor in case.named
        ):
            if o.local.non_finite_rows:
                return True
            damaged, clean = o.local.rel_l2 or 0.0, before[o.node].local.rel_l2 or 0.0
            added = max(added, math.sqrt(max(0.0, damaged**2 - clean**2)))
    return added >= typical


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_planted_fault_is_named(case: Case) -> None:
    f = found(case)
    if f.above_noise:
        assert f.right, (f.report.culprit, f.report.verdict)
    else:
        assert f.right or f.report.culprit is None


if __name__ == "__main__":
    for c in CASES:
        f = found(c)
        print(
            f"{c!s:60} {'above' if f.above_noise else 'below'} {'right' if f.right else 'WRONG'} {f.report.culprit}"
        )
