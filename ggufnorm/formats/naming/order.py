"""The order in which a forward pass meets its norms."""

from __future__ import annotations

from ggufnorm.core.model import NormSite

# Parts of a model by the beginning of a role, in the order in which data flows; what
# begins otherwise is a language model's own.
_PARTS = ("v.", "mm.", "a.", "mm.a.", "a.gen.", "enc.", "posnet.", "", "dec.")

# Within a block; what is not listed stands between the attention and the FFN.
_BEFORE_ATTENTION = (
    "altup_router", "nextn.embd", "nextn.hidden", "hc_attn", "layer_pre", "attn", "pre_attn",
    "attn_2", "laurel_post", "q_a", "kv_a", "q", "k", "v",
)  # fmt: skip
_AFTER_ATTENTION = (
    "attn_sub", "attn_output", "post_attn", "cross_attn", "norm_conv", "conv_norm", "hc_ffn",
    "ffn_router", "ffn", "ffn_2", "ffn_exps", "ffn_routed", "ffn_sub", "post_ffn_1",
    "post_ffn_2", "post_ffn", "per_layer_post", "layer_output", "nextn.shared_head",
)  # fmt: skip

# Outside the blocks: before them, and after them.
_FIRST = ("token_embd", "embd", "position_embd", "patch", "conv_stem", "per_layer_proj", "pre")
_LAST = ("post", "output_hc", "output", "cls")

Order = tuple[int, int, int, int, str]


def execution_order(site: NormSite) -> Order:
    """A key to sort norms by: embeddings, then layer by layer, then the output."""
    prefix, role = _part(site.role)
    part = _PARTS.index(prefix)
    if site.layer is None:
        stage = 0 if role in _FIRST else 2
        place = (_FIRST if stage == 0 else _LAST).index(role) if role in _FIRST + _LAST else -1
        return (part, stage, 0, place, role)
    return (part, 1, site.layer, _place(role), role)


def _part(role: str) -> tuple[str, str]:
    prefix = max((p for p in _PARTS if role.startswith(p)), key=len)
    return prefix, role[len(prefix) :]


def _place(role: str) -> int:
    if role in _BEFORE_ATTENTION:
        return _BEFORE_ATTENTION.index(role)
    middle = len(_BEFORE_ATTENTION)
    return middle + 1 + _AFTER_ATTENTION.index(role) if role in _AFTER_ATTENTION else middle
