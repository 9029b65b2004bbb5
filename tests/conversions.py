"""Sound conversions of any language model that gguf-py knows, small, with trained-like norms.

What a conversion looks like is stated here once more, from llama.cpp's converter
(``conversion/*.py``) and graphs (``src/models/*.cpp``), not taken from ggufnorm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES

from tests.architectures import is_norm_member

Precision = Literal["bf16", "f16", "f32"]

N_LAYERS = 10
N_EMBD, N_HEAD, N_HEAD_KV, HEAD_DIM = 64, 4, 2, 16
Q_RANK, KV_RANK, INNER = 48, 40, 32

# No llama.cpp graph builds these, or they are no language models.
NOT_LANGUAGE = {"clip", "gptj", "wavtokenizer-dec"}

ARCHITECTURES = sorted(
    name
    for arch, name in MODEL_ARCH_NAMES.items()
    if name not in NOT_LANGUAGE and arch in MODEL_ARCH
)

# LLM_KV_ATTENTION_LAYERNORM_EPS is read (src/models/*.cpp).
LAYER_NORM = {
    "bert", "bloom", "codeshell", "cohere2", "command-r", "dbrx", "falcon", "gpt2", "gptneox",
    "jais", "jais2", "jina-bert-v2", "jina-bert-v3", "modern-bert", "mpt", "nemotron",
    "nomic-bert", "nomic-bert-moe", "olmo", "orion", "phi2", "rwkv6", "rwkv7", "stablelm",
    "starcoder", "starcoder2",
}  # fmt: skip

# The converter adds 1 to every norm's weight but ssm_norm's.
PLUS_ONE = {
    "gemma", "gemma2", "gemma3", "gemma-embedding", "nemotron", "qwen3next", "qwen35",
    "qwen35moe", "step35",
}  # fmt: skip

# One weight over all heads together.
WHOLE_WIDTH = {"olmo2", "minimax-m2", "mpt", "jina-bert-v2"}

# gguf-py lists these, and llama.cpp's converter does not write them.
NOT_WRITTEN = {
    ("phi2", "ffn_norm"),
    ("arwkv7", "token_embd_norm"),
    *((name, "output_norm") for name in ("bert", "nomic-bert", "nomic-bert-moe")),
    ("jina-bert-v3", "output_norm"),
}


@dataclass
class Model:
    """What goes into a file.

    Attributes:
        arch: ``general.architecture``.
        metadata: keys with ``{arch}`` in them.
        tensors: by name.
        types: ggml types of the tensors that are not float32 and float16 by their values.
    """

    arch: str
    metadata: dict[str, object]
    tensors: dict[str, np.ndarray]
    types: dict[str, gguf.GGMLQuantizationType] = field(default_factory=dict)

    def weight(self, role: str, layer: int) -> str:
        return f"blk.{layer}.{role}.weight"


def build(arch: str, precision: Precision = "bf16", seed: int = 0) -> Model:
    """A sound conversion."""
    rng = np.random.default_rng([seed, *arch.encode()])
    tensors: dict[str, np.ndarray] = {"token_embd.weight": _matrix(rng, 8, N_EMBD)}
    for layer in range(N_LAYERS):
        for template in _templates(arch):
            if "{bid}" not in template or not _stands_in(arch, template, layer):
                continue
            _add(tensors, arch, template.format(bid=layer), layer, precision, rng)
        tensors[f"blk.{layer}.ffn_down.weight"] = _matrix(rng, 4)
        mixer = "ssm_out" if _is_recurrent(arch, layer) else "attn_output"
        tensors[f"blk.{layer}.{mixer}.weight"] = _matrix(rng, 4, N_HEAD * HEAD_DIM)
    for template in _templates(arch):
        if "{bid}" not in template:
            _add(tensors, arch, template, N_LAYERS, precision, rng)
    return Model(arch, _metadata(arch), tensors)


def _templates(arch: str) -> list[str]:
    member = next(a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == arch)
    names = [TENSOR_NAMES[m] for m in MODEL_TENSORS[member] if is_norm_member(m)]
    return [n for n in dict.fromkeys(names) if (arch, n.rpartition("}.")[2]) not in NOT_WRITTEN]


def _is_recurrent(arch: str, layer: int) -> bool:
    return layer % 2 == 0 and any("ssm" in t for t in _templates(arch))


def _stands_in(arch: str, template: str, layer: int) -> bool:
    if arch == "modern-bert" and template.endswith("attn_norm"):
        return layer > 0
    if "ssm" in template:
        return _is_recurrent(arch, layer)
    if template.endswith(("attn_q_norm", "attn_k_norm")):
        return not _is_recurrent(arch, layer)
    return True


def _add(
    tensors: dict[str, np.ndarray],
    arch: str,
    name: str,
    layer: int,
    precision: Precision,
    rng: np.random.Generator,
) -> None:
    shape = _shape(arch, name)
    tensors[f"{name}.weight"] = trained(shape, layer, _offset(arch, name), precision, rng)
    if arch in LAYER_NORM - {"cohere2", "command-r", "dbrx", "modern-bert", "mpt"}:
        tensors[f"{name}.bias"] = rounded(rng.normal(0, 0.1, shape), precision)


def _offset(arch: str, name: str) -> float:
    part = name.rpartition(".")[2]
    if arch in ("plamo2", "plamo3"):  # conversion/plamo.py
        offsets = {"post_attention_norm": 1 / 5, "post_ffw_norm": 1 / 5**1.5}
        same = ("attn_norm", "ffn_norm", "output_norm")
        same += ("attn_q_norm", "attn_k_norm") if arch == "plamo3" else ()
        return offsets.get(part, float(part in same))
    return float(arch in PLUS_ONE and part != "ssm_norm")


def trained(
    shape: int | tuple[int, ...],
    layer: int,
    offset: float,
    precision: Precision,
    rng: np.random.Generator,
) -> np.ndarray:
    """Lognormal, growing with depth, with outlier channels; the offset added as converters do."""
    depth = 0.6 + 1.5 * layer / N_LAYERS
    values = np.exp(rng.normal(0, 0.25, shape)) * depth * rng.uniform(0.7, 1.4)
    flat = values.reshape(-1)
    flat[rng.integers(flat.size, size=1 + flat.size // 40)] *= rng.uniform(2, 8)
    weight = rounded(values - offset, precision)
    if offset and precision == "f16":
        return (weight.astype(np.float16) + np.float16(offset)).astype(np.float32)
    return (weight + np.float32(offset)).astype(np.float32)


def rounded(values: np.ndarray, precision: Precision) -> np.ndarray:
    values = values.astype(np.float32)
    if precision == "f16":
        return values.astype(np.float16).astype(np.float32)
    if precision == "bf16":
        return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return values


def _shape(arch: str, name: str) -> int | tuple[int, ...]:
    part = name.rpartition(".")[2]
    if part in ("attn_q_norm", "attn_k_norm"):
        heads = N_HEAD if part == "attn_q_norm" else N_HEAD_KV
        if arch in ("stablelm", "command-r", "chameleon", "plamo2"):
            return (heads, HEAD_DIM)
        return heads * HEAD_DIM if arch in WHOLE_WIDTH else HEAD_DIM
    if part == "attn_q_a_norm":
        return Q_RANK
    if part == "attn_kv_a_norm":
        return KV_RANK
    return INNER if "ssm" in part or "indexer" in name or "sub_norm" in part else N_EMBD


def _metadata(arch: str) -> dict[str, object]:
    layer_norm = arch in LAYER_NORM
    key = "layer_norm_epsilon" if layer_norm else "layer_norm_rms_epsilon"
    facts: dict[str, object] = {
        "{arch}.block_count": N_LAYERS,
        "{arch}.embedding_length": N_EMBD,
        "{arch}.attention.head_count": N_HEAD,
        "{arch}.attention.head_count_kv": N_HEAD_KV,
        "{arch}.attention.key_length": HEAD_DIM,
        "{arch}.attention.q_lora_rank": Q_RANK,
        "{arch}.attention.kv_lora_rank": KV_RANK,
        f"{{arch}}.attention.{key}": 1e-5 if layer_norm else 1e-6,
    }
    if arch in ("t5", "t5encoder"):  # conversion/t5.py writes both
        facts["{arch}.attention.layer_norm_epsilon"] = 1e-6
    return facts


def _matrix(rng: np.random.Generator, rows: int, columns: int = 256) -> np.ndarray:
    return rng.normal(0, 0.1, (rows, 256))[:, :columns].astype(np.float16)


def write(path: Path, model: Model) -> Path:
    writer = gguf.GGUFWriter(path, model.arch)
    for key, value in model.metadata.items():
        _write_value(writer, key.format(arch=model.arch), value)
    for name, values in model.tensors.items():
        kind = model.types.get(name)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_value(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        raise TypeError(f"{key}: {value!r}")


def encoder(seed: int = 0) -> Model:
    """A vision encoder of Gemma 3: LayerNorm, and an RMSNorm in the projector."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(N_LAYERS):
        for part in ("ln1", "ln2"):
            name = f"v.blk.{layer}.{part}"
            tensors[f"{name}.weight"] = trained(N_EMBD, layer, 0, "bf16", rng)
            tensors[f"{name}.bias"] = rounded(rng.normal(0, 0.1, N_EMBD), "bf16")
    tensors["v.post_ln.weight"] = trained(N_EMBD, N_LAYERS, 0, "bf16", rng)
    tensors["v.post_ln.bias"] = rounded(rng.normal(0, 0.1, N_EMBD), "bf16")
    tensors["mm.soft_emb_norm.weight"] = trained(N_EMBD, N_LAYERS, 1, "bf16", rng)
    facts: Mapping[str, object] = {
        "clip.projector_type": "gemma3",
        "clip.vision.block_count": N_LAYERS,
        "clip.vision.embedding_length": N_EMBD,
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
    }
    return Model("clip", dict(facts), tensors)
