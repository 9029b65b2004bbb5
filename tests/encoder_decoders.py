"""Tiny models of the T5 family built by Transformers, and the GGUF files of right conversions.

What the converter does was read off llama.cpp's ``conversion/t5.py``; names come from gguf-py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf.tensor_mapping import get_tensor_name_map

from tests.framework_models import WORDS, Tensors, trained_like
from tests.models import add_vocabulary

WIDTH, FEED, HEADS, HEAD, CONTEXT = 64, 96, 4, 16, 256
LAYERS, DECODER_LAYERS = 3, 2
START = 0


@dataclass(frozen=True)
class Member:
    """One kind of network in the family."""

    config: type
    model: type
    options: Mapping[str, Any] = field(default_factory=dict)
    encoder_only: bool = False


_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILY = {
    "t5": Member(transformers.T5Config, transformers.T5ForConditionalGeneration),
    "flan-t5": Member(transformers.T5Config, transformers.T5ForConditionalGeneration, _GATED),
    "mt5": Member(transformers.MT5Config, transformers.MT5ForConditionalGeneration, _GATED),
    "umt5": Member(transformers.UMT5Config, transformers.UMT5ForConditionalGeneration, _GATED),
    "t5encoder": Member(
        transformers.T5Config, transformers.T5EncoderModel, _GATED, encoder_only=True
    ),
    "umt5encoder": Member(
        transformers.UMT5Config, transformers.UMT5EncoderModel, _GATED, encoder_only=True
    ),
}
"""By name: T5 1.0 has ReLU and ties its head, UMT5 has positions in every layer."""


def build(name: str, seed: int = 0) -> Any:
    """The model with trained-like values."""
    member = FAMILY[name]
    torch.manual_seed(seed)
    config = member.config(
        d_model=WIDTH, d_kv=HEAD, d_ff=FEED, num_heads=HEADS, num_layers=LAYERS,
        num_decoder_layers=DECODER_LAYERS, vocab_size=WORDS, n_positions=CONTEXT,
        relative_attention_num_buckets=32, decoder_start_token_id=START, **member.options,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = member.model(config).eval()
    if "tie_word_embeddings" in member.options and hasattr(model, "lm_head"):
        # Transformers ties the head whatever a config says, unless a checkpoint has two.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    rng = np.random.default_rng([seed, *name.encode()])
    with torch.no_grad():
        for at, p in model.named_parameters():
            values = trained_like(at, tuple(p.shape), rng, 0.0)
            # T5 does not divide by the root of a head's width: its queries are smaller.
            small = at.endswith((".q.weight", "shared.weight"))
            p.copy_(torch.from_numpy(values * (0.3 if small else 1.0)))
    return model


def converted(model: Any) -> Tensors:
    """The tensors of the GGUF file."""
    encoder_only = type(model).__name__.endswith("EncoderModel")
    arch = gguf.MODEL_ARCH.T5ENCODER if encoder_only else gguf.MODEL_ARCH.T5
    names = get_tensor_name_map(arch, max(LAYERS, DECODER_LAYERS))
    found: Tensors = {}
    for source, p in model.state_dict().items():
        name = names.get_name(source, try_suffixes=(".weight",))
        if name is None or source.endswith("embed_tokens.weight"):
            continue
        if source == "lm_head.weight" and p.data_ptr() == model.shared.weight.data_ptr():
            continue
        found[name] = p.detach().numpy().astype(np.float32)
    return found


def write(
    path: Path,
    tensors: Tensors,
    *,
    keys: Mapping[str, Any] = {},
    dtype: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """A GGUF file of such tensors.

    Args:
        path: to write.
        tensors: by name; an encoder alone where none begins with ``dec.``.
        keys: that are written instead of the usual ones; None leaves one out.
        dtype: of the matrices.
    """
    arch = "t5" if any(n.startswith("dec.") for n in tensors) else "t5encoder"
    w = gguf.GGUFWriter(path, arch)
    usual: dict[str, Any] = {
        "context_length": CONTEXT, "embedding_length": WIDTH, "feed_forward_length": FEED,
        "block_count": LAYERS, "decoder_block_count": DECODER_LAYERS,
        "attention.head_count": HEADS, "attention.key_length": HEAD,
        "attention.value_length": HEAD, "attention.layer_norm_epsilon": 1e-6,
        "attention.layer_norm_rms_epsilon": 1e-6, "attention.relative_buckets_count": 32,
        "decoder_start_token_id": START,
    }  # fmt: skip
    if arch == "t5encoder":
        del usual["decoder_block_count"], usual["decoder_start_token_id"]
    for key, value in {**usual, **keys}.items():
        if value is None:
            continue
        add = {bool: w.add_bool, float: w.add_float32, int: w.add_uint32}[type(value)]
        add(f"{arch}.{key}", value)
    add_vocabulary(w, WORDS)
    for name, values in tensors.items():
        plain = values.ndim == 1 or "rel_b" in name
        kind = gguf.GGMLQuantizationType.F32 if plain else dtype
        w.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
