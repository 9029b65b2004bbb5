"""Tensor names and metadata to norm sites.

The names are gguf-py's own (``gguf.constants.TENSOR_NAMES``); so are the epsilon keys
(``Keys.Attention``). Kind follows ``llm_graph_context::build_norm`` in
``src/llama-graph.cpp``: LayerNorm takes ``layer_norm_epsilon``, RMSNorm
``layer_norm_rms_epsilon``, GroupNorm ``group_norm_epsilon`` and ``group_norm_groups``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from ggufnorm.core.model import NormKind
from ggufnorm.formats.gguf import Metadata

_ROLES = {
    "post_attention_norm": "post_attn",
    "post_ffw_norm": "post_ffn",
    "pre_ffw_norm": "ffn",
    "attn_q_norm": "q",
    "attn_k_norm": "k",
    "enorm": "embd",
    "hnorm": "hidden",
    "ln1": "attn",
    "ln2": "ffn",
}


@dataclass(frozen=True)
class NormName:
    """A norm's tensor name, taken apart."""

    layer: int | None
    role: str


@cache
def _norm_templates() -> dict[str, str]:
    """Tensor name templates of every norm that gguf-py knows, ``{bid}`` in them, to role."""
    from gguf.constants import MODEL_TENSOR, TENSOR_NAMES

    return {
        template: _role(template)
        for member, template in TENSOR_NAMES.items()
        if isinstance(member, MODEL_TENSOR) and "NORM" in member.name
    }


def _role(template: str) -> str:
    head, _, last = template.rpartition(".")
    prefix = ".".join(p for p in head.split(".") if p not in ("blk", "{bid}"))
    role = _ROLES.get(last) or re.sub(r"_?norm_?", "_", last).strip("_")
    return f"{prefix}.{role}" if prefix and role else prefix or role


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def parse_norm_name(tensor: str) -> NormName | None:
    """Layer and role of a norm's weight or bias, None if it is not a norm's name.

    A name that gguf-py does not know is taken for a norm if its last part holds
    ``norm``: newer architectures are read too.
    """
    stem, _, suffix = tensor.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None
    number = _NUMBER.search(stem + ".")
    template = _NUMBER.sub("{bid}", stem + ".", count=1).rstrip(".")
    role = _norm_templates().get(template)
    if role is None and "norm" in template.rpartition(".")[2]:
        role = _role(template)
    if role is None:
        return None
    return NormName(int(number[0]) if number else None, role)


def layer_of(name: str) -> int | None:
    """Block number in a tensor name such as ``blk.7.ffn_down.weight``; None without one."""
    number = _NUMBER.search(name)
    return int(number[0]) if number else None


@dataclass(frozen=True)
class NormParameters:
    """What the metadata tells of a norm; ``note`` says what it does not."""

    kind: NormKind | None
    epsilon: float | None
    epsilon_key: str | None
    groups: int | None
    note: str = ""


# Architectures whose file may carry both keys, and which of them their norms use
# (src/models/*.cpp): T5 and its encoder write both and build RMSNorm only.
_BOTH_KEYS_RMS = frozenset({"t5", "t5encoder"})


def norm_parameters(metadata: Metadata, architecture: str, *, has_bias: bool) -> NormParameters:
    """Kind and epsilon of a norm, from the epsilon keys that the file carries.

    Where a file carries both the RMSNorm and the LayerNorm key, a bias tells a LayerNorm
    (no RMSNorm in llama.cpp has one); without a bias the kind stays unknown unless the
    architecture is known to use one of them only.
    """
    prefix = f"{architecture}.attention."
    rms_key, layer_key = f"{prefix}layer_norm_rms_epsilon", f"{prefix}layer_norm_epsilon"
    rms, layer = metadata.number(rms_key), metadata.number(layer_key)
    if rms is not None and layer is not None:
        if architecture in _BOTH_KEYS_RMS:
            return NormParameters("rms", rms, rms_key, None)
        if has_bias:
            return NormParameters("layer", layer, layer_key, None)
        return NormParameters(None, None, None, None, f"both {rms_key} and {layer_key} are present")
    if rms is not None:
        return NormParameters("rms", rms, rms_key, None)
    if layer is not None:
        return NormParameters("layer", layer, layer_key, None)
    group_key = f"{prefix}group_norm_epsilon"
    group = metadata.number(group_key)
    if group is not None:
        groups = metadata.integer(f"{prefix}group_norm_groups")
        return NormParameters("group", group, group_key, groups)
    return NormParameters(None, None, None, None, f"neither {rms_key} nor {layer_key} is present")
