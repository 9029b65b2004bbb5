"""Kind and epsilon of the norms of language models.

The rule (``llm_graph_context::build_norm`` in ``src/llama-graph.cpp``): RMSNorm takes
``layer_norm_rms_epsilon``, LayerNorm ``layer_norm_epsilon``, GroupNorm
``group_norm_epsilon`` and ``group_norm_groups``. So the key that a file carries tells the
kind, and only what departs from that stands in a table.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

from ggufnorm.core.model import NormKind
from ggufnorm.formats.gguf import Metadata
from ggufnorm.formats.gguf_constants import MODEL_ARCH_NAMES, Keys
from ggufnorm.formats.naming.names import NormName
from ggufnorm.formats.naming.rules import NormParameters, Rule, apply, fixed, from_key, keyed

RMS: str = Keys.Attention.LAYERNORM_RMS_EPS
LAYER: str = Keys.Attention.LAYERNORM_EPS
GROUP: str = Keys.Attention.GROUPNORM_EPS
GROUPS: str = Keys.Attention.GROUPNORM_GROUPS

# Architectures that build LayerNorm (LLM_NORM in src/models/*.cpp); asked only where the
# keys alone do not tell.
_LAYER_NORM = frozenset(
    {
        "bert", "bloom", "codeshell", "cohere2", "command-r", "dbrx", "falcon", "gpt2",
        "gptneox", "jais", "jais2", "jina-bert-v2", "jina-bert-v3", "modern-bert", "mpt",
        "nemotron", "nomic-bert", "nomic-bert-moe", "olmo", "orion", "phi2", "pockettts",
        "rwkv6", "rwkv7", "stablelm", "starcoder", "starcoder2", "wavtokenizer-dec",
    }
)  # fmt: skip

# Those that build RMSNorm: what else gguf-py knows, and what it will know.
_RMS_NORM = (frozenset(MODEL_ARCH_NAMES.values()) | {"cohere2moe", "glm5-next"}) - _LAYER_NORM

_MODELS = "src/models/"

# Architecture and role, as shell patterns; the first match counts.
_EXCEPTIONS: tuple[tuple[str, str, Rule], ...] = (
    ("chameleon", "[qk]", fixed("layer", _MODELS + "chameleon.cpp", 1e-5)),
    ("deepseek32", "indexer.k", fixed("layer", _MODELS + "deepseek32.cpp", 1e-6)),
    ("dots3note", "indexer.k", fixed("layer", _MODELS + "dots3note.cpp", 1e-6)),
    ("glm-dsa", "indexer.k", fixed("layer", _MODELS + "glm-dsa.cpp", 0.0)),
    ("glm5-next", "indexer.k", keyed("layer", _MODELS + "glm5-next.cpp", LAYER)),
    ("hy_v4", "indexer.k", keyed("layer", _MODELS + "hy-v4.cpp", RMS)),
    ("muse-glimmer", "post_*", fixed("rms", _MODELS + "muse-glimmer.cpp", 1e-8)),
    # The last norm of the MTP head is a LayerNorm; the others fall back on its key.
    ("nemotron_h_moe", "nextn.shared_head", keyed("layer", _MODELS + "nemotron-h-moe.cpp", LAYER)),
    ("nemotron_h*", "*", keyed("rms", _MODELS + "nemotron-h.cpp", RMS, LAYER)),
    ("wavtokenizer-dec", "posnet.*", keyed("group", _MODELS + "wavtokenizer-dec.cpp", GROUP)),
    # "group norm with head_count groups", run as a LayerNorm over each head.
    ("rwkv6*", "time_mix", fixed("group", _MODELS + "rwkv6-base.cpp", 64e-5)),
    ("*rwkv7", "time_mix", fixed("group", _MODELS + "rwkv7-base.cpp", 64e-5)),
)


def expected_kind(architecture: str) -> NormKind | None:
    """The formula of an architecture's usual norm; None if the architecture is not known."""
    if architecture in _LAYER_NORM:
        return "layer"
    return "rms" if architecture in _RMS_NORM else None


def language_parameters(
    metadata: Metadata, architecture: str, name: NormName, *, has_bias: bool
) -> NormParameters:
    """See :func:`ggufnorm.formats.naming.sites.norm_parameters`."""
    for pattern, role, rule in _EXCEPTIONS:
        if fnmatchcase(architecture, pattern) and fnmatchcase(name.role, role):
            found = apply(rule, metadata, architecture, name)
            break
    else:
        found = _by_key(metadata, architecture, name, has_bias=has_bias)
    if found.kind != "group":
        return found
    return replace(found, groups=_groups(metadata, architecture))


def _by_key(
    metadata: Metadata, architecture: str, name: NormName, *, has_bias: bool
) -> NormParameters:
    rms, layer, group = (key.format(arch=architecture) for key in (RMS, LAYER, GROUP))
    if rms in metadata and layer in metadata:
        if architecture in _RMS_NORM:
            return from_key("rms", metadata, rms, name.layer)
        if architecture in _LAYER_NORM or has_bias:
            return from_key("layer", metadata, layer, name.layer)
        return NormParameters(None, None, None, note=f"both {rms} and {layer} are present")
    if rms in metadata:
        found = from_key("rms", metadata, rms, name.layer)
        if architecture not in _LAYER_NORM:
            return found
        return replace(found, note=f"llama.cpp builds LayerNorm here and wants {layer}")
    if layer in metadata:
        return from_key("layer", metadata, layer, name.layer)
    if group in metadata:
        return from_key("group", metadata, group, name.layer)
    kind: NormKind | None = "layer" if architecture in _LAYER_NORM else None
    return NormParameters(kind, None, None, note=f"neither {rms} nor {layer} is present")


def _groups(metadata: Metadata, architecture: str) -> int | None:
    groups = metadata.integer(GROUPS.format(arch=architecture))
    if groups is not None:
        return groups
    width = metadata.integer(Keys.LLM.EMBEDDING_LENGTH.format(arch=architecture))
    head = metadata.integer(Keys.WKV.HEAD_SIZE.format(arch=architecture))
    return width // head if width and head else None
