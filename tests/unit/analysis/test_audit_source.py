"""Conversions without and with faults, beside the checkpoints that they were made of.

``python -m tests.unit.analysis.test_audit_source`` prints the family's table of
``docs/detection-audit.md``.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import MODEL_ARCH_NAMES
from gguf.tensor_mapping import TensorNameMap

from ggufnorm.analysis.audit.rules import source
from ggufnorm.core.audit import Finding
from tests.architectures import N_LAYERS, architecture, norm_tensors
from tests.checkpoints import (
    BY_NAME,
    HEAD,
    HEADS,
    LAYERS,
    NETWORKS,
    ROUND,
    WIDTH,
    Network,
    Pair,
    bf16,
    check,
    converted,
    pair,
    trained,
)
from tests.paths import DOCS

pytestmark = pytest.mark.usefixtures("computed_by")

DOCUMENT = DOCS / "detection-audit.md"
HEADING = "## Rules of the source (S)"


def not_info(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.severity != "info"]


# No false alarm.


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.architecture)
def test_a_right_conversion_raises_no_alarm(tmp_path: Path, network: Network, dtype: str) -> None:
    findings, not_run = check(tmp_path, pair(network, dtype))

    assert not_info(findings) == []
    assert {f.rule for f in findings} <= ({"S206"} if dtype == "F16" else set())
    compared = {r.id for r in source.RULES} - {"S401", "S402"}
    assert compared.isdisjoint(not_run)
    assert ("S401" in not_run) == (not network.epsilon)


def test_enough_networks_are_converted() -> None:
    assert len({network.architecture for network in NETWORKS}) == 63


def _upstream_names(name: str) -> dict[str, list[str]]:
    """The file's norms with every source name that gguf-py has for them."""
    found: dict[str, list[str]] = {stem: [] for stem in norm_tensors(name)}
    mapping = gguf.get_tensor_name_map(architecture(name), N_LAYERS).mapping
    for upstream, (_, stem) in mapping.items():
        if stem in found and upstream != stem:
            found[stem].append(upstream.removesuffix(".weight"))
    return {stem: names for stem, names in found.items() if names}


@pytest.mark.parametrize("name", sorted(set(MODEL_ARCH_NAMES.values()) - {"clip", "mmproj"}))
def test_every_architecture_of_gguf_py_joins_by_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # gguf-py's constructor changes it for Arctic, and with it all later architectures.
    shared = dict(TensorNameMap.block_mappings_cfg)
    monkeypatch.setattr(TensorNameMap, "block_mappings_cfg", shared)
    upstream = _upstream_names(name)
    network = Network(name, {names[0]: stem for stem, names in upstream.items()})
    plain = replace(network, embedding="model.embed_tokens")
    made = pair(plain, "F32")
    for tensor, values in made.tensors.items():
        if tensor.endswith("norm.weight") and tensor in made.origin:
            made.tensors[tensor] = values

    findings, not_run = check(tmp_path, made, source.RULES[:3])

    assert [f for f in findings if f.rule in ("S102", "S103")] == []
    if upstream:
        assert not_run == {}


def test_norms_of_heads_are_stacked(tmp_path: Path) -> None:
    made = pair(BY_NAME["stablelm"])
    rng = np.random.default_rng(1)
    for which in "qk":
        heads = [bf16(trained(rng, HEAD)) for _ in range(12)]
        for i, values in enumerate(heads):
            made.source[f"model.layers.0.self_attn.{which}_layernorm.norms.{i}.weight"] = values
        made.tensors[f"blk.0.attn_{which}_norm.weight"] = np.stack(heads)

    assert not_info(check(tmp_path, made)[0]) == []


def test_norms_of_heads_in_the_order_of_their_names_as_text_are_found(tmp_path: Path) -> None:
    made = pair(BY_NAME["stablelm"])
    rng = np.random.default_rng(1)
    heads = [bf16(trained(rng, HEAD)) for _ in range(12)]
    for i, values in enumerate(heads):
        made.source[f"model.layers.0.self_attn.q_layernorm.norms.{i}.weight"] = values
    textual = sorted(range(12), key=str)
    made.tensors["blk.0.attn_q_norm.weight"] = np.stack([heads[i] for i in textual])

    (finding,) = not_info(check(tmp_path, made)[0])

    assert (finding.rule, finding.tensor) == ("S203", "blk.0.attn_q_norm.weight")


def chameleon() -> Pair:
    """conversion/chameleon.py ``_reverse_hf_permute``: all heads get the first one's norm."""
    names = {
        "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
        "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
        "model.norm": "output_norm",
    }
    made = pair(Network("chameleon", names))
    rng = np.random.default_rng(2)
    for i in range(LAYERS):
        for which in "qk":
            values = np.stack([bf16(trained(rng, HEAD)) for _ in range(HEADS)])
            made.source[f"model.layers.{i}.self_attn.{which}_norm.weight"] = values
            first = values[0].reshape(2, HEAD // 2).swapaxes(0, 1).reshape(HEAD)
            made.tensors[f"blk.{i}.attn_{which}_norm.weight"] = np.tile(first, (HEADS, 1))
    return made


def test_permuted_norms_of_heads_are_no_alarm(tmp_path: Path) -> None:
    assert not_info(check(tmp_path, chameleon())[0]) == []


def test_a_permutation_that_was_left_out_is_found(tmp_path: Path) -> None:
    made = chameleon()
    first = made.source["model.layers.1.self_attn.q_norm.weight"][0]
    made.tensors["blk.1.attn_q_norm.weight"] = np.tile(first, (HEADS, 1))

    (finding,) = not_info(check(tmp_path, made)[0])

    assert (finding.rule, finding.tensor) == ("S203", "blk.1.attn_q_norm.weight")


def test_groups_are_a_reshape(tmp_path: Path) -> None:
    made = pair(BY_NAME["mamba2"])
    for i in range(LAYERS):
        name = f"blk.{i}.ssm_norm.weight"
        made.tensors[name] = made.tensors[name].reshape(4, WIDTH // 4)

    assert not_info(check(tmp_path, made)[0]) == []


def test_an_encoder_beside_the_language_model_is_not_missed(tmp_path: Path) -> None:
    made = pair(BY_NAME["gemma3"])
    values = np.ones(WIDTH, np.float32)
    for name in ("encoder.layers.0.layer_norm1", "post_layernorm"):
        made.source[f"vision_tower.vision_model.{name}.weight"] = values
    made.source["multi_modal_projector.mm_soft_emb_norm.weight"] = values
    made.config["vision_config"] = {"layer_norm_eps": 1e-3}

    assert not_info(check(tmp_path, made)[0]) == []


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0"])
def test_a_quantized_file_of_the_checkpoint_is_no_other_checkpoint(
    tmp_path: Path, quant: str
) -> None:
    made = pair(BY_NAME["llama"])
    rng = np.random.default_rng(3)
    for name in [n for n in made.tensors if "norm" in n]:
        made.tensors[name] = rng.permutation(made.tensors[name]) * np.float32(1.37)
    kind = gguf.GGMLQuantizationType[quant]
    rows = made.source["model.embed_tokens.weight"]
    made.tensors["token_embd.weight"] = gguf.dequantize(gguf.quantize(rows, kind), kind)

    findings, not_run = check(tmp_path, made)

    assert not_run.keys() == {"S402", *(r for r in not_run if r.startswith("V"))}
    assert {f.rule for f in findings} == {"S208"}


@pytest.mark.parametrize(
    ("network", "before", "after"),
    [
        ("bert", r"^bert\.", ""),
        ("bert", r"^bert\.", "roberta."),
        ("bert", r"LayerNorm\.weight$", "LayerNorm.gamma"),
        ("bert", r"LayerNorm\.bias$", "LayerNorm.beta"),
        ("gpt2", r"^", "transformer."),
        ("bloom", r"^", "transformer."),
        ("llama", r"^model\.", ""),
        ("qwen3", r"^model\.", ""),
        ("llama", r"^model\.", "model.text_model."),
        ("llama", r"^model\.", "model.language_model."),
        ("gemma3", r"^language_model\.model\.", "model.language_model."),
        ("gemma3", r"^language_model\.model\.", "model."),
        ("qwen2vl", r"^model\.language_model\.", "model."),
        ("llama4", r"^language_model\.model\.", "model."),
        ("gemma-embedding", r"^model\.", ""),
    ],
)
def test_other_spellings_of_a_checkpoints_names_are_known(
    tmp_path: Path, network: str, before: str, after: str
) -> None:
    made = pair(BY_NAME[network])
    renamed = {re.sub(before, after, name): values for name, values in made.source.items()}
    assert renamed.keys() != made.source.keys()
    made.source = renamed

    findings, not_run = check(tmp_path, made)

    assert findings == []
    assert "S102" not in not_run


def finetuned(made: Pair, step: float) -> None:
    """Train the source a little further."""
    rng = np.random.default_rng(5)
    for name, values in made.source.items():
        made.source[name] = bf16(values * (1 + step * rng.normal(size=values.shape)))


@pytest.mark.parametrize("step", [0.01, 0.05])
@pytest.mark.parametrize("network", ["llama", "gemma2", "gpt2"])
def test_a_light_fine_tune_is_another_checkpoint(tmp_path: Path, network: str, step: float) -> None:
    made = pair(BY_NAME[network])
    finetuned(made, step)

    findings, not_run = check(tmp_path, made)

    assert [f.rule for f in findings] == ["S101"]
    assert "S208" in not_run


def test_an_adapter_that_leaves_norms_alone_is_no_alarm(tmp_path: Path) -> None:
    made = pair(BY_NAME["llama"])
    made.source["model.embed_tokens.weight"] = bf16(made.source["model.embed_tokens.weight"] * 3)

    assert not_info(check(tmp_path, made)[0]) == []


def test_blocks_that_the_file_leaves_out_are_not_missed_one_by_one(tmp_path: Path) -> None:
    made = pair(BY_NAME["qwen3"])
    for part in ("input_layernorm", "post_attention_layernorm", "shared_head.norm"):
        made.source[f"model.layers.{LAYERS}.{part}.weight"] = np.ones(WIDTH, np.float32)
    made.source["mtp.norm.weight"] = np.ones(WIDTH, np.float32)

    assert not_info(check(tmp_path, made)[0]) == []


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), "1e-5", None, True, {}, []])
def test_an_epsilon_that_is_no_number_is_no_epsilon(tmp_path: Path, value: object) -> None:
    made = pair(BY_NAME["llama"])
    made.config = {"rms_norm_eps": value, "text_config": [], "vision_config": "none"}

    findings, not_run = check(tmp_path, made)

    assert not_info(findings) == []
    assert not_run["S401"] == "config.json names no epsilon of the file's norms"


# No miss.

Change = Callable[[Pair, str], None]
"""Takes a pair and the norm to spoil, by its name in the file."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with a norm; ``at`` is None where it is about the file."""

    name: str
    rule: str
    networks: str
    change: Change
    dtype: str = "BF16"
    of_bias: bool = False
    of_file: bool = False
    severity: str = "error"
    says: str = ""


def on_values(function: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(made: Pair, tensor: str) -> None:
        made.tensors[tensor] = np.asarray(function(made.tensors[tensor]), np.float32)

    return change


def from_source(function: Callable[[np.ndarray, float], np.ndarray]) -> Change:
    """The file's values by the source's and the right offset."""

    def change(made: Pair, tensor: str) -> None:
        values = function(made.source[made.origin[tensor]], made.network.offset(tensor[:-7]))
        made.tensors[tensor] = np.asarray(values, np.float32)

    return change


def everywhere(change: Change) -> Change:
    def changes(made: Pair, tensor: str) -> None:
        for name in [n for n in made.tensors if n in made.origin and n.endswith(".weight")]:
            change(made, name)

    return changes


def other_checkpoint(made: Pair, tensor: str) -> None:
    other = pair(made.network, made.dtype, seed=77)
    made.source = other.source


def other_width(made: Pair, tensor: str) -> None:
    for name, values in made.source.items():
        made.source[name] = np.concatenate([values, values], axis=-1)


def lost(made: Pair, tensor: str) -> None:
    del made.tensors[tensor]


def lost_at_source(made: Pair, tensor: str) -> None:
    del made.source[made.origin[tensor]]


def fellow(made: Pair, tensor: str) -> str:
    """Another norm of the block, of the same size."""
    block, _, _ = tensor.rpartition(".")[0].rpartition(".")
    return next(
        n
        for n in made.tensors
        if n.startswith(f"{block}.")
        and n != tensor
        and n.rpartition(".")[2] == tensor.rpartition(".")[2]
        and made.tensors[n].shape == made.tensors[tensor].shape
    )


def swapped(made: Pair, tensor: str) -> None:
    other = fellow(made, tensor)
    t = made.tensors
    t[tensor], t[other] = t[other], t[tensor]


def copied(made: Pair, tensor: str) -> None:
    made.tensors[tensor] = made.tensors[fellow(made, tensor)].copy()


def shifted(made: Pair, tensor: str) -> None:
    """Each layer has the norm of the next, from this one on."""
    layer = int(tensor.split(".")[1])
    for i in range(layer, LAYERS - 1):
        names = [tensor.replace(f".{layer}.", f".{j}.") for j in (i, i + 1)]
        made.tensors[names[0]] = made.tensors[names[1]]


def delayed(made: Pair, tensor: str) -> None:
    """Each layer has the norm of the one before, the first keeps its own."""
    for i in (2, 1):
        here, before = (tensor.replace(".1.", f".{j}.") for j in (i, i - 1))
        made.tensors[here] = made.tensors[before]


def one_element(value: float) -> Change:
    def change(made: Pair, tensor: str) -> None:
        made.tensors[tensor] = made.tensors[tensor].copy()
        made.tensors[tensor][5] = value

    return change


def key(factor: float) -> Change:
    def change(made: Pair, tensor: str) -> None:
        made.metadata[made.network.epsilon_key] = made.network.value * factor

    return change


def config_list(made: Pair, tensor: str) -> None:
    own = made.config[made.network.part] if made.network.part else made.config
    own[made.network.epsilon] = [made.network.value] * (LAYERS - 1) + [3e-3]


def halves(values: np.ndarray) -> np.ndarray:
    return values.reshape(2, -1).T.reshape(-1)


def noise(values: np.ndarray) -> np.ndarray:
    return np.random.default_rng(9).normal(1, 0.4, values.shape)


def bf16_sum(values: np.ndarray, offset: float) -> np.ndarray:
    return bf16(bf16(values) + np.float32(offset))


RMS = "llama gemma2 qwen3"
OFFSET = "gemma gemma2 gemma3 nemotron plamo2 plamo3 qwen3next step35"
BIAS = "gpt2 bert phi2"

FAULTS: tuple[Fault, ...] = (
    Fault("another fine-tune", "S101", "llama gemma2 bert", other_checkpoint, of_file=True),
    Fault("a wider sibling", "S101", "qwen2 nemotron", other_width, of_file=True),
    Fault("norm lost", "S102", "llama gemma2 glm4 gpt2 olmo2", lost),
    Fault("bias lost", "S102", BIAS, lost, of_bias=True),
    Fault("norm of one layer not in the source", "S103", "llama qwen3 bert", lost_at_source,
          severity="warning"),
    Fault("norm too wide", "S104", "llama olmo2 gemma", on_values(lambda v: np.tile(v, 2))),
    Fault("norm too narrow", "S104", "qwen3 gpt2", on_values(lambda v: v[: v.size // 2])),
    Fault("offset missing on one norm", "S201", OFFSET, from_source(lambda v, k: v),
          says="plus 0, where"),
    Fault("offset missing on all norms", "S201", "gemma2 nemotron",
          everywhere(from_source(lambda v, k: v)), says="plus 0, where"),
    Fault("offset twice", "S201", OFFSET, from_source(lambda v, k: v + 2 * k)),
    Fault("offset where none belongs", "S201", "llama qwen3 gpt2", on_values(lambda v: v + 1),
          says="plus 1, where the conversion adds 0"),
    Fault("offset missing, then rounded to BF16", "S201", "gemma2 nemotron",
          from_source(lambda v, k: bf16(v)), dtype="F32", says="rounded to BF16"),
    Fault("twice as large", "S202", RMS, on_values(lambda v: 2 * v)),
    Fault("times the square root of the width", "S202", "deepseek2 llama",
          on_values(lambda v: v * np.float32(np.sqrt(WIDTH)))),
    Fault("negative", "S202", "llama gpt2", on_values(np.negative)),
    Fault("scaled and moved", "S202", "gemma2 bert", on_values(lambda v: 0.5 * v + 0.25),
          says="·w"),
    Fault("halves interleaved", "S203", "qwen3 gemma3", on_values(halves),
          says="halves interleaved"),
    Fault("reversed", "S203", "llama gpt2", on_values(lambda v: v[::-1]), says="reversed"),
    Fault("shuffled", "S203", "gemma2 bert",
          on_values(lambda v: np.random.default_rng(4).permutation(v)), says="moved"),
    Fault("holds a norm of its block", "S204", RMS, copied, says="holds the values of"),
    Fault("shifted by a layer", "S205", "llama gemma2 gpt2", delayed, says="shifted by -1"),
    Fault("rounded to F16", "S206", RMS, from_source(lambda v, k: ROUND["F16"](v + k)),
          dtype="F32", severity="warning", says="rounded to F16"),
    Fault("rounded to BF16", "S206", RMS, from_source(lambda v, k: bf16(v + np.float32(k))),
          dtype="F32", severity="warning", says="rounded to BF16"),
    Fault("offset added in BF16", "S206", "gemma gemma3 nemotron qwen3next",
          from_source(bf16_sum), severity="warning", says="rounded to BF16"),
    Fault("bytes reversed", "S207", "llama gemma2 gpt2",
          on_values(lambda v: v.astype("<f4").view("<u4").byteswap().view("<f4"))),
    Fault("one element 0", "S208", RMS, one_element(0.0), says="in 1 of"),
    Fault("one element NaN", "S208", "llama gpt2", one_element(float("nan")), says="in 1 of"),
    Fault("one element infinite", "S208", "llama gpt2", one_element(float("inf"))),
    Fault("noise", "S208", "llama qwen3 bert", on_values(noise), says="correlation"),
    Fault("all zero", "S208", "llama gpt2", on_values(np.zeros_like)),
    Fault("all one", "S208", "llama gemma2", on_values(np.ones_like)),
    Fault("bias moved", "S301", BIAS, on_values(lambda v: v + 1), of_bias=True, says="plus 1"),
    Fault("bias with the weight's offset", "S301", "nemotron gptneox",
          on_values(lambda v: v + 1), of_bias=True, says="plus 1"),
    Fault("bias halved", "S301", BIAS, on_values(lambda v: v / 2), of_bias=True),
    Fault("bias zeroed", "S301", BIAS, on_values(np.zeros_like), of_bias=True),
    Fault("bias of another norm", "S301", "gpt2 bert", copied, of_bias=True, says="holds the"),
    Fault("bias rounded to BF16", "S301", "gpt2 phi2", on_values(bf16), dtype="F32",
          of_bias=True, says="rounded to BF16"),
    Fault("epsilon ten times too small", "S401",
          "llama gpt2 starcoder2 t5 mamba lfm2 orion chatglm", key(0.1), of_file=True),
    Fault("epsilon a thousandth off", "S401", "qwen3 nemotron", key(1.001), of_file=True),
    Fault("epsilon of a nested text_config", "S401", "gemma3 llama4 qwen2vl gemma3n",
          key(10), of_file=True, says="text_config.rms_norm_eps"),
    Fault("epsilon of a source that has one per layer", "S401", "llama qwen3",
          config_list, of_file=True),
)  # fmt: skip

CASES = [(fault, name) for fault in FAULTS for name in fault.networks.split()]


def target(made: Pair, fault: Fault) -> str:
    """A norm of the middle layer that has a fellow of its size, where there is one."""
    suffix = "bias" if fault.of_bias else "weight"
    names = [
        n
        for n in made.origin
        if n.startswith(("blk.1.", "enc.blk.1.")) and n.endswith(f".{suffix}")
    ]
    offset = [n for n in names if made.network.offset(n.removesuffix(".weight"))]
    return (offset if fault.rule == "S201" and offset else names)[-1]


def spoilt(fault: Fault, network: str) -> tuple[Pair, str]:
    made = pair(BY_NAME[network], fault.dtype)
    tensor = target(made, fault)
    fault.change(made, tensor)
    return made, tensor


def id_of(case: tuple[Fault, str]) -> str:
    return f"{case[0].name}-{case[1]}".replace(" ", "_")


@pytest.mark.parametrize("case", CASES, ids=id_of)
def test_a_fault_is_found_where_it_is_by_the_rule_that_describes_it(
    tmp_path: Path, case: tuple[Fault, str]
) -> None:
    fault, network = case
    made, tensor = spoilt(fault, network)

    findings = not_info(check(tmp_path, made)[0])

    assert {f.rule for f in findings} == {fault.rule}
    assert {f.severity for f in findings} == {fault.severity}
    assert all(fault.says in f.message for f in findings)
    if fault.of_file:
        assert {f.tensor for f in findings} == {None}
        return
    found = next(f for f in findings if f.tensor == tensor)
    assert found.layer == 1
    assert tensor in found.message
    if "all norms" in fault.name:
        assert len(findings) == sum(n.endswith(".weight") for n in made.origin)
    elif fault.rule == "S205":
        assert {f.layer for f in findings} == {1, 2}
    else:
        assert len(findings) == 1


@pytest.mark.parametrize("network", ["llama", "gemma2", "gpt2", "bert", "olmo2"])
def test_two_norms_that_changed_places_are_both_named(tmp_path: Path, network: str) -> None:
    made = pair(BY_NAME[network])
    tensor = target(made, Fault("", "S204", network, swapped))
    other = fellow(made, tensor)
    swapped(made, tensor)

    findings = not_info(check(tmp_path, made)[0])

    assert {f.rule for f in findings} == {"S204"}
    assert {f.tensor for f in findings} == {tensor, other}
    assert all(f.layer == 1 and "the two changed places" in f.message for f in findings)


@pytest.mark.parametrize("network", ["deepseek2", "minicpm3"])
def test_an_epsilon_that_transformers_fixes_in_code_is_a_warning(
    tmp_path: Path, network: str
) -> None:
    made = pair(replace(BY_NAME[network], value=1e-5))

    findings = not_info(check(tmp_path, made)[0])

    assert {(f.rule, f.severity) for f in findings} == {("S402", "warning")}
    assert {f.tensor for f in findings} == {
        f"blk.{i}.attn_{which}_norm.weight" for i in range(LAYERS) for which in ("q_a", "kv_a")
    }


def test_a_norm_that_layers_share_by_chance_is_not_called_shifted(tmp_path: Path) -> None:
    made = pair(BY_NAME["llama"])
    made.tensors["blk.0.attn_norm.weight"] = made.tensors["blk.2.attn_norm.weight"]

    (finding,) = not_info(check(tmp_path, made)[0])

    assert (finding.rule, finding.tensor) == ("S204", "blk.0.attn_norm.weight")
    assert finding.evidence["of"] == "blk.2.attn_norm.weight"


def test_another_checkpoint_says_what_is_not_compared(tmp_path: Path) -> None:
    made, _ = spoilt(FAULTS[0], "llama")

    findings, not_run = check(tmp_path, made)

    assert [f.rule for f in findings] == ["S101"]
    compared = [r.id for r in source.RULES if r.id not in ("S101", "S401", "S402")]
    assert all("another checkpoint" in not_run[rule] for rule in compared)


def test_half_precision_sums_are_worth_knowing_only(tmp_path: Path) -> None:
    made = pair(BY_NAME["gemma2"], "F16")

    findings, _ = check(tmp_path, made)

    assert {(f.rule, f.severity) for f in findings} == {("S206", "info")}
    assert all("in half precision" in f.message for f in findings)


def test_without_a_source_every_rule_says_so(tmp_path: Path) -> None:
    findings, not_run = check(tmp_path, pair(BY_NAME["llama"]), source.RULES, with_source=False)

    assert findings == []
    assert set(not_run) == {rule.id for rule in source.RULES}
    assert set(not_run.values()) == {"no source was given (--source)"}


def test_an_architecture_that_gguf_py_does_not_know_is_not_compared(tmp_path: Path) -> None:
    made = pair(BY_NAME["llama"])
    made.network = replace(made.network, architecture="unheard-of")
    made.metadata = {"unheard-of.block_count": LAYERS}

    findings, not_run = check(tmp_path, made, source.RULES)

    assert findings == []
    assert "gguf-py does not know" in not_run["S102"]


def test_a_quantized_source_is_named_as_the_reason(tmp_path: Path) -> None:
    made = pair(BY_NAME["llama"])
    model, checkpoint = made.write(tmp_path)
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content.replace(b'"BF16"', b'"U16" ', 1))
    from tests.checkpoints import subject

    values = next(rule for rule in source.RULES if rule.id == "S208")
    with (
        subject(model, checkpoint) as looked_at,
        pytest.raises(Exception, match="is 'U16': only F64, F32, F16, BF16 are read"),
    ):
        list(values.findings(looked_at))


def test_converted_adds_as_torch_does() -> None:
    values = np.array([0.00048828125, 0.0001], np.float16)
    assert converted(values, 1.0, "F16").tolist() == [1.0, 1.0]
    assert converted(values, 1.0, "BF16").tolist() != [1.0, 1.0]


# The table.


def rows() -> Iterator[tuple[str, str, int, int, str]]:
    for fault in FAULTS:
        found: Counter[str] = Counter()
        for network in fault.networks.split():
            with tempfile.TemporaryDirectory() as folder:
                findings = not_info(check(Path(folder), spoilt(fault, network)[0])[0])
            found.update({f.rule for f in findings})
        names = fault.networks.split()
        yield fault.name, fault.rule, found[fault.rule], len(names), ", ".join(names)


def table() -> str:
    lines = [
        "| Fault | Rule | Found | Architectures |",
        "|---|---|---|---|",
        *(f"| {n} | {rule} | {hit} of {of} | {names} |" for n, rule, hit, of, names in rows()),
    ]
    return "\n".join(lines)


@pytest.mark.slow
def test_the_document_has_the_table() -> None:
    assert f"{HEADING}\n" in DOCUMENT.read_text(encoding="utf-8")
    assert table() in DOCUMENT.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
