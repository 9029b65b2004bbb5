"""Kind and epsilon of the norms of vision and audio encoders (``mmproj`` files).

One key, ``clip.vision.attention.layer_norm_epsilon`` (``clip.audio…``,
``clip.gen.audio…``), serves both formulas; which one runs, and where a literal overrides
the key, is decided by the projector type in llama.cpp's ``tools/mtmd``.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from ggufnorm.core.model import NormKind
from ggufnorm.formats.gguf import Metadata
from ggufnorm.formats.gguf_constants import Keys, VisionProjectorType
from ggufnorm.formats.naming.names import NormName
from ggufnorm.formats.naming.rules import NormParameters, Rule, apply, fixed, from_key

_LEGACY = "mlp"
"""The projector of a file that names none (``clip_model`` in tools/mtmd/clip-model.h)."""

# Encoders that build RMSNorm (NORM_TYPE_RMS in tools/mtmd/models/*.cpp).
_RMS_NORM = frozenset(
    {
        "deepseek4v", "deepseekocr2", "dots3note_a", "dots3note_v", "dots_ocr", "exaone4_5",
        "gemma3nv", "gemma4a", "gemma4ua", "gemma4uv", "gemma4v", "glm4v", "glm5v",
        "lightonocr", "mimovl", "pixtral", "qwen2.5vl_merger",
    }
)  # fmt: skip

# Those that build LayerNorm: what else gguf-py knows, and what it does not (clip-impl.h).
_LAYER_NORM = (
    {v for k, v in vars(VisionProjectorType).items() if k.isupper()}
    | {
        "adapter", "granite4_vision", "ldp", "ldpv2", "ling3vl", "mimo_audio", "minicpmv4_6",
        "minimax_m3", "mlp", "muse-glimmer", "parakeet", "pockettts_gen", "pockettts_spkenc",
        "resampler", "yasa2",
    }
) - _RMS_NORM  # fmt: skip

_MODELS = "tools/mtmd/models/"

# Projector type and role, as shell patterns; the first match counts. A rule without key
# and literal takes the encoder's key.
_EXCEPTIONS: tuple[tuple[str, str, Rule], ...] = (
    ("gemma3nv", "*", fixed("rms", _MODELS + "mobilenetv5.cpp", 1e-6)),
    ("gemma3", "mm.soft_emb", Rule("rms", (), None, _MODELS + "siglip.cpp")),
    ("gemma4a", "a.conv1d", fixed("layer", _MODELS + "gemma4a.cpp", 1e-6)),
    ("gemma4a", "*", fixed("rms", _MODELS + "gemma4a.cpp", 1e-6)),
    ("gemma4ua", "*", fixed("rms", "tools/mtmd/clip.cpp", 1e-6)),
    ("gemma4uv", "v.patch", fixed("layer", _MODELS + "gemma4uv.cpp", 1e-5)),
    ("lfm2", "mm.input", fixed("layer", _MODELS + "siglip.cpp", 1e-5)),
    ("lfm2a", "*", fixed("layer", _MODELS + "conformer.cpp", 1e-5)),
    ("kimivl", "mm.input", fixed("layer", _MODELS + "kimivl.cpp", 1e-5)),
    ("paddleocr", "mm.input", fixed("layer", _MODELS + "paddleocr.cpp", 1e-5)),
    ("dots_ocr", "mm.input", fixed("layer", _MODELS + "dotsocr.cpp", 1e-6)),
    ("dots3note_v", "mm.input", fixed("layer", _MODELS + "dotsocr.cpp", 1e-6)),
    ("dots3note_a", "mm.a.pre", fixed("layer", _MODELS + "dots3note.cpp", 1e-5)),
    ("youtuvl", "mm.input", fixed("rms", _MODELS + "youtuvl.cpp", 1e-6)),
    ("cogvlm", "mm.post_fc", fixed("layer", _MODELS + "cogvlm.cpp", 1e-5)),
    ("glm[45]v", "mm.post", fixed("layer", _MODELS + "glm4v.cpp", 1e-5)),
    ("mimovl", "v.post", fixed("layer", _MODELS + "mimovl.cpp", 1e-6)),
    ("hunyuan*", "mm.*", Rule("rms", (), None, _MODELS + "hunyuanvl.cpp")),
    ("internvl", "mm.mlp", fixed("layer", _MODELS + "internvl.cpp", 1e-5)),
    ("nemotron_v2_vl", "mm.mlp", fixed("rms", _MODELS + "nemotron-v2-vl.cpp", 1e-6)),
    ("deepseekocr*", "v.sam.*", fixed("layer", _MODELS + "deepseekocr.cpp", 1e-6)),
    ("deepseekocr", "v.*", fixed("layer", "tools/mtmd/clip.cpp", 1e-5)),
    ("granite_speech", "a.proj*", fixed("layer", _MODELS + "granite-speech.cpp", 1e-12)),
    ("granite4_vision", "v.proj.input", Rule("layer", (), None, _MODELS + "granite4-vision.cpp")),
    ("granite4_vision", "v.proj*", fixed("layer", _MODELS + "granite4-vision.cpp", 1e-12)),
    ("ultravox", "mm.a.*", fixed("rms", _MODELS + "whisper-enc.cpp", 1e-6)),
    ("parakeet", "mm.a.*", fixed("rms", _MODELS + "parakeet.cpp", 1e-6)),
    ("mimo_audio", "mm.a.local*", Rule("rms", (), None, _MODELS + "mimo-audio.cpp")),
    ("qwen3tts_gen", "a.gen.wav.up", fixed("layer", _MODELS + "qwen3tts-gen.cpp", 1e-6)),
    ("qwen3tts_gen", "a.gen.wav.*", fixed("rms", "tools/mtmd/clip.cpp", 1e-5)),
    ("qwen3tts_gen", "a.gen.*", Rule("rms", (), None, _MODELS + "qwen3tts-gen.cpp")),
    ("pockettts_gen", "a.gen.flow*", fixed("layer", _MODELS + "pockettts-gen.cpp", 1e-6)),
)

PROJECTOR_NORMS: dict[str, tuple[str, str]] = {
    "internvl": ("mm.model.mlp.0", "mm.mlp"),
    "nemotron_v2_vl": ("mm.model.mlp.0", "mm.mlp"),
    "lfm2a": ("mm.a.mlp.0", "mm.a.mlp"),
}
"""Projectors whose first layer is a norm by another name (``mm_0_w`` in clip.cpp): its
tensor without ``.weight``, and its role."""


def encoder_parameters(metadata: Metadata, name: NormName, *, has_bias: bool) -> NormParameters:
    """See :func:`ggufnorm.formats.naming.sites.norm_parameters`."""
    projector = projector_type(metadata, name.role)
    key = _epsilon_key(name.role)
    for pattern, role, rule in _EXCEPTIONS:
        if fnmatchcase(projector, pattern) and fnmatchcase(name.role, role):
            keys = rule.keys if rule.literal is not None else (key,)
            return apply(Rule(rule.kind, keys, rule.literal, rule.source), metadata, "clip", name)
    kind = _encoder_kind(metadata, projector, has_bias=has_bias)
    if key not in metadata:
        return NormParameters(kind, None, None, note=f"{key} is not present")
    if kind is None:
        note = f"the projector type {projector} is not known, and {key} serves two formulas"
        epsilon = from_key("layer", metadata, key, None)
        return NormParameters(None, epsilon.epsilon, epsilon.epsilon_key, note=note)
    return from_key(kind, metadata, key, None)


def projector_type(metadata: Metadata, role: str) -> str:
    """The projector that decides over a norm: the file's, or that of its modality."""
    common = metadata.string(Keys.Clip.PROJECTOR_TYPE)
    if common:
        mixed = {"qwen2.5o": ("qwen2.5vl_merger", "qwen2a")}.get(common)  # clip.cpp, "legacy"
        return common if mixed is None else mixed[_modality(role) == "audio"]
    return metadata.string(f"clip.{_modality(role)}.projector_type") or _LEGACY


def _modality(role: str) -> str:
    if role.startswith("a.gen."):
        return "gen.audio"
    return "audio" if role.startswith(("a.", "mm.a.")) else "vision"


def _epsilon_key(role: str) -> str:
    vision: str = Keys.ClipVision.Attention.LAYERNORM_EPS
    return vision.replace("vision", _modality(role))


def _encoder_kind(metadata: Metadata, projector: str, *, has_bias: bool) -> NormKind | None:
    if projector == "internvl":
        # The 6B encoder is told by its size (tools/mtmd/models/internvl.cpp).
        width = metadata.integer(Keys.ClipVision.EMBEDDING_LENGTH)
        layers = metadata.integer(Keys.ClipVision.BLOCK_COUNT)
        return "rms" if (width, layers) == (3200, 45) else "layer"
    if projector in _RMS_NORM:
        return "rms"
    if projector in _LAYER_NORM or has_bias:
        return "layer"
    return None
