"""``compare`` names what was planted in a file of any type, and nothing in a right one.

``python -m tests.frameworks.test_blame`` plants every fault in every network that has the tensor or
reads the key, and writes what was named into docs/detection.md; the tests run a part of it. A
number behind it is that of processes.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.core.frameworks import EngineComparison
from ggufnorm.errors import GgufnormError
from tests import framework_models as made
from tests import in_process
from tests.blame_networks import ALL

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 3
N_TOKENS = 31
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
PLANTED_TYPES = ("F16", "Q8_0")
Change = Callable[[made.Tensors, str], None]


@cache
def model(name: str) -> Any:
    return made.build(ALL[name])


@dataclass(frozen=True)
class Fault:
    """What is done to a file, and what has to be named.

    Attributes:
        tensor: that is changed, without its ending; empty for a key.
        change: the tensors, in place, given the tensor's name.
        named: names of operations or tensors, or the operations of ggml, each right to name.
        keys: set in the file, without the architecture; None takes one out.
        networks: that it is planted in; empty for all that have the tensor.
        words: one of which the verdict must hold; empty for any.
        is_norm: whether a norm itself has to be named wrong.
    """

    tensor: str = ""
    change: Change = lambda _tensors, _name: None
    named: tuple[str, ...] = ()
    keys: Mapping[str, Any] = field(default_factory=dict)
    networks: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    is_norm: bool = False


def values(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def apply(tensors: made.Tensors, name: str) -> None:
        tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return apply


def noise(w: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.asarray(w + 0.3 * np.std(w) * rng.standard_normal(w.shape), np.float32)


def exchange(tensors: made.Tensors, name: str) -> None:
    other = name.replace("blk.1", "blk.2")
    tensors[name], tensors[other] = tensors[other], tensors[name]


def lose(tensors: made.Tensors, name: str) -> None:
    del tensors[name]


FAULTS = {
    "value rows reordered": Fault("blk.1.attn_v.weight", values(lambda w: w[::-1])),
    "query columns reordered": Fault("blk.1.attn_q.weight", values(lambda w: w[:, ::-1])),
    "fused rows reordered": Fault("blk.1.attn_qkv.weight", values(lambda w: w[::-1])),
    "output × 1.5": Fault("blk.1.attn_output.weight", values(lambda w: w * 1.5)),
    "output transposed": Fault("blk.1.attn_output.weight", values(lambda w: w.T)),
    "noise of 30 %": Fault("blk.1.ffn_up.weight", values(noise)),
    "matrix of another layer": Fault("blk.1.ffn_down.weight", exchange),
    "bias lost": Fault("blk.1.attn_output.bias", values(np.zeros_like)),
    "router reordered": Fault("blk.1.ffn_gate_inp.weight", values(lambda w: w[::-1])),
    "experts transposed": Fault(
        "blk.1.ffn_down_exps.weight", values(lambda w: w[..., ::-1])
    ),
    "trained head lost": Fault(
        "output.weight", lose, ("token_embd.weight",),
        networks=("llama", "mistral", "qwen3", "olmo", "mixtral", "granite", "qwen3moe",
                  "deepseek2", "mamba2", "jamba")),
    "NaN in a matrix": Fault(
        "blk.1.ffn_down.weight", values(lambda w: np.where(np.arange(w.size).reshape(w.shape) == 7,
                                                           np.float32(np.nan), w)),
    ),
    "norm × 1.5": Fault("blk.1.attn_norm.weight", values(lambda w: w * 1.5), is_norm=True),
    "norm - 1": Fault("blk.1.ffn_norm.weight", values(lambda w: w - 1), is_norm=True),
    "norm reordered": Fault("blk.1.attn_q_norm.weight", values(lambda w: w[..., ::-1]),
                            is_norm=True),
    "query rows permuted twice": Fault(
        "blk.1.attn_q.weight", values(lambda w: made.permuted(w, made.HEADS)),
        networks=("llama", "mixtral", "granite", "olmo"), named=("ROPE",)),
    "two experts exchanged": Fault("blk.1.ffn_up_exps.weight", values(lambda w: w[[1, 0, 2, 3]])),
    "an expert zeroed": Fault(
        "blk.1.ffn_down_exps.weight",
        values(lambda w: w * (np.arange(len(w)) != 2)[:, None, None])),
    "router's bias lost": Fault("blk.1.exp_probs_b.bias", values(np.zeros_like)),
    "K of a latent reordered": Fault("blk.1.attn_k_b.weight", values(lambda w: w[::-1])),
    "V of a latent transposed": Fault(
        "blk.1.attn_v_b.weight", values(lambda w: w.swapaxes(1, 2).reshape(w.shape))),
    "decay not negated": Fault("blk.1.ssm_a", values(lambda w: np.log(-w)), named=("SSM_SCAN",)),
    "decay of a hybrid not negated": Fault(
        "blk.0.ssm_a", values(lambda w: np.log(-w)), networks=("jamba",), named=("SSM_SCAN",)),
    "skip of a state lost": Fault("blk.1.ssm_d", values(np.zeros_like)),
    "convolution reversed": Fault("blk.1.ssm_conv1d.weight", values(lambda w: w[:, ::-1])),
    "short convolution reversed": Fault(
        "blk.0.shortconv.conv.weight", values(lambda w: w[:, ::-1])),
    "parts of a state's input rotated": Fault(
        "blk.1.ssm_in.weight", values(lambda w: np.roll(w, made.WIDTH, axis=0))),
    "parts of a convolution's input rotated": Fault(
        "blk.0.shortconv.in_proj.weight", values(lambda w: np.roll(w, made.WIDTH, axis=0))),
    "another rope base": Fault(
        keys={"rope.freq_base": 500000.0}, named=("ROPE",), words=("base 10000",),
        networks=("llama", "mistral", "qwen3", "stablelm", "phi", "mixtral", "qwen3moe",
                  "deepseek2", "granite", "cohere2", "lfm2")),
    "rope scaled": Fault(
        keys={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, named=("ROPE",),
        networks=("llama", "mistral", "qwen3", "phi", "mixtral", "qwen3moe", "granite")),
    "other channels turned": Fault(
        keys={"rope.dimension_count": 8}, named=("ROPE",), words=("channels",),
        networks=("phi", "stablelm")),
    "another window": Fault(
        keys={"attention.sliding_window": 4}, named=("SOFT_MAX",), words=("mask",),
        networks=("gemma2", "gemma3", "cohere2")),
    "another cap of scores": Fault(
        keys={"attn_logit_softcapping": 2.0}, named=("SCALE", "UNARY"), words=("cap",),
        networks=("gemma2",)),
    "another cap of logits": Fault(
        keys={"final_logit_softcapping": 5.0}, named=("SCALE", "UNARY"), words=("cap",),
        networks=("gemma2",)),
    "another gating function": Fault(
        keys={"expert_gating_func": 1}, named=("SOFT_MAX",), words=("sigmoid",),
        networks=("deepseek2",)),
    "gating function lost": Fault(
        keys={"expert_gating_func": None}, named=("SOFT_MAX",), words=("sigmoid",),
        networks=("deepseek2",)),
    "experts' weights not divided": Fault(
        keys={"expert_weights_norm": False}, named=("ffn_moe",),
        words=("dividing", "norm_topk_prob"), networks=("deepseek2",)),
    "scale of experts lost": Fault(
        keys={"expert_weights_scale": None}, named=("ffn_moe",),
        words=("routed_scaling_factor",), networks=("deepseek2",)),
    "fewer experts used": Fault(
        keys={"expert_used_count": 1}, named=("ffn_moe",), words=("experts",),
        networks=("mixtral", "qwen3moe", "deepseek2", "jamba")),
    "another residual scale": Fault(
        keys={"residual_scale": 0.6}, named=("SCALE",), words=("residual_multiplier",),
        networks=("granite",)),
    "residual scale lost": Fault(
        keys={"residual_scale": None}, named=("ADD", "SCALE"), words=("residual_multiplier",),
        networks=("granite",)),
    "another embedding scale": Fault(
        keys={"embedding_scale": 3.0}, named=("SCALE",), words=("embedding_multiplier",),
        networks=("granite",)),
    "another attention scale": Fault(
        keys={"attention.scale": 0.25}, named=("SOFT_MAX",), words=("attention_multiplier",),
        networks=("granite",)),
    "another logit scale": Fault(
        keys={"logit_scale": 2.0}, named=("SCALE",), words=("logit",),
        networks=("granite", "cohere2")),
    "epsilon × 1000": Fault(
        keys={"attention.layer_norm_rms_epsilon": 1e-2}, is_norm=True, words=("epsilon",),
        networks=("llama", "qwen3", "gemma2", "gemma3", "mixtral", "qwen3moe", "deepseek2",
                  "mamba2", "jamba", "lfm2", "granite")),
    "epsilon of LayerNorm × 1000": Fault(
        keys={"attention.layer_norm_epsilon": 1e-2}, is_norm=True, words=("epsilon",),
        networks=("stablelm", "phi", "gpt2", "bert", "cohere2", "olmo")),
}  # fmt: skip
"""By what they do to tensors and keys."""


@cache
def tensors_of(name: str) -> made.Tensors:
    return made.converted(model(name), ALL[name])


def is_planted(fault: str, name: str) -> bool:
    planted_at = FAULTS[fault]
    known = not planted_at.networks or name in planted_at.networks
    return known and (not planted_at.tensor or planted_at.tensor in tensors_of(name))


def planted() -> Iterator[tuple[str, str]]:
    for fault in FAULTS:
        yield from ((fault, name) for name in ALL if is_planted(fault, name))


_FOLDER = tempfile.TemporaryDirectory(prefix="ggufnorm-blame-")


def _folder() -> Path:
    return Path(_FOLDER.name)


@cache
def checkpoint(name: str) -> Path:
    return made.save(model(name), _folder() / name.replace(" ", "-"))


def compared(name: str, dtype: str, fault: str | None = None) -> EngineComparison:
    tensors, keys = dict(tensors_of(name)), {}
    if fault is not None:
        FAULTS[fault].change(tensors, FAULTS[fault].tensor)
        keys = FAULTS[fault].keys
    kind = gguf.GGMLQuantizationType[dtype]
    file = made.write(_folder() / f"{dtype}.gguf", ALL[name], tensors, dtype=kind, keys=keys)
    report = compare_frameworks(
        f"hf:{checkpoint(name)}", [str(file)], text=TEXT, n_tokens=N_TOKENS, n_threads=1
    )
    return report.comparisons[0]


def outcome(name: str, dtype: str, fault: str) -> tuple[str, str]:
    """``found``, ``misnamed``, ``stretch`` (the right norms around it) or ``missed``; why."""
    found, planted_at = compared(name, dtype, fault), FAULTS[fault]
    wrong = found.first_wrong
    if wrong is None:
        return "missed", found.verdict
    told = not planted_at.words or any(w in found.verdict for w in planted_at.words)
    if planted_at.is_norm:
        right = wrong.where == "norm" and planted_at.tensor in ("", wrong.key)
        return ("found" if right and told else "misnamed"), found.verdict
    if wrong.operation is None:
        inside = wrong.layer in (0, 1, 2) or not planted_at.tensor.startswith("blk.")
        return ("stretch" if inside else "misnamed"), found.verdict
    operation = wrong.operation
    tensors = (planted_at.tensor, planted_at.tensor.replace("bias", "weight"), *planted_at.named)
    right = operation.tensor in filter(None, tensors) or any(
        operation.op == n or operation.name.startswith(n) for n in planted_at.named
    )
    return ("found" if right and told else "misnamed"), found.verdict


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    with in_process.engine():
        yield


@pytest.mark.parametrize("dtype", ["BF16", "Q8_0"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral"])
def test_nothing_is_blamed_in_a_right_file(name: str, dtype: str) -> None:
    found = compared(name, dtype)
    assert found.first_wrong is None
    assert found.known == ()
    assert {s.status for s in found.sites} <= {"agrees", "precision"}
    # In BF16 a token of Mixtral's has two experts tied.
    tied = any(s.what == "experts" for s in found.skipped)
    for site in found.sites:
        assert site.before is not None
        assert site.before_allowed is not None
        assert tied or site.before <= site.before_allowed


PART = [
    ("value rows reordered", "qwen3", "Q8_0"),
    ("query columns reordered", "llama", "Q8_0"),
    ("fused rows reordered", "gpt2", "F16"),
    ("output × 1.5", "stablelm", "Q8_0"),
    ("output transposed", "gemma3", "BF16"),
    ("noise of 30 %", "phi", "Q8_0"),
    ("matrix of another layer", "bert", "Q8_0"),
    ("bias lost", "gpt2", "F16"),
    ("router reordered", "mixtral", "Q8_0"),
    ("experts transposed", "mixtral", "F16"),
    ("trained head lost", "olmo", "Q8_0"),
    ("NaN in a matrix", "mistral", "F16"),
    ("fewer experts used", "mixtral", "F16"),
    ("experts' weights not divided", "deepseek2", "Q8_0"),
    ("router's bias lost", "deepseek2", "F16"),
    ("another rope base", "deepseek2", "F16"),
    ("V of a latent transposed", "deepseek2", "Q8_0"),
    ("decay of a hybrid not negated", "jamba", "F16"),
    ("parts of a convolution's input rotated", "lfm2", "Q8_0"),
    ("another embedding scale", "granite", "Q8_0"),
    ("another window", "cohere2", "Q8_0"),
    ("norm × 1.5", "mamba2", "F16"),
]


@pytest.mark.parametrize(("fault", "name", "dtype"), PART)
def test_a_planted_fault_is_named_in_small_types(fault: str, name: str, dtype: str) -> None:
    assert outcome(name, dtype, fault)[0] == "found"


HEADER = ("| fault | networks | found | right stretch | misnamed | missed |",
          "|---|---:|---:|---:|---:|---:|")  # fmt: skip
DOCUMENT = Path(__file__).parents[2] / "docs" / "detection.md"
_BEGIN, _END = "<!-- blame -->\n", "<!-- end of blame -->\n"


def written() -> list[str]:
    """Rows of the table that the document holds."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return text.partition(_BEGIN)[2].partition(_END)[0].splitlines()


def _fault_of(row: str) -> str:
    return row.strip("| ").split("|")[0].strip()


def test_the_published_table_has_a_row_of_each_fault() -> None:
    rows = [line for line in written() if line.startswith("| ")]
    names = [_fault_of(row) for row in rows[1:]]
    assert names == list(FAULTS), "python -m tests.frameworks.test_blame writes it"
    for row in rows[1:]:
        n, *counts = (int(cell) for cell in row.strip("| ").split("|")[1:])
        assert sum(counts) == n * len(PLANTED_TYPES)
        assert n == sum(is_planted(_fault_of(row), name) for name in ALL)


def run(case: tuple[str | None, str, str]) -> tuple[str, str]:
    """An outcome, also of a right file, where a fault may be None."""
    fault, name, dtype = case
    try:
        with in_process.engine():
            if fault is not None:
                return outcome(name, dtype, fault)
            found = compared(name, dtype)
        return ("found" if found.first_wrong is None else "misnamed"), found.verdict
    except GgufnormError as error:
        return "refused", str(error)


def main() -> None:
    """Plant every fault in every network and write the table into the document."""
    n_processes = int(sys.argv[1]) if len(sys.argv) > 1 else None
    count: Counter[tuple[str | None, str]] = Counter()
    right = [(None, name, dtype) for name in ALL for dtype in TYPES]
    wrong = [(fault, name, dtype) for fault, name in planted() for dtype in PLANTED_TYPES]
    cases = sorted([*right, *wrong], key=lambda case: case[1])
    with ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn")) as pool:
        for (fault, name, dtype), (what, why) in zip(cases, pool.map(run, cases, chunksize=12)):
            count[fault, what] += 1
            if what != "found":
                print(f"{what}: {fault or 'right'} in {name} {dtype}: {why}", file=sys.stderr)
    lines = list(HEADER)
    for fault in FAULTS:
        n = sum(is_planted(fault, name) for name in ALL)
        row = [count[fault, what] for what in ("found", "stretch", "misnamed", "missed")]
        lines.append(f"| {fault} | {' | '.join(map(str, (n, *row)))} |")
    quiet, blamed = (count[None, what] for what in ("found", "misnamed"))
    lines += ["", f"Right files: {quiet} with nothing blamed, {blamed} with something blamed."]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    new = before + _BEGIN + "\n".join(lines) + "\n" + _END + rest.partition(_END)[2]
    DOCUMENT.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
