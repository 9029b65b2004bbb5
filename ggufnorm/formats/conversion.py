"""Which tensor of a checkpoint becomes which norm of a GGUF file, and how its values change.

Names are gguf-py's (``gguf.TensorNameMap``), which llama.cpp's converter looks up; what a
converter does to a name before (``filter_tensors`` in ``conversion/*.py``) and to a norm's
values (``modify_tensors``) stands here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import chain
from typing import Any

from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import TensorNameMap

from ggufnorm.core.transforms import Transform
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming.encoders import projector_type
from ggufnorm.formats.naming.names import excluded, parse_norm_name

EMBEDDING = "token_embd.weight"

_MAX_BLOCKS = 1024
"""More blocks than any model has; a header can claim four billion."""

# The constructor of TensorNameMap changes this table of its class for Arctic, and with it the
# names of every architecture that is asked for later in the process: kept as imported.
_BLOCK_NAMES = dict(TensorNameMap.block_mappings_cfg)

# Tensors that a language model's converter leaves to the encoder's (TextModel.filter_tensors
# in conversion/base.py).
_NOT_TEXT = re.compile(
    r"^(mlp|vit\.|vpm\.|siglip2\.|conformer\.|merger\.|resampler\.|sound_|speech_)"
    r"|visual\.|vision\.|audio\.|talker\.|token2wav\.|code2wav\.|vision_|audio_|projector"
)

# What stands before a name that gguf-py knows, in checkpoints of one class or another.
_WRAPPERS = (
    "model.", "bert.", "roberta.", "distilbert.", "transformer.", "llm.", "thinker.",
)  # fmt: skip

# Architecture, of an encoder with its projector type, as a shell pattern; what a name has, and
# what it becomes. All that match are made, in order.
_RENAMES: tuple[tuple[str, str, str], ...] = (
    ("*", r"(^|\.)language_model\.", r"\1"),
    ("llama", r"(^|\.)text_model\.", r"\1"),
    ("*bert*", r"\.gamma$", ".weight"),
    ("*bert*", r"\.beta$", ".bias"),
    ("ernie4_5*", r"^ernie\.", "model."),
    ("lfm2*", r"^lfm\.", "model."),
    ("plamo*", r"\.(dt|B|C)_norm_weight$", r".\1_norm.weight"),
    ("plamo*", r"\.([qk])_weight$", r".\1.weight"),
    ("nemotron_h*", r"^model\.layers\.", "backbone.layers."),
    ("rwkv*", r"\b(blocks)\b", "layers"),
    ("rwkv*", r"\bg_norm\b", "ln_x"),
    # gguf-py has this name twice, and the second one, Gemma 4's, counts there.
    ("clip:llama4", r"^vision_model\.model(.*\.post_attention_layernorm)\b", r"vit\1"),
    ("clip:*", r"^vision_model\.", "vision_tower.vision_model."),
    ("clip:*", r"^model\.vision_tower\.vision_tower\.", "vision_tower."),
    ("clip:gemma3", r"_projection_weight$", "_projection.weight"),
    # As Transformers 5 calls the modules of CLIP and SigLIP.
    (
        "clip:*",
        r"^(model\.)?(vision_tower\.)?(?=(encoder\.layers|pre_layrnorm|post_layernorm)\.)",
        "vision_tower.vision_model.",
    ),
)

# Layers of a multi-token predictor stand behind the others (conversion/qwen.py, exaone.py).
_NEXTN = {
    "mtp.pre_fc_norm_embedding": "enorm",
    "mtp.pre_fc_norm_hidden": "hnorm",
    "mtp.norm": "shared_head.norm",
}

_PER_HEAD = re.compile(r"(.*)\.norms\.(\d+)\.weight")  # conversion/stablelm.py

_PLUS_ONE = Transform(offset=1.0)
_AS_IS = Transform()

# The same and a source name, as shell patterns; the first match counts.
_TRANSFORMS: tuple[tuple[str, str, Transform], ...] = (
    ("gemma", "*norm.weight", _PLUS_ONE),  # conversion/gemma.py, for all four
    ("gemma2", "*norm.weight", _PLUS_ONE),
    ("gemma3", "*norm.weight", _PLUS_ONE),
    ("gemma-embedding", "*norm.weight", _PLUS_ONE),
    ("nemotron", "*norm.weight", _PLUS_ONE),  # LayerNorm1p: conversion/nemotron.py
    ("qwen3next", "*linear_attn.norm.weight", _AS_IS),  # conversion/qwen.py
    ("qwen35*", "*linear_attn.norm.weight", _AS_IS),
    ("qwen3next", "*norm.weight", _PLUS_ONE),
    ("qwen35*", "*norm.weight", _PLUS_ONE),
    ("qwen4exp", "*linear_attn.norm.weight", _AS_IS),  # conversion/qwen4exp.py
    ("qwen4exp", "*.ple.norm_*.weight", _PLUS_ONE),
    ("qwen4exp", "*norm.weight", _PLUS_ONE),
    ("minimax-m3", "*norm.weight", _PLUS_ONE),  # conversion/minimax.py
    ("step35", "*norm.weight", _PLUS_ONE),  # conversion/step3.py
    ("muse-glimmer", "*layernorm.weight", _PLUS_ONE),  # conversion/muse_glimmer.py
    ("plamo[23]", "*.post_mixer_norm.weight", Transform(offset=1 / 5)),  # conversion/plamo.py
    ("plamo[23]", "*.post_mlp_norm.weight", Transform(offset=1 / 5**1.5)),
    ("plamo[23]", "*.pre_m*_norm.weight", _PLUS_ONE),
    ("plamo3", "*.mixer.[qk]_norm.weight", _PLUS_ONE),
    ("plamo[23]", "*.norm.weight", _PLUS_ONE),
    ("chameleon", "*[qk]_norm.*", Transform(unpermute=True)),  # conversion/chameleon.py
    ("clip:gemma3", "*soft_emb_norm.weight", _PLUS_ONE),  # conversion/gemma.py
)


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the file comes from.

    Attributes:
        tensor: its name in the file.
        sources: its names in the checkpoint: one, or one per head, which are stacked.
        transform: what the converter does to the values.
    """

    tensor: str
    sources: tuple[str, ...]
    transform: Transform


def origins(file: ModelFile, source_names: Iterable[str]) -> dict[str, Origin] | None:
    """What becomes of a checkpoint's norms.

    Args:
        file: the file that they should be in; its architecture and number of blocks count.
        source_names: the names of the checkpoint's tensors.

    Returns:
        By the name in the file, of norms' weights and biases alone. None if gguf-py does
        not know the architecture.
    """
    names = _name_map(file)
    if names is None:
        return None
    found: dict[str, tuple[int, list[str]]] = {}
    for source in sorted(source_names, key=_numbered):
        hit = _target(file, names, source)
        if hit is None or not _is_norm(hit[0], file):
            continue
        target, rank = in_file(hit[0], file), hit[1]
        known = found.get(target)
        if known is None or rank < known[0]:
            found[target] = (rank, [source])
        elif rank == known[0] and _PER_HEAD.fullmatch(source):
            known[1].append(source)
    return {
        target: Origin(target, tuple(sources), transform_of(file, sources[0]))
        for target, (_, sources) in found.items()
    }


def tensor_of(file: ModelFile, source: str) -> str | None:
    """The file's name of a checkpoint's tensor; None if the file has none by that name."""
    hit = _target(file, _name_map(file) or {}, source)
    return hit[0] if hit is not None and hit[0] in file.tensors else None


def named_origins(
    file: ModelFile, source_names: Iterable[str]
) -> dict[str, tuple[str, ...]] | None:
    """What becomes of a checkpoint's tensors, of all of them, as far as gguf-py has their names.

    Args:
        file: the file that they should be in; its architecture and number of blocks count.
        source_names: the names of the checkpoint's tensors.

    Returns:
        By the name in the file, with or without ``.weight`` as it stands there, the source's
        names: one, or one of each expert in turn. None if gguf-py does not know the
        architecture.
    """
    names = _name_map(file)
    return None if names is None else _named(file, source_names, [names])


def likely_origins(file: ModelFile, source_names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The same by the names of common architectures, for one that gguf-py does not know."""
    maps = [_names_of(member, n_blocks(file)) for member in _COMMON]
    return _named(file, source_names, maps)


_COMMON = (
    MODEL_ARCH.LLAMA, MODEL_ARCH.QWEN3MOE, MODEL_ARCH.DEEPSEEK2, MODEL_ARCH.GEMMA3,
    MODEL_ARCH.QWEN3NEXT, MODEL_ARCH.BERT,
)  # fmt: skip


def _named(
    file: ModelFile,
    source_names: Iterable[str],
    maps: Sequence[Mapping[str, tuple[object, str]]],
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[int, list[str]]] = {}
    for source in sorted(source_names, key=_numbered):
        hits = [h for m in maps if (h := _target(file, m, source) or _merged(file, m, source))]
        if not hits:
            continue
        hit = next((h for h in hits if in_file(h[0], file) in file.tensors), hits[0])
        target, rank = in_file(hit[0], file), hit[1]
        known = found.get(target)
        if known is None or rank < known[0]:
            found[target] = (rank, [source])
        elif rank == known[0]:
            known[1].append(source)
    return {target: tuple(sources) for target, (_, sources) in found.items()}


def in_file(target: str, file: ModelFile) -> str:
    """A tensor's name as the file has it: converters of some versions leave out ``.weight``."""
    bare = target.removesuffix(".weight")
    if target in file.tensors:
        return target
    return next((n for n in (bare, f"{target}.weight") if n in file.tensors), target)


_EXPERT = re.compile(r"\.experts\.\d+\.|\.chunk_experts\.\d+\.")


def _merged(
    file: ModelFile, names: Mapping[str, tuple[object, str]], source: str
) -> tuple[str, int] | None:
    """The tensor that all experts' of one kind are stacked to (``modify_tensors``)."""
    numbered = re.sub(r"\.\d+\.weight$", ".weight", source)
    for known in dict.fromkeys((_EXPERT.sub(".experts.", source), source, numbered)):
        for name in (known, f"{known}.weight"):
            hit = _target(file, names, name)
            if hit is not None:
                return hit
    return None


_OF_TEXT = re.compile(
    r"language_model\.|text_model\.(?!encoder)|(^|\.)lm_head\."
    r"|^(model\.)?(layers|embed_tokens|norm|llm)\b|^thinker\.model\.|^talker\."
)


def is_of_text(source: str) -> bool:
    """Whether a checkpoint's tensor of that name belongs to its language model."""
    return _OF_TEXT.search(source) is not None


def embedding_source(file: ModelFile, source_names: Iterable[str]) -> str | None:
    """The checkpoint's name of the token embedding, None if it has none that is known."""
    names = _name_map(file) or {}
    for source in source_names:
        hit = _target(file, names, source)
        if hit is not None and hit[0] == EMBEDDING:
            return source
    return None


def transform_of(file: ModelFile, source: str) -> Transform:
    """What the converter of a file's architecture does to a norm of that source name."""
    matching = (t for name, t in _transforms_for(file) if fnmatchcase(source, name))
    return next(matching, _AS_IS)


def with_rescale(
    origin: Origin, file: ModelFile, config: Mapping[str, Any], n_elements: int
) -> Origin:
    """The origin with what a converter reads off the config.

    Dots3 multiplies the normalized latents of its attention by ``sqrt(n_embd / rank)``, which
    the converter folds into their norms, as wide as the rank (conversion/dots3.py).

    Args:
        origin: of a norm.
        file: that the norm is in.
        config: of the checkpoint.
        n_elements: of the norm.
    """
    width = file.metadata.integer(f"{file.architecture}.embedding_length")
    latent = origin.sources[0].endswith(("q_a_layernorm.weight", "kv_a_layernorm.weight"))
    rescaled = config.get("apply_mla_qkv_lora_rescale") is True
    if not (file.architecture == "dots3note" and latent and rescaled and width and n_elements):
        return origin
    return replace(origin, transform=Transform(scale=math.sqrt(width / n_elements)))


def n_blocks(file: ModelFile) -> int:
    """The most blocks that any part of a model has by its metadata, within reason."""
    counts = [
        file.metadata.integer(key) or 0 for key in file.metadata if key.endswith("block_count")
    ]
    return max(0, min(_MAX_BLOCKS, max(counts, default=0)))


def kind_of(file: ModelFile) -> str:
    """The architecture, of an encoder with its projector type: ``clip:gemma3``."""
    if file.architecture != "clip":
        return file.architecture
    return f"clip:{projector_type(file.metadata, 'v.')}"


def _name_map(file: ModelFile) -> Mapping[str, tuple[object, str]] | None:
    architectures = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
    architecture = architectures.get(file.architecture)
    if file.architecture == "clip":
        architecture = MODEL_ARCH.MMPROJ
    if architecture is None:
        return None
    # Too few may be counted: names of the others are theirs all the same.
    named = (int(found[1]) + 1 for n in file.tensors if (found := _BLOCK.match(n)))
    return _names_of(architecture, max(n_blocks(file), min(_MAX_BLOCKS, max(named, default=0))))


_BLOCK = re.compile(r"(?:[a-z]+\.)?blk\.(\d{1,4})\.")


@lru_cache(maxsize=4)
def _names_of(architecture: MODEL_ARCH, blocks: int) -> Mapping[str, tuple[object, str]]:
    own = {"block_mappings_cfg": dict(_BLOCK_NAMES)}
    names: TensorNameMap = type("Names", (TensorNameMap,), own)(architecture, blocks)
    mapping: Mapping[str, tuple[object, str]] = names.mapping
    return mapping


def _target(
    file: ModelFile, names: Mapping[str, tuple[object, str]], source: str
) -> tuple[str, int] | None:
    """The file's name of a source tensor, and how far it was from gguf-py's own name."""
    encoder = file.architecture == "clip"
    if "language_model." in source if encoder else _NOT_TEXT.search(source):
        return None
    for rank, name in enumerate(_spellings(file, source)):
        # gguf-py knows some names with their suffix and most without.
        if name in names:
            return f"{names[name][1]}.weight", rank
        stem, _, suffix = name.rpartition(".")
        if suffix in ("weight", "bias") and stem in names:
            return f"{names[stem][1]}.{suffix}", rank
    return None


def _spellings(file: ModelFile, source: str) -> Iterator[str]:
    """A source name as converters may look it up, the likeliest first."""
    per_head = _PER_HEAD.fullmatch(source)
    plain = f"{per_head[1]}.weight" if per_head else source
    kind, renamed = kind_of(file), plain
    for pattern, before, after in _RENAMES:
        if fnmatchcase(kind, pattern):
            renamed = re.sub(before, after, renamed)
    renamed = _nextn(file, renamed)
    unwrapped = [renamed[len(w) :] for w in _WRAPPERS if renamed.startswith(w)]
    yield from dict.fromkeys(chain([renamed, plain], unwrapped, [f"model.{renamed}"]))


def _nextn(file: ModelFile, name: str) -> str:
    name = name.removeprefix("model.") if name.startswith("model.mtp.") else name
    if not name.startswith("mtp."):
        return name
    extra = file.metadata.integer(f"{file.architecture}.nextn_predict_layers") or 0
    first = n_blocks(file) - extra
    stem, _, suffix = name.rpartition(".")
    if stem in _NEXTN:
        return f"model.layers.{first}.{_NEXTN[stem]}.{suffix}"
    layer = re.fullmatch(r"mtp\.layers\.(\d{1,4})\.(.*)", name)
    return f"model.layers.{first + int(layer[1])}.{layer[2]}" if layer else name


def _is_norm(tensor: str, file: ModelFile) -> bool:
    known = parse_norm_name(tensor, file.architecture, file.tensors)
    return known is not None and excluded(tensor) is None


def _numbered(name: str) -> list[tuple[int, str]]:
    """A key that sorts heads by their number: 2 before 10."""
    return [(int(p), "") if p.isdecimal() and len(p) < 10 else (-1, p) for p in name.split(".")]


def expected_offsets(file: ModelFile) -> dict[str, float] | None:
    """What the converter adds to each norm's weight, by the weight's name in the file.

    A weight may come from any of several names. All but the file's own belong to other
    architectures, so the first transform of the table that knows one of them counts.

    Returns:
        None if gguf-py does not know the architecture.
    """
    names = _name_map(file)
    if names is None:
        return None
    transforms = _transforms_for(file)
    norms = {name for name in file.tensors if name.endswith(".weight") and _is_norm(name, file)}
    ranks: dict[str, int] = {}
    for source, (_, target) in names.items():
        weight = f"{target}.weight"
        if weight in norms:
            rank = _rank(transforms, f"{source.removesuffix('.weight')}.weight")
            ranks[weight] = min(rank, ranks.get(weight, rank))
    found = [t.offset for _, t in transforms] + [0.0]
    return {weight: found[rank] for weight, rank in ranks.items()}


def _transforms_for(file: ModelFile) -> list[tuple[str, Transform]]:
    """Patterns of source names, and what becomes of them, for the file's architecture."""
    kind = kind_of(file)
    return [(name, t) for pattern, name, t in _TRANSFORMS if fnmatchcase(kind, pattern)]


def _rank(transforms: list[tuple[str, Transform]], source: str) -> int:
    """The place of the first transform for a source name; one behind the last without one."""
    matching = (i for i, (name, _) in enumerate(transforms) if fnmatchcase(source, name))
    return next(matching, len(transforms))
