"""LoRA adapters beside what PEFT saved: right ones are quiet, each planted fault is named.

``python -m tests.engine.test_adapters`` prints the table of ``docs/detection-audit.md``.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import ggufnorm
from ggufnorm.core.audit import Finding
from ggufnorm.errors import InputError
from tests.checkpoints import safetensors

DOCUMENT = Path(__file__).parents[2] / "docs" / "detection-audit.md"
HEADING = "## LoRA adapters (L)"
WIDTH, FEED, TOKENS, LAYERS, RANK, HEAD = 32, 48, 40, 3, 4, 8
ROTARY = ("llama", "mistral3", "granite")
"""Architectures whose converter interleaves the halves of each head (conversion/llama.py)."""

_LLAMA = {
    "self_attn.q_proj": ("attn_q", WIDTH, WIDTH), "self_attn.k_proj": ("attn_k", WIDTH, 16),
    "self_attn.v_proj": ("attn_v", WIDTH, 16), "self_attn.o_proj": ("attn_output", WIDTH, WIDTH),
    "mlp.gate_proj": ("ffn_gate", WIDTH, FEED), "mlp.down_proj": ("ffn_down", FEED, WIDTH),
}  # fmt: skip
_LIKE_LLAMA = """
llama qwen2 qwen3 gemma2 gemma3 mistral3 granite olmo2 cohere2
"""
NETWORKS: dict[str, tuple[str, dict[str, tuple[str, int, int]]]] = {
    **dict.fromkeys(_LIKE_LLAMA.split(), ("model.layers.{}.", _LLAMA)),
    "gpt2": ("transformer.h.{}.", {"attn.c_proj": ("attn_output", WIDTH, WIDTH),
                                   "mlp.c_fc": ("ffn_up", WIDTH, FEED)}),
    "bert": ("bert.encoder.layer.{}.", {"attention.self.query": ("attn_q", WIDTH, WIDTH),
                                        "intermediate.dense": ("ffn_up", WIDTH, FEED)}),
    "t5": ("encoder.block.{}.layer.", {"0.SelfAttention.q": ("attn_q", WIDTH, WIDTH),
                                       "1.DenseReluDense.wo": ("ffn_down", FEED, WIDTH)}),
}  # fmt: skip
"""Where the layers are, and of each module the tensor, its inputs and outputs."""


@dataclass
class Adapter:
    """What PEFT saved, and the file that was converted of it; a test may change both."""

    arch: str
    config: dict[str, Any]
    source: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    kind: str = "adapter"
    dtype: str = "F32"

    def write(self, folder: Path) -> tuple[Path, Path]:
        peft = folder / "peft"
        peft.mkdir()
        (peft / "adapter_config.json").write_text(json.dumps(self.config))
        stored = {n: ("F32", v) for n, v in self.source.items()}
        (peft / "adapter_model.safetensors").write_bytes(safetensors(stored))
        path = folder / "adapter.gguf"
        writer = gguf.GGUFWriter(path, self.arch)
        writer.add_type(self.kind)
        for key, value in self.keys.items():
            if isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_float32(key, value)
        dtype = gguf.GGMLQuantizationType[self.dtype]
        for name, value in self.tensors.items():
            data = np.ascontiguousarray(value)
            if dtype != gguf.GGMLQuantizationType.F32 and data.shape[-1] % 32 == 0:
                writer.add_tensor(name, gguf.quants.quantize(data, dtype), raw_dtype=dtype)
            else:
                writer.add_tensor(name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, peft


def right(arch: str, *, rank: int = RANK, **config: Any) -> Adapter:
    """An adapter as ``convert_lora_to_gguf.py`` converts it."""
    rng = np.random.default_rng(sum(map(ord, arch)))
    made = Adapter(arch, {"peft_type": "LORA", "r": rank, "lora_alpha": 16.0, **config})
    made.keys = {"adapter.type": "lora", "adapter.lora.alpha": made.config["lora_alpha"]}
    place, modules = NETWORKS[arch]
    for i in range(LAYERS):
        for module, (target, n_in, n_out) in modules.items():
            a = rng.standard_normal((rank, n_in)).astype(np.float32)
            b = rng.standard_normal((n_out, rank)).astype(np.float32)
            name = f"base_model.model.{place.format(i)}{module}"
            made.source |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
            if arch in ROTARY and target in ("attn_q", "attn_k"):
                b = b.reshape(n_out // HEAD, 2, -1, rank).swapaxes(1, 2).reshape(b.shape)
            tensor = f"{'enc.blk' if arch == 't5' else 'blk'}.{i}.{target}.weight"
            made.tensors |= {f"{tensor}.lora_a": a, f"{tensor}.lora_b": b}
    return made


def findings(made: Adapter, *, alone: bool = False) -> list[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        model, peft = made.write(Path(folder))
        report = ggufnorm.audit(model, source=None if alone else peft)
        return [f for f in report.findings if f.severity != "info"]


# -- faults ------------------------------------------------------------------------------------


def first(made: Adapter, end: str, layer: int = 1) -> str:
    return next(n for n in made.tensors if f"blk.{layer}." in n and n.endswith(end))


def exchange(made: Adapter) -> None:
    a, b = (first(made, end) for end in (".lora_a", ".lora_b"))
    made.tensors[a], made.tensors[b] = made.tensors[b], made.tensors[a]


def transposed(made: Adapter) -> None:
    """Both factors as PEFT would have them were they one another."""
    for end in (".lora_a", ".lora_b"):
        made.tensors[first(made, end)] = made.tensors[first(made, end)].T
    exchange(made)


def lose_update(made: Adapter) -> None:
    for end in (".lora_a", ".lora_b"):
        del made.tensors[first(made, end)]


def lose_module(made: Adapter) -> None:
    target = first(made, ".lora_a").split(".")[-3]
    for name in [n for n in made.tensors if f".{target}." in n]:
        del made.tensors[name]


def lose_factor(made: Adapter) -> None:
    del made.tensors[first(made, ".lora_a")]


def truncate_rank(made: Adapter) -> None:
    b = first(made, ".lora_b")
    made.tensors[b] = made.tensors[b][:, :-1]


def shift_layer(made: Adapter) -> None:
    for end in (".lora_a", ".lora_b"):
        one, other = first(made, end, 1), first(made, end, 2)
        made.tensors[one], made.tensors[other] = made.tensors[other], made.tensors[one]


def baked(made: Adapter) -> None:
    """The scale multiplied into B, and alpha equal to the rank."""
    made.keys["adapter.lora.alpha"] = float(RANK)
    for name in [n for n in made.tensors if n.endswith(".lora_b")]:
        made.tensors[name] = made.tensors[name] * np.float32(16 / RANK)


def other_order(made: Adapter) -> None:
    """Queries as they are where the converter interleaves them, and the other way round."""
    b = next(n for n in made.tensors if "blk.1.attn_q." in n and n.endswith(".lora_b"))
    rows = made.tensors[b]
    made.tensors[b] = (
        rows.reshape(-1, HEAD // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    )


def negate(made: Adapter) -> None:
    b = first(made, ".lora_b")
    made.tensors[b] = -made.tensors[b]


def scale_factor(made: Adapter) -> None:
    b = first(made, ".lora_b")
    made.tensors[b] = made.tensors[b] * np.float32(2)


def other_values(made: Adapter) -> None:
    a = first(made, ".lora_a")
    made.tensors[a] = made.tensors[a][:, ::-1] + np.float32(0.3)


def key(name: str, value: Any) -> Callable[[Adapter], None]:
    def spoil(made: Adapter) -> None:
        made.keys.pop(name, None)
        if value is not None:
            made.keys[name] = value

    return spoil


def config(**changed: Any) -> Callable[[Adapter], None]:
    return lambda made: made.config.update(changed)


def pattern(made: Adapter) -> None:
    made.config["alpha_pattern"] = {r".*\.1\..*": 64.0}


def source(name: str, *shape: int) -> Callable[[Adapter], None]:
    def spoil(made: Adapter) -> None:
        made.source[f"base_model.model.{name}"] = np.ones(shape, np.float32)

    return spoil


def norm(made: Adapter) -> None:
    made.tensors["blk.0.attn_norm.weight"] = np.ones(WIDTH, np.float32)


def foreign(made: Adapter) -> None:
    made.tensors["blk.0.attn_q.bias"] = np.ones(WIDTH, np.float32)


@dataclass(frozen=True)
class Fault:
    words: str
    spoil: Callable[[Adapter], None]
    rule: str
    says: str
    alone: bool = False
    names: tuple[str, ...] = tuple(NETWORKS)


FAULTS = (
    Fault("another alpha", key("adapter.lora.alpha", 32.0), "L201", "2 times too strong"),
    Fault("alpha divided by the rank twice", key("adapter.lora.alpha", 4.0), "L201",
          "4 times too weak"),
    Fault("alpha missing", key("adapter.lora.alpha", None), "L102", "missing", alone=True),
    Fault("alpha 0", key("adapter.lora.alpha", 0.0), "L102", "is 0", alone=True),
    Fault("rsLoRA's scale lost", config(use_rslora=True), "L201", "(use_rslora)"),
    Fault("alpha of some modules lost", pattern, "L201", "one alpha does not fit"),
    Fault("factors exchanged", exchange, "L101", "are exchanged", alone=True),
    Fault("factors exchanged and transposed", transposed, "L203", "are not the source's"),
    Fault("a rank cut off one factor", truncate_rank, "L101", "has rank 4 and lora_b rank 3",
          alone=True),
    Fault("a factor missing", lose_factor, "L101", "and no lora_a", alone=True),
    Fault("an update missing", lose_update, "L202", "1 of "),
    Fault("a module missing in all layers", lose_module, "L202", "3 of "),
    Fault("updates of two layers exchanged", shift_layer, "L203", "it has the values of"),
    Fault("a factor scaled", scale_factor, "L201", "2 times too strong"),
    Fault("a factor of the other sign", negate, "L201", "another sign"),
    Fault("rows of queries in another order", other_order, "L203", "in another order",
          names=tuple(n for n in NETWORKS if n != "gpt2")),
    Fault("other values", other_values, "L203", "is not the source's"),
    Fault("modules_to_save dropped", source("lm_head.weight", TOKENS, WIDTH), "L202",
          "trained whole is not in the file: lm_head.weight"),
    Fault("a classifier dropped", source("score.weight", 2, WIDTH), "L202", "score.weight"),
    Fault("biases dropped", source("model.layers.0.self_attn.q_proj.bias", WIDTH), "L202",
          "a bias is not in the file"),
    Fault("DoRA's magnitudes dropped",
          source("model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", WIDTH), "L202",
          "DoRA's magnitudes"),
    Fault("a norm that llama.cpp passes by", norm, "L101", "passes by norms", alone=True),
    Fault("a bias that llama.cpp refuses", foreign, "L101", "refuses", alone=True),
    Fault("another kind of adapter", key("adapter.type", "ia3"), "L102", "not 'lora'", alone=True),
)  # fmt: skip
_BESIDE = {"alpha missing": "L201", "alpha 0": "L201"}


@dataclass(frozen=True)
class Outcome:
    fault: Fault
    found: bool
    misnamed: bool
    said: tuple[str, ...]


def outcome(fault: Fault, arch: str) -> Outcome:
    made = right(arch)
    fault.spoil(made)
    sides = [findings(made), *([findings(made, alone=True)] if fault.alone else [])]
    found = all(any(f.rule == fault.rule and fault.says in f.message for f in s) for s in sides)
    every = [f for s in sides for f in s]
    wrong = any(f.rule not in (fault.rule, _BESIDE.get(fault.words)) for f in every)
    return Outcome(fault, found, wrong, tuple(f"{f.rule} {f.message}" for f in every))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.words)
@pytest.mark.parametrize("arch", ["llama", "gemma2", "bert"])
def test_a_planted_fault_is_found_and_named(fault: Fault, arch: str) -> None:
    found = outcome(fault, arch)
    assert found.found, found.said
    assert not found.misnamed, found.said


@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("arch", NETWORKS)
def test_a_right_adapter_is_quiet(arch: str, dtype: str) -> None:
    made = right(arch)
    made.dtype = dtype
    assert findings(made) == []
    assert findings(made, alone=True) == []


def test_an_alpha_that_makes_up_for_rs_lora_is_right() -> None:
    made = right("llama", rank=16, use_rslora=True)
    made.keys["adapter.lora.alpha"] = 16.0 * math.sqrt(16)
    assert findings(made) == []


def test_a_scale_in_the_factors_is_right() -> None:
    made = right("llama")
    baked(made)
    assert findings(made) == []


def test_the_right_alpha_is_told() -> None:
    (finding,) = findings(right("llama", rank=16, use_rslora=True))
    assert finding.rule == "L201"
    assert "4 times too weak; with adapter.lora.alpha 64 they are right" in finding.message


def test_ranks_of_their_own_are_no_fault() -> None:
    """PEFT divides by each module's rank, and so does llama.cpp."""
    made = right("qwen2", rank_pattern={"q_proj": 2})
    for end, cut in ((".lora_a", slice(2)), (".lora_b", (slice(None), slice(2)))):
        part = {".lora_a": ".lora_A.weight", ".lora_b": ".lora_B.weight"}[end]
        for stored, ending in (
            (made.tensors, f"attn_q.weight{end}"),
            (made.source, f"q_proj{part}"),
        ):
            for name in [n for n in stored if n.endswith(ending)]:
                stored[name] = stored[name][cut]
    assert findings(made) == []


def test_a_model_is_not_audited_beside_an_adapter(tmp_path: Path) -> None:
    made = right("llama")
    _, peft = made.write(tmp_path)
    model = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(model, "llama")
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="is a LoRA adapter, and no checkpoint: merge it"):
        ggufnorm.audit(model, source=peft)


def test_an_adapter_beside_a_checkpoint_is_not_compared(tmp_path: Path) -> None:
    model, peft = right("llama").write(tmp_path)
    (peft / "config.json").write_text('{"model_type": "llama"}')
    report = ggufnorm.audit(model, source=peft)
    reasons = {n.rule: n.reason for n in report.not_run}
    assert "no adapter's folder" in reasons["L201"]


# -- the document --------------------------------------------------------------------------------


def table() -> str:
    lines = ["| fault | rule | in the file alone | planted in | found | misnamed |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    every = []
    for fault in FAULTS:
        mine = [outcome(fault, arch) for arch in fault.names]
        every += mine
        found, wrong = sum(o.found for o in mine), sum(o.misnamed for o in mine)
        alone = "yes" if fault.alone else "no"
        place = f"{len(mine)} architectures"
        lines.append(f"| {fault.words} | {fault.rule} | {alone} | {place} | {found} | {wrong} |")
        for o in mine:
            if not o.found or o.misnamed:
                print(fault.words, o.said)
    told = f"{sum(o.found for o in every)} found, {sum(o.misnamed for o in every)} misnamed"
    return "\n".join([*lines, "", f"{len(every)} faults: {told}."])


if __name__ == "__main__":
    print(table())
