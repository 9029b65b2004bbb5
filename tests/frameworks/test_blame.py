"""``compare`` names what was planted in a file of any type, and nothing in a right one.

``python -m tests.frameworks.test_blame`` plants every fault in every network that has the tensor
and prints what was named; the tests run a part of it.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers

from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.core.frameworks import EngineComparison
from tests import framework_models as made
from tests import in_process

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 3
N_TOKENS = 31
TYPES = ("F32", "F16", "BF16", "Q8_0")
GRANITE = replace(
    made.NETWORKS["llama"], name="granite", config=transformers.GraniteConfig,
    model=transformers.GraniteForCausalLM,
    options={
        **made.NETWORKS["llama"].options, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
        "attention_multiplier": made.HEAD**-0.5, "residual_multiplier": 1.0,
    },
)  # fmt: skip
ALL = {**made.NETWORKS, **made.SPECIAL, "mixtral": made.MIXTRAL, "granite": GRANITE}

Change = Callable[[made.Tensors, str], None]


@cache
def model(name: str) -> Any:
    return made.build(ALL[name])


@dataclass(frozen=True)
class Fault:
    """What is done to a file, and what has to be named.

    Attributes:
        tensor: that is changed, without its ending.
        change: the tensors, in place, given the tensor's name.
        named: parts of the names of operations or tensors, each of them right to name.
    """

    tensor: str
    change: Change
    named: tuple[str, ...] = ()


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
    "trained head lost": Fault("output.weight", lose, ("token_embd.weight",)),
    "NaN in a matrix": Fault(
        "blk.1.ffn_down.weight", values(lambda w: np.where(np.arange(w.size).reshape(w.shape) == 7,
                                                           np.float32(np.nan), w)),
    ),
}  # fmt: skip
"""By what they do to tensors."""


def planted() -> Iterator[tuple[str, str]]:
    for fault in FAULTS:
        for name, network in ALL.items():
            if FAULTS[fault].tensor in made.converted(model(name), network):
                yield fault, name


_FOLDER = tempfile.TemporaryDirectory(prefix="ggufnorm-blame-")


def _folder() -> Path:
    return Path(_FOLDER.name)


@cache
def checkpoint(name: str) -> Path:
    return made.save(model(name), _folder() / name.replace(" ", "-"))


def compared(name: str, dtype: str, fault: str | None = None) -> EngineComparison:
    tensors = dict(made.converted(model(name), ALL[name]))
    if fault is not None:
        FAULTS[fault].change(tensors, FAULTS[fault].tensor)
    kind = gguf.GGMLQuantizationType[dtype]
    file = made.write(_folder() / f"{dtype}.gguf", ALL[name], tensors, dtype=kind)
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
    if wrong.operation is None:
        inside = wrong.layer in (1, 2) or not planted_at.tensor.startswith("blk.")
        return ("stretch" if inside else "misnamed"), found.verdict
    right = {planted_at.tensor, planted_at.tensor.replace("bias", "weight"), *planted_at.named}
    return ("found" if wrong.operation.tensor in right else "misnamed"), found.verdict


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
]


@pytest.mark.parametrize(("fault", "name", "dtype"), PART)
def test_a_planted_fault_is_named_in_small_types(fault: str, name: str, dtype: str) -> None:
    assert outcome(name, dtype, fault)[0] == "found"


def main() -> None:
    """Print found, stretch, misnamed and missed of each fault, and what is not found."""
    count: Counter[tuple[str, str]] = Counter()
    with in_process.engine():
        for name in ALL:
            for dtype in TYPES:
                wrong = compared(name, dtype).first_wrong
                count["right files", "quiet" if wrong is None else "misnamed"] += 1
                if wrong is not None:
                    print(f"right {name} {dtype}: {wrong.reason}", file=sys.stderr)
        for fault, name in planted():
            for dtype in ("F16", "Q8_0"):
                what, why = outcome(name, dtype, fault)
                count[fault, what] += 1
                if what != "found":
                    print(f"{what}: {fault} in {name} {dtype}: {why}", file=sys.stderr)
    print("| fault | found | right stretch | misnamed | missed |")
    print("|---|---|---|---|---|")
    for fault in FAULTS:
        row = [count[fault, what] for what in ("found", "stretch", "misnamed", "missed")]
        print(f"| {fault} | {' | '.join(map(str, row))} |")
    print(
        f"right files: {count['right files', 'quiet']} quiet,"
        f" {count['right files', 'misnamed']} blamed"
    )


if __name__ == "__main__":
    main()
