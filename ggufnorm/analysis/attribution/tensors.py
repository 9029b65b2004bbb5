"""Tensors of two files: which differ, and how they are grouped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ggufnorm.engines.base import Graph
from ggufnorm.formats.model_file import ModelFile

_PART = 1 << 24
"""Bytes compared at a time."""


def same_bytes(a: ModelFile, b: ModelFile, name: str) -> bool:
    """Whether two files hold a tensor in the same type, shape and bytes."""
    x, y = a.tensors[name], b.tensors[name]
    if (x.dtype, x.shape) != (y.dtype, y.shape):
        return False
    parts = ((at, min(_PART, x.n_bytes - at)) for at in range(0, x.n_bytes, _PART))
    return all(a.read_part(name, *p) == b.read_part(name, *p) for p in parts)


_BLOCK = re.compile(r"^(.*?\.\d+)\.")


def block_of(tensor: str) -> str:
    """``blk.3`` for a tensor of that block; outside the blocks its own name."""
    found = _BLOCK.match(tensor)
    return found[1] if found else tensor


def role_of(tensor: str) -> str:
    """A tensor's name without its block: ``attn_q``, ``attn_q.bias``."""
    return _BLOCK.sub("", tensor).removesuffix(".weight")


def odd_norms(ref: Sequence[Graph], quant: Sequence[Graph]) -> set[str]:
    """Tensors of norms that run with another formula or epsilon."""
    pairs = zip(ref, quant, strict=True)
    found: set[str] = set()
    for a, b in pairs:
        plans = {plan.key: plan for plan in a.norms}
        for plan in b.norms:
            other = plans.get(plan.key)
            if other and (other.kind, other.epsilon) != (plan.kind, plan.epsilon):
                found |= {name for name in (plan.weight, plan.bias) if name}
    return found
