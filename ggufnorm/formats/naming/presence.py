"""Which norms an architecture has, and which of them llama.cpp does not load a file without.

The list is gguf-py's (``MODEL_TENSORS``); what of it is optional, or in no file at all,
stands here, with llama.cpp's source.
"""

from __future__ import annotations

from functools import cache

from ggufnorm.formats.gguf_constants import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    MODEL_TENSOR,
    MODEL_TENSORS,
    TENSOR_NAMES,
)
from ggufnorm.formats.naming.names import EXCLUDED, ROLES

# Norms on the way of the hidden state: where gguf-py lists one, llama.cpp creates it without
# TENSOR_NOT_REQUIRED, in some blocks at least (src/models/*.cpp) …
_NEEDED = frozenset(
    {
        "TOKEN_EMBD_NORM", "OUTPUT_NORM", "ATTN_NORM", "ATTN_POST_NORM", "ATTN_OUT_NORM",
        "FFN_NORM", "FFN_PRE_NORM", "FFN_POST_NORM", "LAYER_OUT_NORM", "ENC_ATTN_NORM",
        "ENC_FFN_NORM", "ENC_OUTPUT_NORM", "DEC_ATTN_NORM", "DEC_CROSS_ATTN_NORM",
        "DEC_FFN_NORM", "DEC_OUTPUT_NORM",
    }
)  # fmt: skip

# … but for these.
_OPTIONAL: dict[str, frozenset[str]] = {
    "arwkv7": frozenset({"TOKEN_EMBD_NORM"}),  # arwkv7.cpp: not created
    "bailingmoe2": frozenset({"LAYER_OUT_NORM"}),  # bailingmoe2.cpp: of the MTP block
    "bert": frozenset({"OUTPUT_NORM"}),  # bert.cpp: not created
    "granitehybrid": frozenset({"FFN_NORM"}),  # granite-hybrid.cpp: a block may lack an FFN
    "grok": frozenset({"LAYER_OUT_NORM", "FFN_POST_NORM"}),  # grok.cpp: one or the other
    "jina-bert-v2": frozenset({"OUTPUT_NORM"}),  # jina-bert-v2.cpp: not created
    "jina-bert-v3": frozenset({"OUTPUT_NORM"}),  # jina-bert-v3.cpp
    "nomic-bert": frozenset({"OUTPUT_NORM"}),  # nomic-bert.cpp
    "nomic-bert-moe": frozenset({"OUTPUT_NORM"}),  # nomic-bert-moe.cpp
    "phi2": frozenset({"FFN_NORM"}),  # phi2.cpp: one norm before both branches
    "stablelm": frozenset({"FFN_NORM"}),  # stablelm.cpp: not with a parallel residual
    # wavtokenizer-dec.cpp: of the position net, whose blocks differ
    "wavtokenizer-dec": frozenset({"TOKEN_EMBD_NORM", "OUTPUT_NORM"}),
}


@cache
def known_norms(architecture: str) -> frozenset[str] | None:
    """Names of the weights of all norms that an architecture may have, ``{bid}`` in them.

    None if gguf-py does not know the architecture.
    """
    members = _members(architecture)
    return None if members is None else frozenset(_weight(m) for m in members)


@cache
def needed_norms(architecture: str) -> tuple[str, ...] | None:
    """Names of the weights that the file must have, ``{bid}`` in them: in one block at least.

    None if gguf-py does not know the architecture.
    """
    members = _members(architecture)
    if members is None:
        return None
    optional = _OPTIONAL.get(architecture, frozenset())
    needed = (_weight(m) for m in members if m.name in _NEEDED - optional)
    return tuple(dict.fromkeys(needed))


def _members(architecture: str) -> list[MODEL_TENSOR] | None:
    known: dict[str, MODEL_ARCH] = {name: member for member, name in MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        return None
    norms = ROLES.keys() | EXCLUDED.keys()
    return [m for m in MODEL_TENSORS[known[architecture]] if m.name in norms]


def _weight(member: MODEL_TENSOR) -> str:
    return f"{TENSOR_NAMES[member]}.weight"
