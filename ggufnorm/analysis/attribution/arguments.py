"""Types of tensors as arguments for llama-quantize."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from ggufnorm.analysis.attribution.tensors import block_of


def compressed(types: Mapping[str, str]) -> tuple[str, ...]:
    """Arguments for ``--tensor-type``: one for each role and type, anchored at both ends.

    Args:
        types: by tensor, for all that are quantized.
    """
    blocks: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    everywhere: dict[tuple[str, str], set[str]] = defaultdict(set)
    for tensor, dtype in types.items():
        stem, number, rest = _cut(tensor)
        blocks[stem, rest, dtype].append(number)
        everywhere[stem, rest].add(number)
    found = []
    for (stem, rest, dtype), numbers in blocks.items():
        if not stem:
            middle = ""
        elif len(numbers) == len(everywhere[stem, rest]):
            middle = "[0-9]+"
        else:
            middle = numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"
        found.append(f"^{_escaped(stem)}{middle}{_escaped(rest)}$={dtype.lower()}")
    return tuple(found)


def _cut(tensor: str) -> tuple[str, str, str]:
    """``blk.``, ``3``, ``.attn_q.weight``; empty, empty and the name outside the blocks."""
    block = block_of(tensor)
    if block == tensor:
        return "", "", tensor
    stem, _, number = block.rpartition(".")
    return f"{stem}.", number, tensor[len(block) :]


def _escaped(text: str) -> str:
    return re.sub(r"([.+*?()\[\]{}|^$\\])", r"\\\1", text)
