"""Whole files, every tensor and key of them, beside the checkpoints that they were made of.

``python -m tests.engine.test_audit_whole`` prints the families' table of
``docs/detection-audit.md``.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggufnorm.analysis.audit.run import audit
from ggufnorm.core.audit import AuditReport, Finding
from tests.checkpoints import safetensors
from tests.pairs import (
    EXPERTS,
    HEAD,
    HEADS,
    LAYERS,
    NETWORKS,
    TOKENS,
    WIDTH,
    Whole,
    permuted,
    turned,
    whole,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "detection-audit.md"
HEADING = "## Rules of all tensors and keys (H, T, K)"
SELECTED = ("H", "S", "T", "K")

ALL = tuple(NETWORKS)
KNOWN = tuple(n for n in ALL if n != "newest")


def check(folder: Path, made: Whole) -> AuditReport:
    model, checkpoint = made.write(folder)
    return audit(model, source=checkpoint, select=SELECTED)


def told(report: AuditReport) -> list[Finding]:
    return [f for f in report.findings if f.severity != "info"]


# No false alarm.


@pytest.mark.parametrize(
    ("dtype", "file_type"),
    [("F32", "F32"), ("BF16", "F16"), ("F16", "BF16"), ("BF16", "Q8_0"), ("F32", "Q4_0")],
)
@pytest.mark.parametrize("name", ALL)
def test_a_right_conversion_raises_no_alarm_and_is_compared_whole(
    tmp_path: Path, name: str, dtype: str, file_type: str
) -> None:
    made = whole(name, dtype, file_type)

    report = check(tmp_path, made)

    assert told(report) == []
    coverage = next(f for f in report.findings if f.rule == "T104")
    assert coverage.evidence["n_compared"] == len(made.tensors)


# Faults: each changes a pair, and says what the finding is about; None where it cannot be.

Fault = Callable[[Whole], str | None]


@dataclass(frozen=True)
class Planted:
    """A fault, the rules that may name it, and what the message says."""

    words: str
    spoil: Fault
    rules: tuple[str, ...]
    says: str = ""
    dtype: str = "F32"
    file_types: tuple[str, ...] = ("F32", "Q8_0")
    names: tuple[str, ...] = ALL


def matrix(made: Whole, layer: int = 1, *, square: bool = False, rows: int = 8) -> str | None:
    """A matrix of a block, the larger ones first."""
    stems = (f"blk.{layer}.", f"enc.blk.{layer}.")
    found = [
        n for n, w in made.tensors.items()
        if n.startswith(stems) and w.ndim == 2 and n.endswith(".weight")
        and (not square or w.shape[0] == w.shape[1]) and w.shape[0] >= rows
        and w.shape[1] >= 16 and "norm" not in n
    ]  # fmt: skip
    return found[-1] if found else None


def stacked(made: Whole) -> str | None:
    return next((n for n in made.tensors if "_exps" in n), None)


def transposed(made: Whole) -> str | None:
    name = matrix(made, square=True)
    if name:
        made.tensors[name] = turned(made.tensors[name])
    return name


def transposed_everywhere(made: Whole) -> str | None:
    name = matrix(made, square=True)
    if name is None:
        return None
    role = name.split(".")[-2]
    for n in made.tensors:
        if n.endswith(f".{role}.weight") and made.tensors[n].shape == made.tensors[name].shape:
            made.tensors[n] = turned(made.tensors[n])
    return name


def unpermuted(made: Whole) -> str | None:
    for n, sources in made.sources.items():
        if n.endswith(("attn_q.weight", "attn_k.weight")):
            made.tensors[n] = made.source[sources[0]].copy()
    return "blk.0.attn_q.weight"


def not_regrouped(made: Whole) -> str | None:
    for n, sources in made.sources.items():
        if n.endswith("attn_qkv.weight"):
            made.tensors[n] = made.source[sources[0]].copy()
    return "blk.0.attn_qkv.weight"


def heads_moved(made: Whole) -> str | None:
    name = next((n for n in made.tensors if n.endswith("blk.1.attn_q.weight")), None)
    if name:
        made.tensors[name] = np.roll(made.tensors[name], HEAD, axis=0)
    return name


def rows_moved(made: Whole) -> str | None:
    name = matrix(made)
    if name:
        order = np.random.default_rng(1).permutation(len(made.tensors[name]))
        made.tensors[name] = made.tensors[name][order]
    return name


def columns_moved(made: Whole) -> str | None:
    name = matrix(made, rows=WIDTH)
    if name:
        order = np.random.default_rng(2).permutation(made.tensors[name].shape[1])
        made.tensors[name] = made.tensors[name][:, order]
    return name


def experts_moved(made: Whole) -> str | None:
    name = stacked(made)
    if name:
        made.tensors[name] = made.tensors[name][::-1]
    return name


def exchanged(made: Whole) -> str | None:
    pairs = (("ffn_gate", "ffn_up"), ("attn_q", "attn_k"), ("attn_q", "attn_output"),
             ("ffn_gate_exps", "ffn_up_exps"))  # fmt: skip
    for a, b in pairs:
        for stem in ("blk.1", "enc.blk.1"):
            x, y = f"{stem}.{a}.weight", f"{stem}.{b}.weight"
            t = made.tensors
            if x in t and y in t and t[x].shape == t[y].shape:
                t[x], t[y] = t[y], t[x]
                return x
    return None


def shifted(made: Whole) -> str | None:
    name = matrix(made, 0)
    if name is None:
        return None
    role = name.split(".")[-2]
    names = [n for n in made.tensors if re.fullmatch(rf"(enc\.)?blk\.\d\.{role}\.weight", n)]
    if len({made.tensors[n].shape for n in names}) > 1 or len(names) < 3:
        return None
    values = [made.tensors[n] for n in names]
    for n, v in zip(names, [*values[1:], values[0]], strict=True):
        made.tensors[n] = v
    return names[0]


def scaled(made: Whole) -> str | None:
    name = matrix(made)
    if name:
        made.tensors[name] = made.tensors[name] * np.float32(0.5)
    return name


def bytes_reversed(made: Whole) -> str | None:
    name = matrix(made)
    if name:
        made.swapped.add(name)
    return name


def zeroed(made: Whole) -> str | None:
    name = matrix(made)
    if name:
        made.tensors[name] = np.zeros_like(made.tensors[name])
    return name


def expert_zeroed(made: Whole) -> str | None:
    name = stacked(made)
    if name:
        made.tensors[name] = made.tensors[name].copy()
        made.tensors[name][2] = 0
    return name


def by_way_of(kind: str) -> Fault:
    def spoil(made: Whole) -> str | None:
        dtype = gguf.GGMLQuantizationType[kind]
        for n, w in made.tensors.items():
            if w.ndim == 2 and w.shape[1] % 32 == 0 and "norm" not in n and "ssm" not in n:
                made.tensors[n] = gguf.dequantize(gguf.quantize(w, dtype), dtype)
        return matrix(made)

    return spoil


def adapter(made: Whole) -> str | None:
    rng = np.random.default_rng(3)
    n_changed = 0
    for n, w in made.tensors.items():
        if "blk." in n and w.ndim == 2 and min(w.shape) >= 48 and "norm" not in n:
            a, b = rng.normal(size=(w.shape[0], 4)), rng.normal(size=(4, w.shape[1]))
            update = (a @ b).astype(np.float32)
            made.tensors[n] = w + update * (0.25 * np.linalg.norm(w) / np.linalg.norm(update))
            n_changed += 1
    return "matrices" if n_changed >= 3 else None


def abliterated(made: Whole) -> str | None:
    """One direction is taken out of all that is written to the residual stream."""
    direction = np.random.default_rng(3).normal(size=WIDTH).astype(np.float32)
    direction /= np.linalg.norm(direction)
    names = [
        n
        for n in made.tensors
        if n.endswith(("attn_output.weight", "ffn_down.weight", "ssm_out.weight"))
    ]
    for n in names:
        w = made.tensors[n]
        made.tensors[n] = w - np.outer(direction, direction @ w)
    return "residual stream" if len(names) >= 3 else None


def rows_damaged(made: Whole) -> str | None:
    name = matrix(made)
    if name:
        made.tensors[name] = made.tensors[name].copy()
        made.tensors[name][3:6] = np.random.default_rng(4).normal(0, 0.05, (3, 1))
    return name


def other_values(made: Whole) -> str | None:
    name = matrix(made)
    if name:
        w = made.tensors[name]
        made.tensors[name] = np.random.default_rng(5).normal(0, 0.05, w.shape).astype("f4")
    return name


def fine_tuned(made: Whole) -> str | None:
    name = matrix(made)
    if name:
        w = made.tensors[name]
        noise = np.random.default_rng(6).normal(0, 0.3 * w.std(), w.shape)
        made.tensors[name] = (w + noise).astype(np.float32)
    return name


def not_a_number(made: Whole) -> str | None:
    name = matrix(made)
    if name:
        made.tensors[name] = made.tensors[name].copy()
        made.tensors[name][1, 1] = np.nan
    return name


def head_lost(made: Whole) -> str | None:
    return "output.weight" if made.tensors.pop("output.weight", None) is not None else None


def bias_lost(made: Whole) -> str | None:
    names = [n for n in made.tensors if n.endswith(("attn_q.bias", "ffn_up.bias", "dt.bias"))]
    for n in names:
        del made.tensors[n]
    return names[0] if names else None


def logarithms_kept(made: Whole) -> str | None:
    names = [n for n in made.tensors if n.endswith("ssm_a")]
    for n in names:
        made.tensors[n] = made.source[made.sources[n][0]].copy()
    return names[0] if names else None


def another(made: Whole) -> str | None:
    other = whole(made.network.name, seed=9)
    for n in made.tensors:
        if "norm" not in n:
            made.tensors[n] = other.tensors[n]
    return "another checkpoint"


def permuted_as(role: str, heads: int) -> Fault:
    """Rows of Q or K permuted once more, or by another number of heads."""

    def spoil(made: Whole) -> str | None:
        names = [n for n in made.tensors if n.endswith(f"{role}.weight")]
        for n in names:
            source = made.source[made.sources[n][0]]
            again = heads == HEADS and role == "attn_q"
            made.tensors[n] = permuted(heads)(made.tensors[n] if again else source)
        return names[0]

    return spoil


def by_way(make: Callable[[np.ndarray], np.ndarray | None]) -> Fault:
    def spoil(made: Whole) -> str | None:
        for n, w in made.tensors.items():
            if w.ndim == 2 and w.shape[1] % 64 == 0 and "norm" not in n and "ssm" not in n:
                made.tensors[n] = make(w)
        return matrix(made)

    return spoil


def to_nf4(w: np.ndarray) -> np.ndarray:
    """As bitsandbytes does, its 16 numbers written down once more, in four digits and more."""
    numbers = np.array([-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343,
                        -0.09105004, 0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983,
                        0.562617, 0.72295684, 1], np.float32)  # fmt: skip
    blocks = w.reshape(-1, 64)
    largest = np.abs(blocks).max(1, keepdims=True)
    nearest = np.abs(blocks[..., None] / largest[..., None] - numbers).argmin(-1)
    return (numbers[nearest] * largest).reshape(w.shape).astype(np.float32)


def to_int8(w: np.ndarray) -> np.ndarray:
    scale = np.abs(w).max(1, keepdims=True) / 127
    return (np.rint(w / scale) * scale).astype(np.float32)


def layer_repeated(made: Whole) -> str | None:
    names = [n for n in made.tensors if re.search(r"(^|\.)blk\.1\.", n)]
    pairs = [(n, re.sub(r"blk\.1\.", "blk.2.", n, count=1)) for n in names]
    if any(o not in made.tensors or made.tensors[o].shape != made.tensors[n].shape
           for n, o in pairs):  # fmt: skip
        return None
    for n, other in pairs:
        if made.tensors[n].ndim > 1:
            made.tensors[other] = made.tensors[n]
    return "blk.2"


def merged_by_half(made: Whole) -> str | None:
    """The source has an adapter merged, and the file the half of it."""
    rng = np.random.default_rng(8)
    n_changed = 0
    for n, sources in made.sources.items():
        w = made.tensors[n]
        if "blk." in n and w.ndim == 2 and min(w.shape) >= 48 and "norm" not in n:
            s = made.source[sources[0]]
            if s.shape != w.shape or not np.array_equal(s, w):
                continue
            a, b = rng.normal(size=(w.shape[0], 4)), rng.normal(size=(4, w.shape[1]))
            update = (a @ b).astype(np.float32)
            update *= 0.4 * np.linalg.norm(w) / np.linalg.norm(update)
            made.source[sources[0]], made.tensors[n] = s + update, w + update / 2
            n_changed += 1
    return "matrices" if n_changed >= 3 else None


def head_of_its_own(made: Whole) -> str | None:
    if "output.weight" in made.tensors:
        return None
    shape = made.tensors["token_embd.weight"].shape
    made.tensors["output.weight"] = np.random.default_rng(9).normal(0, 0.05, shape).astype("f4")
    return "output.weight"


def bias_of_its_own(made: Whole) -> str | None:
    names = [n for n in made.tensors if n.endswith("attn_k.weight")]
    if not names or names[0].replace("weight", "bias") in made.tensors:
        return None
    for n in names:
        rows = len(made.tensors[n])
        made.tensors[n.replace("weight", "bias")] = np.full(rows, 0.5, np.float32)
    return names[0].replace("weight", "bias")


def tokens_shifted(made: Whole) -> str | None:
    made.tensors["token_embd.weight"] = np.roll(made.tensors["token_embd.weight"], 1, axis=0)
    return "token_embd.weight"


def tokens_untrained(made: Whole) -> str | None:
    made.tensors["token_embd.weight"] = made.tensors["token_embd.weight"].copy()
    made.tensors["token_embd.weight"][-2:] = 0
    return "token_embd.weight"


def router_moved(made: Whole) -> str | None:
    names = [n for n in made.tensors if n.endswith("ffn_gate_inp.weight")]
    for n in names:
        made.tensors[n] = made.tensors[n][::-1]
    return names[0] if names else None


def expert_doubled(made: Whole) -> str | None:
    name = stacked(made)
    if name:
        made.tensors[name] = made.tensors[name].copy()
        made.tensors[name][2] = made.tensors[name][1]
    return name


def past_half(made: Whole) -> str | None:
    name = matrix(made)
    if name and len(made.sources[name]) == 1 and "ssm_" not in name:  # which stay in F32
        source = made.source[made.sources[name][0]]
        if source.shape == made.tensors[name].shape and np.array_equal(source, made.tensors[name]):
            source[0, 0] = made.tensors[name][0, 0] = 1e5
            return name
    return None


def key(name: str, value: object) -> Fault:
    """A key with another value; None for a key that is missing."""

    def spoil(made: Whole) -> str | None:
        if name not in made.keys:
            return None
        if value is None:
            del made.keys[name]
        else:
            made.keys[name] = value
        return f"{made.network.name}.{name}"

    return spoil


def scaling(kind: str, **more: float) -> Fault:
    """The config asks for scaling of which the file knows nothing."""

    def spoil(made: Whole) -> str | None:
        if "rope.freq_base" not in made.keys:
            return None
        rope = {"rope_type": kind, "factor": 8.0, "original_max_position_embeddings": 64, **more}
        made.config["rope_scaling"] = rope
        return "rope"

    return spoil


def pooled(made: Whole) -> str | None:
    if "pooling_type" not in made.keys:
        return None
    made.extra["1_Pooling/config.json"] = json.dumps({"pooling_mode_cls_token": True})
    return "bert.pooling_type"


def tokenizer(made: Whole, config: dict[str, object], **keys: object) -> str:
    made.keys |= {f"tokenizer.ggml.{k}": v for k, v in keys.items()}
    made.keys["tokenizer.ggml.tokens"] = ["t", "tt", *(f"t{i}" for i in range(78))]
    made.extra["tokenizer_config.json"] = json.dumps(config)
    return "tokenizer.ggml"


def other_eos(made: Whole) -> str | None:
    made.config["eos_token_id"] = 3
    return tokenizer(made, {}, model="llama", eos_token_id=2)


def no_bos(made: Whole) -> str | None:
    return tokenizer(made, {"add_bos_token": False}, model="llama", bos_token_id=1)


def other_split(made: Whole) -> str | None:
    split = {"type": "ByteLevel", "use_regex": True}
    made.extra["tokenizer.json"] = json.dumps({"pre_tokenizer": split})
    return tokenizer(made, {}, model="gpt2", pre="tekken", merges=["t t"])


def listed(change: Callable[[list[str], list[str]], None]) -> Fault:
    """The file's tokens and merges, changed; tokenizer.json has them as they were."""

    def spoil(made: Whole) -> str:
        merges = [f"{a} {b}" for a in "abcde" for b in "abcdefgh"]
        letters = [f"{a}{b}" for a, b in (m.split() for m in merges)]
        tokens = [*"abcdefgh", *letters]
        tokens += [f"t{i}" for i in range(len(tokens), TOKENS)]
        model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges[:]}
        made.extra["tokenizer.json"] = json.dumps({"model": model})
        change(tokens, merges)
        made.keys |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": merges,
        }
        return "tokenizer.ggml"

    return spoil


def one_token_more(tokens: list[str], _merges: list[str]) -> None:
    tokens.insert(5, "more")
    tokens.pop()


def two_tokens_exchanged(tokens: list[str], _merges: list[str]) -> None:
    tokens[7], tokens[9] = tokens[9], tokens[7]


def merges_exchanged(_tokens: list[str], merges: list[str]) -> None:
    merges[3], merges[4] = merges[4], merges[3]


def merges_cut(_tokens: list[str], merges: list[str]) -> None:
    del merges[30:]


def no_template(made: Whole) -> str | None:
    return tokenizer(made, {"chat_template": "{{ x }}"}, model="llama") and "chat_template"


def labelled(made: Whole) -> str | None:
    made.keys["general.file_type"] = int(gguf.LlamaFileType.MOSTLY_Q4_1)
    return "general.file_type"


def longer(made: Whole) -> str | None:
    made.trailing = bytes(4096)
    return "4,096 bytes"


ATTENTIVE = tuple(n for n in KNOWN if n not in ("mamba", "t5"))
FAULTS = (
    Planted("matrix transposed in one layer", transposed, ("T201",), "transposed"),
    Planted("matrix transposed in all layers", transposed_everywhere, ("T201",), "transposed",
            names=KNOWN),
    Planted("Q and K not permuted", unpermuted, ("T201",), "heads interleaved",
            names=("llama", "granite")),
    Planted("Q, K and V not regrouped", not_regrouped, ("T201",), "regrouped",
            names=("gptneox",)),
    Planted("heads reordered", heads_moved, ("T202",), "blocks of"),
    Planted("rows reordered", rows_moved, ("T202",), "rows"),
    Planted("columns reordered", columns_moved, ("T202",), "columns"),
    Planted("experts reordered", experts_moved, ("T202",), "experts"),
    Planted("two matrices exchanged", exchanged, ("T203",), "changed places"),
    Planted("a role shifted by one layer", shifted, ("T203",), "shifted by 1"),
    Planted("matrix × 0.5", scaled, ("T204",), "0.5 times"),
    Planted("bytes reversed", bytes_reversed, ("T205",), "bytes", file_types=("F32", "F16")),
    Planted("matrix all zero", zeroed, ("T206",), "zero"),
    Planted("one expert all zero", expert_zeroed, ("T206",), "expert 2 of 4"),
    Planted("made by way of BF16", by_way_of("BF16"), ("T207",), "BF16", file_types=("F32", "F16")),
    Planted("quantized by way of Q4_0", by_way_of("Q4_0"), ("T207",), "Q4_0",
            file_types=("F16", "Q8_0")),
    Planted("adapter not merged", adapter, ("T208",), "rank 4"),
    Planted("a direction taken out", abliterated, ("T208",), "abliteration",
            file_types=("F32", "F16"), names=tuple(n for n in KNOWN if n != "t5")),
    Planted("some rows damaged", rows_damaged, ("T209",), "3 of"),
    Planted("other values", other_values, ("T209",), "not its source's"),
    Planted("values of a further training", fine_tuned, ("T209",), "not its source's"),
    Planted("NaN", not_a_number, ("T209",), "NaN", file_types=("F32", "F16")),
    Planted("-exp left out", logarithms_kept, ("T209",), "logarithms", file_types=("F32",)),
    Planted("Q permuted twice", permuted_as("attn_q", HEADS), ("T201", "T202"), "attn_q",
            names=("llama", "granite")),
    Planted("K permuted by the heads of Q", permuted_as("attn_k", HEADS), ("T201", "T202"),
            "attn_k", names=("llama", "granite")),
    Planted("merged in NF4", by_way(to_nf4), ("T207",), "NF4", file_types=("F32", "F16")),
    Planted("merged in INT8", by_way(to_int8), ("T207",), "INT8", file_types=("F32", "F16")),
    Planted("a block repeated", layer_repeated, ("T203",), "holds the values of"),
    Planted("adapter merged by half", merged_by_half, ("T208",), "rank 4",
            file_types=("F32", "F16")),
    Planted("a head that the source has not", head_of_its_own, ("T103",), "no head of its own",
            names=KNOWN),
    Planted("biases that the source has not", bias_of_its_own, ("T103",), "bias", names=KNOWN),
    Planted("embeddings shifted by one token", tokens_shifted, ("T202",), "rows"),
    Planted("embeddings of two tokens zero", tokens_untrained, ("T209",), "2 of"),
    Planted("router's rows reordered", router_moved, ("T202",), "rows"),
    Planted("an expert twice", expert_doubled, ("T202",), "expert 2"),
    Planted("a value past half precision", past_half, ("T209",), "infinite",
            file_types=("F16",)),
    Planted("another checkpoint", another, ("T101", "S101"), "another checkpoint",
            names=tuple(n for n in KNOWN)),
    Planted("trained head lost", head_lost, ("T102",), "output.weight is missing"),
    Planted("biases lost", bias_lost, ("T102",), "became nothing", names=KNOWN),
    Planted("another rope base", key("rope.freq_base", 10000.0), ("K201",), "base"),
    Planted("rope base missing", key("rope.freq_base", None), ("K202",), "base"),
    Planted("linear scaling missing", scaling("linear"), ("K202",), "factor"),
    Planted("YaRN scaling missing", scaling("yarn"), ("K202",), "factor"),
    Planted("Llama 3 factors missing", scaling("llama3", low_freq_factor=1.0,
            high_freq_factor=4.0), ("K203",), "rope_freqs", names=("llama", "qwen3", "granite")),
    Planted("other rotated dimensions", key("rope.dimension_count", 8), ("K201",), "rotated"),
    Planted("soft caps missing", key("attn_logit_softcapping", None), ("K102",), "soft cap"),
    Planted("another soft cap", key("final_logit_softcapping", 30.0), ("K101",), "soft cap"),
    Planted("another window", key("attention.sliding_window", 4096), ("K101",), "window"),
    Planted("another attention scale", key("attention.scale", 0.125), ("K101",), "scale"),
    Planted("residual scale missing", key("residual_scale", None), ("K102",), "factor"),
    Planted("logit scale missing", key("logit_scale", None), ("K102",), "logits"),
    Planted("routed by softmax", key("expert_gating_func", 1), ("K101",), "sigmoid"),
    Planted("gating function missing", key("expert_gating_func", None), ("K102",), "sigmoid"),
    Planted("experts' scale missing", key("expert_weights_scale", None), ("K102",), "factor"),
    Planted("experts' norm missing", key("expert_weights_norm", None), ("K102",), "sum to 1"),
    Planted("another number of experts used", key("expert_used_count", 1), ("K101",), "routed"),
    Planted("causality missing", key("attention.causal", None), ("K102",), "causal"),
    Planted("another pooling", pooled, ("K101",), "cls"),
    Planted("another EOS", other_eos, ("K401",), "EOS", names=("llama", "gemma2")),
    Planted("BOS added", no_bos, ("K401",), "adds BOS", names=("llama", "gemma2")),
    Planted("another pre-tokenizer", other_split, ("K401",), "digits", names=("llama", "qwen3")),
    Planted("a token too many at the front", listed(one_token_more), ("K403",), "75 of 80"),
    Planted("two tokens exchanged", listed(two_tokens_exchanged), ("K403",), "2 of 80"),
    Planted("merges in another order", listed(merges_exchanged), ("K403",), "merge 3"),
    Planted("merges cut off", listed(merges_cut), ("K403",), "10 of 40"),
    Planted("chat template missing", no_template, ("K402",), "chat_template",
            names=("llama", "qwen3")),
    Planted("another feed-forward length", key("feed_forward_length", 95), ("H101",),
            "feed_forward_length", names=tuple(n for n in ATTENTIVE if "moe" not in n
                                               and n != "deepseek2")),
    Planted("another number of heads", key("attention.head_count", 2), ("H101",), "head_count",
            names=tuple(n for n in ATTENTIVE if n not in ("deepseek2", "jamba"))),
    Planted("another number of experts", key("expert_count", EXPERTS + 4), ("H101",),
            "expert_count"),
    Planted("a block left out of the count", key("block_count", LAYERS - 1), ("K101",), "blocks",
            names=tuple(n for n in ALL if n != "t5")),
    Planted("another head size", key("attention.key_length", 8), ("K101", "H101"), "key_length",
            names=tuple(n for n in ATTENTIVE if "head_dim" in NETWORKS[n].config)),
    Planted("another label of the type", labelled, ("H201",), "Q4_1"),
    Planted("bytes behind the last tensor", longer, ("H202",), "4,096 bytes"),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What was said of a planted fault."""

    planted: Planted
    name: str
    file_type: str
    found: bool
    findings: tuple[Finding, ...]


def outcome(planted: Planted, name: str, file_type: str) -> Outcome | None:
    """What the rules say of a fault; None where it cannot be planted."""
    made = whole(name, planted.dtype, file_type)
    if planted.spoil(made) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        findings = told(check(Path(folder), made))
    right = [f for f in findings if f.rule in planted.rules and planted.says in f.message]
    return Outcome(planted, name, file_type, bool(right), tuple(findings))


def outcomes() -> Iterator[Outcome]:
    for planted in FAULTS:
        for i, name in enumerate(planted.names):
            # Types in turn: each fault meets all of them, in one architecture or another.
            file_type = planted.file_types[i % len(planted.file_types)]
            found = outcome(planted, name, file_type)
            if found is not None:
                yield found


def is_misnamed(o: Outcome) -> bool:
    """Whether something else was said to be wrong, with or without the fault."""
    allowed = set(o.planted.rules) | _BESIDE.get(o.planted.rules[0], set())
    return any(f.rule not in allowed for f in o.findings)


_BESIDE = {
    "K202": {"K201"}, "H101": {"K101"}, "T101": {"S101", "S208", "T209"},
    "K101": {"H101", "K201"}, "T203": set(), "K401": {"K402"}, "K403": {"H301"},
}  # fmt: skip
"""Rules that a fault concerns too."""


def table() -> str:
    lines = [
        "| fault | rule | planted in | found | misnamed | missed |",
        "|---|---|---|---|---|---|",
    ]
    for planted in FAULTS:
        mine = [o for o in _cached() if o.planted is planted]
        n_found = sum(o.found for o in mine)
        n_wrong = sum(is_misnamed(o) for o in mine)
        names = ", ".join(o.name for o in mine) if len(mine) < 5 else f"{len(mine)} architectures"
        lines.append(
            f"| {planted.words} | {', '.join(planted.rules)} | {names} | {n_found} | {n_wrong} |"
            f" {len(mine) - n_found} |"
        )
    total = list(_cached())
    lines += [
        "",
        f"{len(total)} faults in {len({o.name for o in total})} architectures (dense, MoE, MLA,"
        " hybrid, recurrent, encoder, encoder-decoder, and one that gguf-py does not know):"
        f" {sum(o.found for o in total)} found, {sum(map(is_misnamed, total))} misnamed,"
        f" {sum(not o.found for o in total)} missed.",
    ]
    return "\n".join(lines)


_OUTCOMES: list[Outcome] = []


def _cached() -> list[Outcome]:
    if not _OUTCOMES:
        _OUTCOMES.extend(outcomes())
    return _OUTCOMES


@pytest.mark.parametrize("planted", FAULTS, ids=lambda p: p.words)
def test_a_planted_fault_is_found_and_named(planted: Planted) -> None:
    mine = [o for o in _cached() if o.planted is planted]

    assert mine
    missed = [(o.name, o.file_type, [f.message for f in o.findings]) for o in mine if not o.found]
    assert missed == []
    assert [(o.name, o.file_type, [f"{f.rule} {f.message}" for f in o.findings])
            for o in mine if is_misnamed(o)] == []  # fmt: skip


def test_the_document_tells_what_was_found() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]

    assert table() in section


def test_a_pattern_is_one_finding(tmp_path: Path) -> None:
    made = whole("llama")
    unpermuted(made)

    findings = told(check(tmp_path, made))

    assert len(findings) == 2
    assert findings[0].evidence["n_tensors"] == LAYERS


def test_the_right_value_of_a_key_stands_in_the_evidence(tmp_path: Path) -> None:
    made = whole("deepseek2")
    made.keys["expert_gating_func"] = 1

    (finding,) = told(check(tmp_path, made))

    assert finding.evidence["key"] == "deepseek2.expert_gating_func"
    assert (finding.evidence["expected"], finding.evidence["actual"]) == (2, 1)
    assert finding.evidence["type"] == "u32"


@pytest.mark.filterwarnings("ignore:invalid value")  # of gguf-py, which quantizes what it is given
@pytest.mark.parametrize("select", [("N602", "T"), ("N602",)])
@pytest.mark.parametrize("in_source", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "dtype", "file_type"),
    [("llama", "F32", "F32"), ("qwen3", "F16", "F16"), ("llama", "BF16", "BF16"),
     ("qwen3", "BF16", "F16"), ("llama", "F32", "Q8_0")],
)  # fmt: skip
def test_what_is_not_finite_is_found_beside_the_source_too(
    tmp_path: Path, name: str, dtype: str, file_type: str, value: float, *,
    in_source: bool, select: tuple[str, ...]
) -> None:  # fmt: skip
    made = whole(name, dtype, file_type)
    tensor = "blk.1.ffn_up.weight"
    (source,) = made.sources[tensor]
    made.tensors[tensor] = made.tensors[tensor].copy()
    made.tensors[tensor][2, 3] = value
    if in_source:
        made.source[source][2, 3] = value
    model, checkpoint = made.write(tmp_path)

    report = audit(model, source=checkpoint, select=select)

    found = [f for f in report.findings if f.rule == "N602"]
    assert [(f.tensor, f.evidence["first_row"]) for f in found] == [(tensor, 2)]


def test_names_without_their_suffix_are_right_too(tmp_path: Path) -> None:
    made = whole("qwen3")
    for layer in range(LAYERS):
        made.tensors[f"blk.{layer}.ffn_norm"] = made.tensors.pop(f"blk.{layer}.ffn_norm.weight")

    assert told(check(tmp_path, made)) == []


@pytest.mark.parametrize("value", [None, "x", -1, 10**40, 1.5, float("nan"), [], [None], {}])
def test_a_config_of_nonsense_is_no_crash(tmp_path: Path, value: object) -> None:
    made = whole("llama")
    made.config = dict.fromkeys(made.config, value)
    rope = ("factor", "rope_theta", "low_freq_factor", "long_factor", "partial_rotary_factor")
    made.config["rope_scaling"] = {"rope_type": "llama3", **dict.fromkeys(rope, value)}

    report = check(tmp_path, made)

    assert "T104" in report.summary.rules_run


@pytest.mark.parametrize(("file_type", "rules"), [("Q8_0", []), ("Q4_0", ["H203"])])
def test_the_converter_quantizes_what_the_quantizer_leaves(
    tmp_path: Path, file_type: str, rules: list[str]
) -> None:
    """Gemma 3n's LAuReL in Q8_0 (``prepare_tensors`` in conversion/base.py)."""
    made = whole("qwen3", "F32", file_type)
    made.tensors["blk.0.laurel_l.weight"] = np.ones((64, 64), np.float32)
    model, _ = made.write(tmp_path)

    assert [f.rule for f in audit(model, select=["H203"]).findings] == rules


@pytest.mark.parametrize("is_xlm_roberta", [True, False])
def test_the_mask_of_xlm_roberta_is_a_gap_in_right_files(
    tmp_path: Path, is_xlm_roberta: bool
) -> None:
    """BGE-M3's: no SentencePiece model has it (conversion/bert.py)."""
    made = whole("bert")
    first = ["<s>", "<pad>", "</s>", "<unk>"] if is_xlm_roberta else ["a", "b", "c", "d"]
    tokens = [*first, *(f"t{i}" for i in range(74)), "<s2>", "[PAD79]"]
    made.keys["tokenizer.ggml.tokens"] = tokens
    added = [{"id": 79, "content": "<mask>", "special": True}]
    made.extra["tokenizer.json"] = json.dumps({"added_tokens": added})
    model, checkpoint = made.write(tmp_path)

    found = audit(model, source=checkpoint, select=["K403"]).findings

    assert [f.rule for f in found] == ([] if is_xlm_roberta else ["K403"])


def test_stacks_that_a_checkpoint_numbers_one_by_one_are_found(tmp_path: Path) -> None:
    """HRM's: ``L_module.layers.0``, ``H_module.layers.0`` (conversion/hrm_text.py)."""
    made = whole("newest")
    half = LAYERS // 2

    def stacked(name: str) -> str:
        _, _, rest = name.partition("model.layers.")
        layer, _, part = rest.partition(".")
        if not rest:
            return name
        stack = "L" if int(layer) < half else "H"
        return f"model.{stack}_module.layers.{int(layer) % half}.{part}"

    made.source = {stacked(n): w for n, w in made.source.items()}
    made.keys |= {"hrm.layers_per_stack": half, "block_count": 5 * LAYERS}
    made.config["num_hidden_layers"] = 5 * LAYERS
    model, checkpoint = made.write(tmp_path)

    report = audit(model, source=checkpoint, select=[*SELECTED, "N103"])

    assert told(report) == []
    coverage = next(f for f in report.findings if f.rule == "T104")
    assert coverage.evidence["n_compared"] == len(made.tensors)


K_HEADS, V_HEADS, LINEAR = 2, 6, 4


def tiled(w: np.ndarray, axis: int = 0) -> np.ndarray:
    """V heads of one K head apart (``_reorder_v_heads`` in conversion/qwen.py)."""
    cut = (*w.shape[:axis], K_HEADS, V_HEADS // K_HEADS, -1, *w.shape[axis + 1 :])
    return np.ascontiguousarray(w.reshape(cut).swapaxes(axis, axis + 1).reshape(w.shape))


def behind_q_and_k(w: np.ndarray) -> np.ndarray:
    begin = 2 * K_HEADS * LINEAR
    return np.concatenate([w[:begin], tiled(w[begin:])])


LINEAR_ATTENTION = {
    "attn_qkv.weight": ("in_proj_qkv.weight", behind_q_and_k),
    "attn_gate.weight": ("in_proj_z.weight", tiled),
    "ssm_alpha.weight": ("in_proj_a.weight", tiled),
    "ssm_beta.weight": ("in_proj_b.weight", tiled),
    "ssm_a": ("A_log", lambda w: tiled(-np.exp(w))),
    "ssm_dt.bias": ("dt_bias", tiled),
    "ssm_conv1d.weight": ("conv1d.weight", behind_q_and_k),
    "ssm_out.weight": ("out_proj.weight", lambda w: tiled(w, 1)),
}  # fmt: skip


def linear_attention(architecture: str) -> Whole:
    """A network whose first layer has Qwen 3.5's linear attention."""
    made = whole("qwen3")
    made.network = replace(made.network, name=architecture)
    sizes = {"linear_num_key_heads": K_HEADS, "linear_num_value_heads": V_HEADS,
             "linear_key_head_dim": LINEAR, "linear_value_head_dim": LINEAR}  # fmt: skip
    made.config |= sizes
    values, all_rows = V_HEADS * LINEAR, (2 * K_HEADS + V_HEADS) * LINEAR
    shapes = {
        "in_proj_qkv.weight": (all_rows, WIDTH), "in_proj_z.weight": (values, WIDTH),
        "in_proj_a.weight": (V_HEADS, WIDTH), "in_proj_b.weight": (V_HEADS, WIDTH),
        "conv1d.weight": (all_rows, 4), "out_proj.weight": (WIDTH, values),
    }  # fmt: skip
    rng = np.random.default_rng(6)
    for target, (name, convert) in LINEAR_ATTENTION.items():
        w = rng.standard_normal(shapes.get(name, (V_HEADS,)), np.float32)
        stored = w[:, None] if name == "conv1d.weight" else w
        made.source[f"model.layers.0.linear_attn.{name}"] = stored
        made.tensors[f"blk.0.{target}"] = convert(w).astype(np.float32)
    return made


@pytest.mark.parametrize("architecture", ["qwen35", "qwen35moe", "qwen4exp"])
@pytest.mark.parametrize("left", [None, *LINEAR_ATTENTION])
def test_heads_that_were_not_tiled_are_named(
    architecture: str, left: str | None, tmp_path: Path
) -> None:
    """A converter that leaves V heads by their K heads: llama.cpp repeats K heads in turns."""
    made = linear_attention(architecture)
    if left is not None:
        name, _convert = LINEAR_ATTENTION[left]
        as_it_is = made.source[f"model.layers.0.linear_attn.{name}"]
        as_it_is = -np.exp(as_it_is) if left == "ssm_a" else as_it_is
        made.tensors[f"blk.0.{left}"] = as_it_is.reshape(made.tensors[f"blk.0.{left}"].shape)
    model, checkpoint = made.write(tmp_path)

    found = [f for f in audit(model, source=checkpoint, select=["T"]).findings
             if f.severity == "error"]  # fmt: skip

    assert len(found) == (left is not None)
    assert all(f"blk.0.{left}" in f.message and f.rule in ("T201", "T202") for f in found)


def test_tensors_without_an_origin_are_listed(tmp_path: Path) -> None:
    made = whole("qwen3")
    model, checkpoint = made.write(tmp_path)
    stored = {n: ("F32", v) for n, v in made.source.items() if not n.endswith("up_proj.weight")}
    (checkpoint / "model.safetensors").write_bytes(safetensors(stored))

    report = audit(model, source=checkpoint, select=SELECTED)

    unknown = next(f for f in report.findings if f.rule == "T103")
    assert "4 tensors were not compared" in unknown.message
    assert "blk.0.ffn_up.weight" in unknown.evidence["tensors"]


if __name__ == "__main__":
    print(table())
