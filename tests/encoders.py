"""Checkpoints of image and audio encoders with the mmproj files that a right conversion makes.

Names and orders were read off transformers' classes and llama.cpp's converter
(``conversion/gemma.py``, ``llava.py``, ``qwenvl.py``, ``internvl.py``, ``qwen2audio`` …).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.pairs import Array, Entry, Make, Network, one, permuted

WIDTH, FEED, HEADS, PATCH, SIZE, TEXT, MELS = 64, 96, 4, 8, 32, 48, 16


def _linear(source: str, target: str, rows: int, columns: int) -> list[Entry]:
    return [
        one(f"{source}.weight", f"{target}.weight", rows, columns),
        one(f"{source}.bias", f"{target}.bias", rows),
    ]


def _norm(source: str, target: str, width: int = WIDTH) -> list[Entry]:
    return [one(f"{source}.weight", f"{target}.weight", width),
            one(f"{source}.bias", f"{target}.bias", width)]  # fmt: skip


def _blocks(
    stem: str,
    *,
    first: str = "layer_norm1",
    second: str = "layer_norm2",
    ffn: str = "mlp.",
    letter: str = "v",
) -> list[Entry]:
    """Of CLIP, SigLIP and Whisper."""
    target = f"{letter}.blk.{{}}."
    found = [*_norm(f"{stem}{first}", f"{target}ln1"), *_norm(f"{stem}{second}", f"{target}ln2")]
    for name, to in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"),
                     ("out_proj", "attn_out")):  # fmt: skip
        found += _linear(f"{stem}self_attn.{name}", f"{target}{to}", WIDTH, WIDTH)
    found += _linear(f"{stem}{ffn}fc1", f"{target}ffn_up", FEED, WIDTH)
    return found + _linear(f"{stem}{ffn}fc2", f"{target}ffn_down", WIDTH, FEED)


def _part(i: int) -> Make:
    return lambda w: np.split(w, 3)[i]


def _merged(stem: str) -> list[Entry]:
    """Q, K and V in one tensor of the source, and three of the file."""
    names = ("attn_q", "attn_k", "attn_v")
    return [
        Entry(f"{stem}.{x}", shape,
              tuple((f"v.blk.{{}}.{n}.{x}", _part(i)) for i, n in enumerate(names)))
        for x, shape in (("weight", (3 * WIDTH, WIDTH)), ("bias", (3 * WIDTH,)))
    ]  # fmt: skip


def _moment(i: int) -> Make:
    return lambda w: w[:, :, i]


_VISION = {
    "hidden_size": WIDTH, "intermediate_size": FEED, "num_hidden_layers": 4, "image_size": SIZE,
    "num_attention_heads": HEADS, "patch_size": PATCH, "layer_norm_eps": 1e-6,
}  # fmt: skip
_TEXT = {"text_config": {"hidden_size": TEXT}}
_KEYS = {
    "has_vision_encoder": True, "vision.embedding_length": WIDTH,
    "vision.feed_forward_length": FEED, "vision.block_count": 4, "vision.image_size": SIZE,
    "vision.patch_size": PATCH, "vision.attention.head_count": HEADS,
    "vision.projection_dim": TEXT, "vision.attention.layer_norm_epsilon": 1e-6,
    "vision.image_mean": [0.5, 0.5, 0.5], "vision.image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
_SIGLIP = "vision_tower.vision_model."
_PIXTRAL = "vision_tower.transformer.layers.{}."
_QWEN = "visual.blocks.{}."
_INTERN = "vision_model.encoder.layers.{}."
_N = (SIZE // PATCH) ** 2


def _embeddings(stem: str, positions: int = _N) -> list[Entry]:
    return [
        one(f"{stem}patch_embedding.weight", "v.patch_embd.weight", WIDTH, 3, PATCH, PATCH),
        one(f"{stem}patch_embedding.bias", "v.patch_embd.bias", WIDTH),
        one(f"{stem}position_embedding.weight", "v.position_embd.weight", positions, WIDTH),
    ]


def _config(model_type: str, **vision: Any) -> dict[str, Any]:
    return {"model_type": model_type, **_TEXT, "vision_config": {**_VISION, **vision}}


def _network(name: str, entries: tuple[Entry, ...], config: dict[str, Any],
             **keys: Any) -> Network:  # fmt: skip
    more = {k.replace("__", "."): v for k, v in keys.items()}
    found = {**_KEYS, "projector_type": name, **more}
    if "image_size" not in config["vision_config"]:  # pictures of any size
        del found["vision.image_size"]
    return Network(f"clip/{name}", entries, config, found)


_AUDIO = {
    "has_audio_encoder": True, "audio.embedding_length": WIDTH,
    "audio.feed_forward_length": FEED, "audio.block_count": 4, "audio.num_mel_bins": MELS,
    "audio.attention.head_count": HEADS, "audio.projection_dim": TEXT,
    "audio.attention.layer_norm_epsilon": 1e-5, "projector_type": "qwen2a",
}  # fmt: skip

ENCODERS: dict[str, Network] = {
    n.name.partition("/")[2]: n
    for n in (
        _network(
            "gemma3",
            (*_embeddings(_SIGLIP + "embeddings."), *_blocks(_SIGLIP + "encoder.layers.{}."),
             *_norm(_SIGLIP + "post_layernorm", "v.post_ln"),
             one("multi_modal_projector.mm_input_projection_weight",
                 "mm.input_projection.weight", WIDTH, TEXT),
             one("multi_modal_projector.mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight",
                 WIDTH, offset=1.0)),
            _config("gemma3", hidden_act="gelu_pytorch_tanh") | {"mm_tokens_per_image": 4},
            use_gelu=True, vision__projector__scale_factor=2,
        ),
        _network(
            "idefics3",
            (*_embeddings("model.vision_model.embeddings."),
             *_blocks("model.vision_model.encoder.layers.{}."),
             *_norm("model.vision_model.post_layernorm", "v.post_ln"),
             one("model.connector.modality_projection.proj.weight", "mm.model.fc.weight",
                 TEXT, 4 * WIDTH)),
            _config("idefics3", hidden_act="gelu_pytorch_tanh") | {"scale_factor": 2},
            use_gelu=True, vision__projector__scale_factor=2,
        ),
        _network(
            "pixtral",
            (one("vision_tower.patch_conv.weight", "v.patch_embd.weight", WIDTH, 3, PATCH, PATCH),
             one("vision_tower.ln_pre.weight", "v.pre_ln.weight", WIDTH),
             one(_PIXTRAL + "attention_norm.weight", "v.blk.{}.ln1.weight", WIDTH),
             one(_PIXTRAL + "ffn_norm.weight", "v.blk.{}.ln2.weight", WIDTH),
             one(_PIXTRAL + "attention.q_proj.weight", "v.blk.{}.attn_q.weight", WIDTH, WIDTH,
                 make=permuted(HEADS)),
             one(_PIXTRAL + "attention.k_proj.weight", "v.blk.{}.attn_k.weight", WIDTH, WIDTH,
                 make=permuted(HEADS)),
             one(_PIXTRAL + "attention.v_proj.weight", "v.blk.{}.attn_v.weight", WIDTH, WIDTH),
             one(_PIXTRAL + "attention.o_proj.weight", "v.blk.{}.attn_out.weight", WIDTH, WIDTH),
             one(_PIXTRAL + "feed_forward.gate_proj.weight", "v.blk.{}.ffn_gate.weight",
                 FEED, WIDTH),
             one(_PIXTRAL + "feed_forward.up_proj.weight", "v.blk.{}.ffn_up.weight", FEED, WIDTH),
             one(_PIXTRAL + "feed_forward.down_proj.weight", "v.blk.{}.ffn_down.weight",
                 WIDTH, FEED),
             *_linear("multi_modal_projector.linear_1", "mm.1", TEXT, WIDTH),
             *_linear("multi_modal_projector.linear_2", "mm.2", TEXT, TEXT)),
            _config("mistral3", hidden_act="silu", rms_norm_eps=1e-6), use_silu=True,
        ),
        _network(
            "qwen2vl_merger",
            (Entry("visual.patch_embed.proj.weight", (WIDTH, 3, 2, PATCH, PATCH),
                   (("v.patch_embd.weight", _moment(0)), ("v.patch_embd.weight.1", _moment(1)))),
             *_norm(_QWEN + "norm1", "v.blk.{}.ln1"), *_norm(_QWEN + "norm2", "v.blk.{}.ln2"),
             *_merged(_QWEN + "attn.qkv"),
             *_linear(_QWEN + "attn.proj", "v.blk.{}.attn_out", WIDTH, WIDTH),
             *_linear(_QWEN + "mlp.fc1", "v.blk.{}.ffn_up", FEED, WIDTH),
             *_linear(_QWEN + "mlp.fc2", "v.blk.{}.ffn_down", WIDTH, FEED),
             *_norm("visual.merger.ln_q", "v.post_ln"),
             *_linear("visual.merger.mlp.0", "mm.0", 4 * WIDTH, 4 * WIDTH),
             *_linear("visual.merger.mlp.2", "mm.2", TEXT, 4 * WIDTH)),
            {"model_type": "qwen2_vl", "hidden_size": TEXT,
             "vision_config": {"embed_dim": WIDTH, "hidden_size": TEXT, "depth": 4,
                               "num_heads": HEADS, "patch_size": PATCH, "mlp_ratio": 1.5,
                               "spatial_merge_size": 2}},
        ),
        _network(
            "internvl",
            (*_embeddings("vision_model.embeddings.", _N + 1)[:2],
             *_norm(_INTERN + "norm1", "v.blk.{}.ln1"), *_norm(_INTERN + "norm2", "v.blk.{}.ln2"),
             *_merged(_INTERN + "attn.qkv"),
             *_linear(_INTERN + "attn.proj", "v.blk.{}.attn_out", WIDTH, WIDTH),
             *_linear(_INTERN + "mlp.fc1", "v.blk.{}.ffn_up", FEED, WIDTH),
             *_linear(_INTERN + "mlp.fc2", "v.blk.{}.ffn_down", WIDTH, FEED),
             *_norm("mlp1.0", "mm.model.mlp.0", 4 * WIDTH),
             *_linear("mlp1.1", "mm.model.mlp.1", TEXT, 4 * WIDTH),
             *_linear("mlp1.3", "mm.model.mlp.3", TEXT, TEXT)),
            _config("internvl_chat", hidden_act="gelu"), use_gelu=True,
        ),
        Network(
            "clip/qwen2a",
            (one("audio_tower.conv1.weight", "a.conv1d.1.weight", WIDTH, MELS, 3),
             one("audio_tower.conv2.weight", "a.conv1d.2.weight", WIDTH, WIDTH, 3),
             one("audio_tower.embed_positions.weight", "a.position_embd.weight", 40, WIDTH),
             *_blocks("audio_tower.layers.{}.", first="self_attn_layer_norm",
                      second="final_layer_norm", ffn="", letter="a"),
             *_norm("audio_tower.layer_norm", "a.post_ln"),
             *_linear("multi_modal_projector.linear", "mm.a.fc", TEXT, WIDTH)),
            {"model_type": "qwen2_audio", **_TEXT,
             "audio_config": {"d_model": WIDTH, "encoder_ffn_dim": FEED, "encoder_layers": 4,
                              "encoder_attention_heads": HEADS, "num_mel_bins": MELS,
                              "layer_norm_eps": 1e-5}},
            _AUDIO,
        ),
    )
}  # fmt: skip


def turned_over(w: Array) -> Array:
    """Colours in the order blue, green, red."""
    return np.ascontiguousarray(w[:, ::-1])
