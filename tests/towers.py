"""Tiny image encoders built by Transformers, and the mmproj files of a right conversion.

What a converter writes was read off llama.cpp's ``conversion/gemma.py`` and ``llava.py``;
names come from gguf-py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf.tensor_mapping import get_tensor_name_map

from ggufnorm.core.pixels import Constants
from ggufnorm.engines.pretrained import quiet
from tests.framework_models import Tensors, trained_like
from tests.vision import SIGLIP

WIDTH, FEED, HEADS, LAYERS, SIZE, PATCH = 64, 96, 4, 3, 32, 8

SHAPE = {
    "hidden_size": WIDTH, "intermediate_size": FEED, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "image_size": SIZE, "patch_size": PATCH,
}  # fmt: skip
_TEXT = {
    "hidden_size": WIDTH, "intermediate_size": FEED, "num_hidden_layers": 1, "vocab_size": 64,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": WIDTH // HEADS,
}  # fmt: skip


def _gemma3(**options: Any) -> Any:
    vision = transformers.SiglipVisionConfig(
        **options, vision_use_head=False, hidden_act="gelu_pytorch_tanh"
    )
    tokens = (SIZE // PATCH // 2) ** 2
    return transformers.Gemma3Config(
        text_config=_TEXT, vision_config=vision, mm_tokens_per_image=tokens, image_token_index=5
    )


@dataclass(frozen=True)
class Tower:
    """One image encoder: how Transformers builds it, and what its converter does.

    Attributes:
        projector: ``clip.projector_type``.
        gelu: ``clip.use_gelu``; without it llama.cpp runs the quick one.
        prefix: put before the checkpoint's names, as gguf-py knows them.
    """

    name: str
    config: Callable[..., Any]
    model: type
    projector: str
    options: Mapping[str, Any] = field(default_factory=dict)
    epsilon: float = 1e-6
    gelu: bool = True
    prefix: str = "vision_tower.vision_model."


_TANH = {"hidden_act": "gelu_pytorch_tanh"}
TOWERS = {
    t.name: t
    for t in (
        Tower("siglip", transformers.SiglipVisionConfig, transformers.SiglipVisionModel,
              "idefics3", {**_TANH, "vision_use_head": False}),
        Tower("gemma3", _gemma3, transformers.Gemma3ForConditionalGeneration, "gemma3"),
        Tower("clip", transformers.CLIPVisionConfig, transformers.CLIPVisionModel, "mlp",
              {"hidden_act": "quick_gelu"}, epsilon=1e-5, gelu=False),
    )
}  # fmt: skip
VIT = Tower("vit", transformers.ViTConfig, transformers.ViTForImageClassification, "none")


def build(tower: Tower, seed: int = 0) -> Any:
    """The model with trained-like values; see :func:`tests.framework_models.trained_like`."""
    torch.manual_seed(seed)
    config = tower.config(**SHAPE, **tower.options, layer_norm_eps=tower.epsilon)
    config._attn_implementation = "eager"
    model = tower.model(config).eval()
    rng = np.random.default_rng([seed, *tower.name.encode()])
    with torch.no_grad():
        for name, p in model.named_parameters():
            offset = 1.0 if "soft_emb_norm" in name else 0.0
            p.copy_(torch.from_numpy(trained_like(name, tuple(p.shape), rng, offset)))
    return model


def converted(model: Any, tower: Tower) -> Tensors:
    """The tensors of the mmproj file, named and changed as the converter does."""
    names = get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, LAYERS)
    found: Tensors = {}
    for source, p in model.state_dict().items():
        if "language_model" in source or "lm_head" in source:
            continue
        plain = source.removeprefix("model.").removeprefix("vision_tower.")
        plain = plain.replace("_projection_weight", "_projection.weight")
        for stem in (f"{tower.prefix}{plain}", plain):
            name = names.get_name(stem, try_suffixes=(".weight", ".bias"))
            if name is not None:
                values = p.detach().numpy().astype(np.float32)
                found[name] = values + np.float32("soft_emb_norm" in name)
    return found | _projector(tower)


def _projector(tower: Tower) -> Tensors:
    """What stands behind a tower that has no projector of its own."""
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {}
    if tower.projector == "idefics3":
        shapes = {"mm.model.fc.weight": (WIDTH, 4 * WIDTH)}
    if tower.projector == "mlp":
        for part in ("mm.0", "mm.2"):
            shapes |= {f"{part}.weight": (WIDTH, WIDTH), f"{part}.bias": (WIDTH,)}
    return {n: trained_like(n, shape, rng, 0.0) for n, shape in shapes.items()}


def write(
    path: Path,
    tower: Tower,
    tensors: Tensors,
    *,
    constants: Constants = SIGLIP,
    epsilon: float | None = None,
    silu: bool = False,
    size: int = SIZE,
    dtype: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """An mmproj file of such tensors; matrices of the blocks in ``dtype``."""
    w = gguf.GGUFWriter(path, "clip")
    w.add_bool(gguf.Keys.Clip.HAS_VISION_ENCODER, True)
    w.add_clip_projector_type(tower.projector)
    w.add_vision_projection_dim(WIDTH)
    w.add_vision_image_size(size)
    w.add_vision_patch_size(PATCH)
    w.add_vision_embedding_length(WIDTH)
    w.add_vision_feed_forward_length(FEED)
    w.add_vision_block_count(LAYERS)
    w.add_vision_head_count(HEADS)
    w.add_vision_attention_layernorm_eps(tower.epsilon if epsilon is None else epsilon)
    w.add_vision_use_gelu(tower.gelu and not silu)
    w.add_vision_use_silu(silu)
    w.add_vision_projector_scale_factor(2)
    w.add_vision_image_mean(list(constants[0]))
    w.add_vision_image_std(list(constants[1]))
    for name, values in tensors.items():
        in_block = values.ndim == 2 and name.startswith("v.blk.")
        kind = dtype if in_block else gguf.GGMLQuantizationType.F32
        w.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


class _Plain(torch.nn.Module):
    """A model that takes pixels and gives one array, as an exporter wants it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, pixel_values: Any) -> Any:
        encode = getattr(self.inner, "get_image_features", self.inner)
        found = encode(pixel_values=pixel_values)
        kinds = ("logits", "pooler_output", "last_hidden_state")
        return next(value for k in kinds if (value := getattr(found, k, None)) is not None)


def export(model: Any, path: Path) -> Path:
    """The encoder as ONNX, by torch's exporter."""
    with quiet():
        torch.onnx.export(
            _Plain(model).eval(), (torch.zeros(1, 3, SIZE, SIZE),), str(path), verbose=False,
            input_names=["pixel_values"], output_names=["features"],
        )  # fmt: skip
    return path
