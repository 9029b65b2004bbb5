"""Pictures, image processors' folders and tiny image encoders (mmproj) for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from PIL import Image

from ggufnorm.core.pixels import KNOWN, Constants

SIGLIP, CLIP, IMAGENET = KNOWN["SigLIP"], KNOWN["CLIP"], KNOWN["ImageNet"]

_WIDTH, _HEADS, _PATCH = 16, 2, 8


def levels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture of smooth colours and edges, as photographs have, ``(height, width, 3)``."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 7), max(2, width // 7), 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    picture = np.array(smooth)
    picture[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 256, 3)
    return picture


def write_picture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    Image.fromarray(levels(height, width, seed)).save(path)
    return path


def write_processor(folder: Path, constants: Constants = SIGLIP, **entries: Any) -> Path:
    """A folder with ``preprocessor_config.json``; by default that of a small Gemma 3."""
    folder.mkdir(parents=True, exist_ok=True)
    mean, std = constants
    config = {
        "image_processor_type": "Gemma3ImageProcessor",
        "image_mean": mean,
        "image_std": std,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "size": {"height": 32, "width": 32},
    } | entries
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_mmproj(
    path: Path,
    constants: tuple[Any, Any] = SIGLIP,
    projector: str = "gemma3",
    image_size: int = 32,
) -> Path:
    """An image encoder of one block with random weights.

    Args:
        path: where.
        constants: its ``clip.vision.image_mean`` and ``image_std``.
        projector: ``gemma3``, ``mlp`` (LLaVA), ``qwen2vl_merger`` or ``idefics3``.
        image_size: its ``clip.vision.image_size``.
    """
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool(gguf.Keys.Clip.HAS_VISION_ENCODER, True)
    writer.add_clip_projector_type(projector)
    writer.add_vision_projection_dim(_WIDTH)
    writer.add_vision_image_size(image_size)
    writer.add_vision_patch_size(_PATCH)
    writer.add_vision_embedding_length(_WIDTH)
    writer.add_vision_feed_forward_length(2 * _WIDTH)
    writer.add_vision_block_count(1)
    writer.add_vision_head_count(_HEADS)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_use_gelu(True)
    writer.add_vision_projector_scale_factor(2)
    mean, std = constants
    writer.add_vision_image_mean([float(m) for m in mean])
    writer.add_vision_image_std([float(s) for s in std])

    def matrix(name: str, *shape: int) -> None:
        writer.add_tensor(name, rng.normal(0, 0.1, shape).astype(np.float32))

    def linear(name: str, rows: int, columns: int) -> None:
        matrix(f"{name}.weight", rows, columns)
        matrix(f"{name}.bias", rows)

    matrix("v.patch_embd.weight", _WIDTH, 3, _PATCH, _PATCH)
    if projector == "qwen2vl_merger":
        matrix("v.patch_embd.weight.1", _WIDTH, 3, _PATCH, _PATCH)
    else:
        matrix("v.position_embd.weight", (image_size // _PATCH) ** 2, _WIDTH)
    for name in ("v.post_ln", "v.blk.0.ln1", "v.blk.0.ln2"):
        matrix(f"{name}.weight", _WIDTH)
        matrix(f"{name}.bias", _WIDTH)
    for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
        linear(f"v.blk.0.{part}", _WIDTH, _WIDTH)
    linear("v.blk.0.ffn_up", 2 * _WIDTH, _WIDTH)
    linear("v.blk.0.ffn_down", _WIDTH, 2 * _WIDTH)
    if projector == "gemma3":
        matrix("mm.input_projection.weight", _WIDTH, _WIDTH)
        matrix("mm.soft_emb_norm.weight", _WIDTH)
    elif projector == "idefics3":
        matrix("mm.model.fc.weight", _WIDTH, 4 * _WIDTH)
    else:
        merged = 4 * _WIDTH if projector == "qwen2vl_merger" else _WIDTH
        linear("mm.0", merged, merged)
        linear("mm.2", _WIDTH, merged)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
