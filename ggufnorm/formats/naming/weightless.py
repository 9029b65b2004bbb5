"""Norms that have neither weight nor bias, and so leave no tensor in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ggufnorm.formats.gguf_constants import Keys
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming.encoders import projector_type
from ggufnorm.formats.naming.names import NormName
from ggufnorm.formats.naming.rules import Rule, fixed, keyed

_RMS: str = Keys.Attention.LAYERNORM_RMS_EPS
_LAYER: str = Keys.Attention.LAYERNORM_EPS
_MODELS = "src/models/"
_DELTA = "src/models/models.h: build_gdn_l2_norm"

Where = Callable[[ModelFile], Iterator[int | None]]
"""The layers in which a norm stands; None for outside the blocks."""


@dataclass(frozen=True)
class Weightless:
    """A norm without tensors.

    Attributes:
        role: what it normalizes.
        where: in which layers.
        rule: its kind and epsilon.
        tensor: where a file may have a weight for it all the same, the weight's name.
    """

    role: str
    where: Where
    rule: Rule
    tensor: str | None = None


def _once(_file: ModelFile) -> Iterator[int | None]:
    yield None


def _every_layer(file: ModelFile) -> Iterator[int | None]:
    yield from range(_blocks(file))


def _layers_with(template: str) -> Where:
    """Layers in which the file has a tensor of that name; ``{}`` is the layer."""

    def where(file: ModelFile) -> Iterator[int | None]:
        for layer in _every_layer(file):
            if template.format(layer) in file.tensors:
                yield layer

    return where


def _rope_layers(file: ModelFile) -> Iterator[int | None]:
    # llama4.cpp: use_rope, and use_kq_norm, which the model of 128 experts has not.
    if _count(file, Keys.LLM.EXPERT_COUNT) == 128:
        return
    window = file.metadata.integer(Keys.Attention.SLIDING_WINDOW.format(arch=file.architecture))
    layers = _blocks(file)
    step = layers if window == 0 else 4
    yield from (i for i in range(layers) if (i + 1) % step)


def _layers_with_keys(file: ModelFile) -> Iterator[int | None]:
    # gemma3n.cpp, gemma4.cpp: later layers read the cache of earlier ones (has_kv).
    shared = _count(file, Keys.Attention.SHARED_KV_LAYERS)
    layers = _blocks(file)
    own = 20 if file.architecture == "gemma3n" else layers - shared
    yield from range(min(layers, own))


def _every_encoder_layer(file: ModelFile) -> Iterator[int | None]:
    yield from range(_blocks(file, Keys.ClipVision.BLOCK_COUNT))


def _with_output_fn(file: ModelFile) -> Iterator[int | None]:
    if "output_hc_fn.weight" in file.tensors:
        yield None


def _rms(source: str, *where: tuple[str, Where]) -> tuple[Weightless, ...]:
    rule = keyed("rms", _MODELS + source, _RMS)
    return tuple(Weightless(role, layers, rule) for role, layers in where)


def _delta_net(
    source: str, convolution: str, epsilon: float | None = None
) -> tuple[Weightless, ...]:
    # An L2 norm in effect: an RMSNorm with epsilon / n, divided by the root of n.
    source = f"{_MODELS}{source}, {_DELTA}"
    rule = keyed("l2", source, _RMS) if epsilon is None else fixed("l2", source, epsilon)
    layers = _layers_with(f"blk.{{}}.{convolution}.weight")
    return tuple(Weightless(role, layers, rule) for role in ("q", "k"))


def _hyper_connections(source: str) -> tuple[Weightless, ...]:
    return _rms(
        source,
        ("hc_attn", _layers_with("blk.{}.hc_attn_fn.weight")),
        ("hc_ffn", _layers_with("blk.{}.hc_ffn_fn.weight")),
        ("output_hc", _with_output_fn),
    )


_LANGUAGE: dict[str, tuple[Weightless, ...]] = {
    "olmo": tuple(
        Weightless(role, where, keyed("layer", _MODELS + "olmo.cpp", _LAYER))
        for role, where in (("attn", _every_layer), ("ffn", _every_layer), ("output", _once))
    ),
    "llama4": _rms("llama4.cpp", ("q", _rope_layers), ("k", _rope_layers)),
    "gemma3n": _rms("gemma3n.cpp", ("v", _layers_with_keys)),
    "gemma4": _rms(
        "gemma4.cpp",
        ("v", _layers_with_keys),
        ("ffn_router", _layers_with("blk.{}.ffn_gate_inp.weight")),
    ),
    "talkie": _rms(
        "talkie.cpp",
        ("token_embd", _once),
        ("attn", _every_layer),
        ("k", _every_layer),
        ("ffn", _every_layer),
        ("output", _once),
    ),
    "muse-glimmer": _rms("muse-glimmer.cpp", ("token_embd", _once)),
    "rwkv7": (Weightless("k", _every_layer, fixed("l2", _MODELS + "rwkv7-base.cpp", 1e-12)),),
    "arwkv7": (Weightless("k", _every_layer, fixed("l2", _MODELS + "rwkv7-base.cpp", 1e-12)),),
    "qwen3next": _delta_net("qwen3next.cpp", "ssm_conv1d"),
    "qwen35": _delta_net("qwen35.cpp", "ssm_conv1d"),
    "qwen35moe": _delta_net("qwen35moe.cpp", "ssm_conv1d"),
    "qwen4exp": _delta_net("qwen4exp.cpp", "ssm_conv1d"),
    "kimi-linear": _delta_net("kimi-linear.cpp", "ssm_conv1d_q"),
    "kimi-k3": _delta_net("kimi-k3.cpp", "ssm_conv1d_q"),
    "bailingmoe3": _delta_net("bailingmoe3.cpp", "ssm_conv1d_q"),
    "glm5-next": (
        *_delta_net("glm5-next.cpp", "ssm_conv1d_q", 1e-6),
        *_hyper_connections("glm5-next.cpp"),
    ),
    "deepseek4": (
        *_rms("deepseek4.cpp", ("q", _every_layer)),
        *_hyper_connections("deepseek4.cpp"),
    ),
    "hy_v4": _hyper_connections("hy-v4.cpp"),
}

_VISION: str = Keys.ClipVision.Attention.LAYERNORM_EPS
_MTMD = "tools/mtmd/models/"

_ENCODERS: dict[str, tuple[Weightless, ...]] = {
    "gemma4v": (
        Weightless("v.v", _every_encoder_layer, keyed("rms", "tools/mtmd/clip.cpp", _VISION)),
        Weightless("mm.input", _once, keyed("rms", _MTMD + "gemma4v.cpp", _VISION)),
    ),
    "gemma4uv": (Weightless("mm.input", _once, keyed("rms", _MTMD + "gemma4uv.cpp", _VISION)),),
    "gemma4ua": (Weightless("mm.a.input", _once, fixed("rms", "tools/mtmd/clip.cpp", 1e-6)),),
    "gemma4a": (
        Weightless(
            "mm.a.soft_emb",
            _once,
            fixed("rms", _MTMD + "gemma4a.cpp", 1e-6),
            tensor="mm.a.soft_emb_norm.weight",
        ),
    ),
    "gemma3nv": (
        Weightless(
            "mm.post",
            _once,
            fixed("rms", _MTMD + "mobilenetv5.cpp", 1e-6),
            tensor="mm.post_norm.weight",
        ),
    ),
}


def weightless_norms(file: ModelFile) -> Iterator[tuple[NormName, Rule]]:
    """The norms without tensors that llama.cpp's graph of this architecture has."""
    if file.architecture == "clip":
        projectors = {projector_type(file.metadata, role) for role in ("v.", "a.")}
        norms = [n for p in sorted(projectors) for n in _ENCODERS.get(p, ())]
    else:
        norms = list(_LANGUAGE.get(file.architecture, ()))
    for norm in norms:
        if norm.tensor in file.tensors:
            continue
        for layer in norm.where(file):
            yield NormName(layer, norm.role), norm.rule


def _blocks(file: ModelFile, key: str = Keys.LLM.BLOCK_COUNT) -> int:
    # A block has a tensor at least: more blocks than tensors are not to be believed.
    return min(_count(file, key), len(file.tensors))


def _count(file: ModelFile, key: str) -> int:
    return file.metadata.integer(key.format(arch=file.architecture)) or 0
