"""(checkpoint, GGUF file) pairs as a conversion makes them, for tests to spoil.

The names and offsets here were read off transformers' classes and llama.cpp's converter
(``conversion/*.py``), not taken from the package.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ggufnorm.analysis.audit.registry import NotApplicableError, Rule
from ggufnorm.analysis.audit.rules import source, vision
from ggufnorm.analysis.audit.run import open_subject
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.audit import Finding
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.hf import open_source
from tests.architectures import write_model

RULES: tuple[Rule, ...] = (*source.RULES, *vision.RULES)

WIDTH, HEAD, HEADS, LAYERS, TOKENS = 64, 16, 4, 3, 8

LLAMA = {
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
    "model.norm": "output_norm",
}
QK = {
    "model.layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "model.layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
}
SANDWICH = {
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
    "model.layers.{}.pre_feedforward_layernorm": "blk.{}.ffn_norm",
    "model.layers.{}.post_feedforward_layernorm": "blk.{}.post_ffw_norm",
    "model.norm": "output_norm",
}
AFTER = {
    "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
    "model.layers.{}.post_feedforward_layernorm": "blk.{}.post_ffw_norm",
    "model.norm": "output_norm",
}
LORA = {
    "model.layers.{}.self_attn.q_a_layernorm": "blk.{}.attn_q_a_norm",
    "model.layers.{}.self_attn.kv_a_layernorm": "blk.{}.attn_kv_a_norm",
}


def inside(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {prefix + source: target for source, target in names.items()}


@dataclass(frozen=True)
class Network:
    """What a converter has to know of a model class.

    ``norms``: source name to file name, both without suffix, ``{}`` for the block.
    ``offsets``: by the end of the file's name; ``""`` for all others.
    """

    architecture: str
    norms: Mapping[str, str]
    epsilon: str = "rms_norm_eps"
    layer_norm: bool = False
    bias: bool = False
    part: str = ""
    offsets: Mapping[str, float] = field(default_factory=dict)
    embedding: str = "model.embed_tokens"
    value: float = 1e-5

    @property
    def epsilon_key(self) -> str:
        kind = "layer_norm_epsilon" if self.layer_norm else "layer_norm_rms_epsilon"
        return f"{self.architecture}.attention.{kind}"

    def offset(self, target: str) -> float:
        ends = (k for k in self.offsets if target.endswith(k))
        return self.offsets[max(ends, key=len)] if self.offsets else 0.0


def _layer_norm(architecture: str, norms: Mapping[str, str], epsilon: str, **more: Any) -> Network:
    return Network(architecture, norms, epsilon, layer_norm=True, **more)


ONE = {"": 1.0}

NETWORKS: tuple[Network, ...] = (
    *(
        Network(name, LLAMA)
        for name in (
            "llama", "qwen2", "qwen2moe", "phi3", "granite", "granitemoe", "minicpm",
            "smollm3", "ernie4_5", "arcee", "xverse", "baichuan", "deepseek",
        )
    ),
    *(Network(name, {**LLAMA, **QK}) for name in ("qwen3", "qwen3moe", "olmoe", "minimax-m2")),
    Network("qwen2vl", inside("model.language_model.", {k[6:]: v for k, v in LLAMA.items()}),
            part="text_config", embedding="model.language_model.embed_tokens"),
    Network("llama4", inside("language_model.", LLAMA), part="text_config",
            embedding="language_model.model.embed_tokens"),
    Network("hunyuan-dense", {**LLAMA,
            "model.layers.{}.self_attn.query_layernorm": "blk.{}.attn_q_norm",
            "model.layers.{}.self_attn.key_layernorm": "blk.{}.attn_k_norm"}),
    Network("deepseek2", {**LLAMA, **LORA}, value=1e-6),
    Network("minicpm3", {**LLAMA, **LORA}, value=1e-6),
    Network("gpt-oss", {
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
            "model.norm": "output_norm"}),
    Network("seed_oss", {
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
            "model.norm": "output_norm"}, value=1e-6),
    Network("glm4", {
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.layers.{}.post_self_attn_layernorm": "blk.{}.post_attention_norm",
            "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
            "model.layers.{}.post_mlp_layernorm": "blk.{}.post_ffw_norm",
            "model.norm": "output_norm"}),
    Network("olmo2", {**AFTER, **QK}, value=1e-6),
    Network("exaone4", {**AFTER, **QK}),
    Network("gemma", LLAMA, offsets=ONE, value=1e-6),
    Network("gemma2", SANDWICH, offsets=ONE, value=1e-6),
    Network("gemma3", inside("language_model.", {**SANDWICH, **QK}), offsets=ONE, value=1e-6,
            part="text_config", embedding="language_model.model.embed_tokens"),
    Network("gemma-embedding", {**SANDWICH, **QK}, offsets=ONE, value=1e-6),
    Network("gemma3n", {
            "model.language_model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.language_model.layers.{}.post_attention_layernorm":
                "blk.{}.post_attention_norm",
            "model.language_model.layers.{}.pre_feedforward_layernorm": "blk.{}.ffn_norm",
            "model.language_model.layers.{}.post_feedforward_layernorm": "blk.{}.post_ffw_norm",
            "model.language_model.layers.{}.altup.router_norm": "blk.{}.altup_router_norm",
            "model.language_model.layers.{}.laurel.post_laurel_norm": "blk.{}.laurel_post_norm",
            "model.language_model.layers.{}.post_per_layer_input_norm": "blk.{}.post_norm",
            "model.language_model.per_layer_projection_norm": "per_layer_proj_norm",
            "model.language_model.norm": "output_norm"}, part="text_config", value=1e-6,
            embedding="model.language_model.embed_tokens"),
    Network("qwen3next", {
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
            "model.layers.{}.linear_attn.norm": "blk.{}.ssm_norm",
            **QK, "model.norm": "output_norm"},
            offsets={"": 1.0, "ssm_norm": 0.0}, value=1e-6),
    Network("qwen35", {
            "model.language_model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.language_model.layers.{}.post_attention_layernorm":
                "blk.{}.post_attention_norm",
            "model.language_model.layers.{}.linear_attn.norm": "blk.{}.ssm_norm",
            "model.language_model.norm": "output_norm"},
            offsets={"": 1.0, "ssm_norm": 0.0}, value=1e-6, part="text_config",
            embedding="model.language_model.embed_tokens"),
    Network("plamo3", {
            "model.layers.layers.{}.pre_mixer_norm": "blk.{}.attn_norm",
            "model.layers.layers.{}.post_mixer_norm": "blk.{}.post_attention_norm",
            "model.layers.layers.{}.pre_mlp_norm": "blk.{}.ffn_norm",
            "model.layers.layers.{}.post_mlp_norm": "blk.{}.post_ffw_norm",
            "model.layers.layers.{}.mixer.q_norm": "blk.{}.attn_q_norm",
            "model.layers.layers.{}.mixer.k_norm": "blk.{}.attn_k_norm",
            "model.norm": "output_norm"},
            offsets={"": 1.0, "post_attention_norm": 1 / 5, "post_ffw_norm": 1 / 5**1.5},
            value=1e-6),
    Network("plamo2", {
            "model.layers.layers.{}.pre_mixer_norm": "blk.{}.attn_norm",
            "model.layers.layers.{}.post_mixer_norm": "blk.{}.post_attention_norm",
            "model.layers.layers.{}.pre_mlp_norm": "blk.{}.ffn_norm",
            "model.layers.layers.{}.post_mlp_norm": "blk.{}.post_ffw_norm",
            "model.norm": "output_norm"},
            offsets={"": 1.0, "post_attention_norm": 1 / 5, "post_ffw_norm": 1 / 5**1.5},
            value=1e-6),
    Network("step35", {**LLAMA, **QK}, offsets=ONE),
    Network("glm4moe", {
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
            **QK, "model.norm": "output_norm"}),
    Network("afmoe", {
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
            "model.layers.{}.pre_mlp_layernorm": "blk.{}.ffn_norm",
            "model.layers.{}.post_mlp_layernorm": "blk.{}.post_ffw_norm",
            **QK, "model.norm": "output_norm"}),
    Network("falcon-h1", {
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.layers.{}.pre_ff_layernorm": "blk.{}.ffn_norm",
            "model.layers.{}.mamba.norm": "blk.{}.ssm_norm",
            "model.final_layernorm": "output_norm"}),
    Network("nemotron_h", {
            "backbone.layers.{}.norm": "blk.{}.attn_norm",
            "backbone.layers.{}.mixer.norm": "blk.{}.ssm_norm",
            "backbone.norm_f": "output_norm"}, "layer_norm_epsilon",
            embedding="backbone.embeddings"),
    Network("chatglm", {
            "transformer.encoder.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "transformer.encoder.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
            "transformer.encoder.final_layernorm": "output_norm"}, "layernorm_epsilon",
            embedding="transformer.embedding.word_embeddings"),
    Network("internlm2", {
            "model.layers.{}.attention_norm": "blk.{}.attn_norm",
            "model.layers.{}.ffn_norm": "blk.{}.ffn_norm",
            "model.norm": "output_norm"}, embedding="model.tok_embeddings"),
    Network("mamba", {
            "backbone.layers.{}.norm": "blk.{}.attn_norm",
            "backbone.norm_f": "output_norm"}, "layer_norm_epsilon",
            embedding="backbone.embeddings"),
    Network("mamba2", {
            "backbone.layers.{}.norm": "blk.{}.attn_norm",
            "backbone.layers.{}.mixer.norm": "blk.{}.ssm_norm",
            "backbone.norm_f": "output_norm"}, "layer_norm_epsilon",
            embedding="backbone.embeddings"),
    Network("jamba", {
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.layers.{}.pre_ff_layernorm": "blk.{}.ffn_norm",
            "model.layers.{}.mamba.dt_layernorm": "blk.{}.ssm_dt_norm",
            "model.layers.{}.mamba.b_layernorm": "blk.{}.ssm_b_norm",
            "model.layers.{}.mamba.c_layernorm": "blk.{}.ssm_c_norm",
            "model.final_layernorm": "output_norm"}, value=1e-6),
    Network("lfm2", {
            "model.layers.{}.operator_norm": "blk.{}.attn_norm",
            "model.layers.{}.ffn_norm": "blk.{}.ffn_norm",
            "model.layers.{}.self_attn.q_layernorm": "blk.{}.attn_q_norm",
            "model.layers.{}.self_attn.k_layernorm": "blk.{}.attn_k_norm",
            "model.embedding_norm": "token_embd_norm"}, "norm_eps"),
    Network("openelm", {
            "transformer.layers.{}.attn_norm": "blk.{}.attn_norm",
            "transformer.layers.{}.ffn_norm": "blk.{}.ffn_norm",
            "transformer.layers.{}.attn.q_norm": "blk.{}.attn_q_norm",
            "transformer.layers.{}.attn.k_norm": "blk.{}.attn_k_norm",
            "transformer.norm": "output_norm"}, "", embedding="transformer.token_embeddings"),
    Network("t5", {
            "encoder.block.{}.layer.0.layer_norm": "enc.blk.{}.attn_norm",
            "encoder.block.{}.layer.1.layer_norm": "enc.blk.{}.ffn_norm",
            "encoder.final_layer_norm": "enc.output_norm",
            "decoder.block.{}.layer.0.layer_norm": "dec.blk.{}.attn_norm",
            "decoder.block.{}.layer.1.layer_norm": "dec.blk.{}.cross_attn_norm",
            "decoder.block.{}.layer.2.layer_norm": "dec.blk.{}.ffn_norm",
            "decoder.final_layer_norm": "dec.output_norm"}, "layer_norm_epsilon",
            value=1e-6, embedding="shared"),
    _layer_norm("gpt2", {
            "h.{}.ln_1": "blk.{}.attn_norm", "h.{}.ln_2": "blk.{}.ffn_norm",
            "ln_f": "output_norm"}, "layer_norm_epsilon", bias=True, embedding="wte"),
    _layer_norm("gptneox", {
            "gpt_neox.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "gpt_neox.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
            "gpt_neox.final_layer_norm": "output_norm"}, "layer_norm_eps", bias=True,
            embedding="gpt_neox.embed_in"),
    _layer_norm("bloom", {
            "word_embeddings_layernorm": "token_embd_norm",
            "h.{}.input_layernorm": "blk.{}.attn_norm",
            "h.{}.post_attention_layernorm": "blk.{}.ffn_norm",
            "ln_f": "output_norm"}, "layer_norm_epsilon", bias=True,
            embedding="word_embeddings"),
    _layer_norm("falcon", {
            "transformer.h.{}.ln_attn": "blk.{}.attn_norm_2",
            "transformer.h.{}.ln_mlp": "blk.{}.attn_norm",
            "transformer.ln_f": "output_norm"}, "layer_norm_epsilon", bias=True,
            embedding="transformer.word_embeddings"),
    _layer_norm("mpt", {
            "transformer.blocks.{}.norm_1": "blk.{}.attn_norm",
            "transformer.blocks.{}.norm_2": "blk.{}.ffn_norm",
            "transformer.norm_f": "output_norm"}, "", embedding="transformer.wte"),
    _layer_norm("phi2", {
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.final_layernorm": "output_norm"}, "layer_norm_eps", bias=True),
    _layer_norm("starcoder2", LLAMA, "norm_epsilon", bias=True),
    _layer_norm("orion", LLAMA, "rms_norm_eps", bias=True),
    _layer_norm("stablelm", LLAMA, "layer_norm_eps", bias=True),
    _layer_norm("nemotron", LLAMA, "norm_eps", bias=True, offsets=ONE),
    _layer_norm("cohere2", {
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.norm": "output_norm"}, "layer_norm_eps"),
    _layer_norm("dbrx", {
            "transformer.blocks.{}.norm_attn_norm.norm_1": "blk.{}.attn_norm",
            "transformer.blocks.{}.norm_attn_norm.norm_2": "blk.{}.attn_output_norm",
            "transformer.norm_f": "output_norm"}, "", embedding="transformer.wte"),
    _layer_norm("bert", {
            "bert.embeddings.LayerNorm": "token_embd_norm",
            "bert.encoder.layer.{}.attention.output.LayerNorm": "blk.{}.attn_output_norm",
            "bert.encoder.layer.{}.output.LayerNorm": "blk.{}.layer_output_norm"},
            "layer_norm_eps", bias=True, value=1e-12,
            embedding="bert.embeddings.word_embeddings"),
    _layer_norm("nomic-bert", {
            "emb_ln": "token_embd_norm",
            "encoder.layers.{}.norm1": "blk.{}.attn_output_norm",
            "encoder.layers.{}.norm2": "blk.{}.layer_output_norm"},
            "layer_norm_epsilon", bias=True, value=1e-12,
            embedding="embeddings.word_embeddings"),
)  # fmt: skip

BY_NAME = {network.architecture: network for network in NETWORKS}


def bf16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16s, as float32 (by way of decimals, unlike the package)."""
    wide = values.astype(np.float64)
    step = np.exp2(np.floor(np.log2(np.maximum(np.abs(wide), 1e-30))) - 7)
    return (np.rint(wide / step) * step).astype(np.float32)


ROUND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F32": lambda values: values.astype(np.float32),
    "F16": lambda values: values.astype(np.float16).astype(np.float32),
    "BF16": bf16,
    "F64": lambda values: values,
}


def trained(rng: np.random.Generator, n: int) -> np.ndarray:
    """Gains as training leaves them: lognormal about a mean of their own, some outliers."""
    gains = rng.lognormal(rng.normal(-0.3, 0.5), rng.uniform(0.05, 0.4), n)
    gains[rng.integers(0, n, max(1, n // 40))] *= rng.uniform(4, 15)
    return gains


@dataclass
class Pair:
    """What is on both sides; a test may change either before it is written.

    ``source`` holds values that ``dtype`` can hold, ``tensors`` what the file has.
    """

    network: Network
    metadata: dict[str, object]
    tensors: dict[str, np.ndarray]
    config: dict[str, Any]
    source: dict[str, np.ndarray]
    dtype: str
    preprocessor: dict[str, Any] | None = None
    origin: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> tuple[Path, Path]:
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir()
        for name, content in self.files().items():
            (checkpoint / name).write_bytes(content)
        return self.write_model(folder / "model.gguf"), checkpoint

    def files(self) -> dict[str, bytes]:
        """The checkpoint's, by name."""
        found = {
            "config.json": json.dumps(self.config).encode(),
            "model.safetensors": safetensors({n: (self.dtype, v) for n, v in self.source.items()}),
        }
        if self.preprocessor is not None:
            found["preprocessor_config.json"] = json.dumps(self.preprocessor).encode()
        return found

    def write_model(self, path: Path) -> Path:
        return write_model(path, self.network.architecture, self.metadata, self.tensors)


def pair(network: Network, dtype: str = "BF16", seed: int = 0) -> Pair:
    """A checkpoint of that dtype, and the file that a right conversion makes of it."""
    rng = np.random.default_rng(seed)
    source: dict[str, np.ndarray] = {}
    tensors: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for template, target_template in network.norms.items():
        for i in range(LAYERS if "{}" in template else 1):
            stem, target = template.format(i), target_template.format(i)
            offset = network.offset(target)
            values = ROUND[dtype](trained(rng, _size(target)) - offset)
            source[f"{stem}.weight"] = values
            tensors[f"{target}.weight"] = converted(values, offset, dtype)
            origin[f"{target}.weight"] = f"{stem}.weight"
            if network.bias:
                values = ROUND[dtype](rng.normal(0, 0.1, _size(target)))
                source[f"{stem}.bias"] = values
                tensors[f"{target}.bias"] = values.astype(np.float32)
                origin[f"{target}.bias"] = f"{stem}.bias"
    rows = ROUND[dtype](rng.normal(0, 0.02, (TOKENS, WIDTH)))
    source[f"{network.embedding}.weight"] = rows
    tensors["token_embd.weight"] = rows.astype(np.float16)
    return Pair(network, _metadata(network), tensors, _config(network), source, dtype, None, origin)


def converted(values: np.ndarray, offset: float, dtype: str) -> np.ndarray:
    """A norm as ``modify_tensors`` writes it: torch adds in the tensor's own type for F16."""
    if dtype == "F16" and offset:
        return (values.astype(np.float16) + np.float16(offset)).astype(np.float32)
    return (values.astype(np.float32) + np.float32(offset)).astype(np.float32)


def _size(target: str) -> int:
    return HEAD if target.endswith(("attn_q_norm", "attn_k_norm")) else WIDTH


def _metadata(network: Network) -> dict[str, object]:
    a = network.architecture
    return {
        f"{a}.block_count": LAYERS,
        f"{a}.embedding_length": WIDTH,
        f"{a}.attention.head_count": HEADS,
        network.epsilon_key: network.value,
    }


def _config(network: Network) -> dict[str, Any]:
    own: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    if network.epsilon:
        own[network.epsilon] = network.value
    return {"model_type": network.architecture, **({network.part: own} if network.part else own)}


def safetensors(tensors: Mapping[str, tuple[str, np.ndarray]]) -> bytes:
    """The bytes of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, values) in tensors.items():
        raw = _raw(dtype, values)
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": place}
        data += raw
    return with_header(header, data)


def with_header(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with a header of one's own making."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _raw(dtype: str, values: np.ndarray) -> bytes:
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


@contextmanager
def subject(model: Path, checkpoint: Path | str | None) -> Iterator[Subject]:
    """What rules look at."""
    with ExitStack() as stack:
        opened = stack.enter_context(open_source(checkpoint)) if checkpoint is not None else None
        yield open_subject(stack.enter_context(GGUFFile(model)), opened)


def check(
    folder: Path, made: Pair, rules: Iterable[Rule] = RULES, *, with_source: bool = True
) -> tuple[list[Finding], dict[str, str]]:
    """What the rules say of a pair, and why some were not run."""
    model, checkpoint = made.write(folder)
    findings: list[Finding] = []
    not_run: dict[str, str] = {}
    with subject(model, checkpoint if with_source else None) as looked_at:
        for rule in rules:
            try:
                findings += rule.findings(looked_at)
            except NotApplicableError as error:
                not_run[rule.id] = str(error)
    return findings, not_run
