"""Which metadata differ, and what follows from each.

llama.cpp takes hyperparameters from keys that begin with the architecture's name
(``LLM_KV_NAMES`` in ``src/llama-arch.cpp``), the vocabulary from ``tokenizer.ggml.``; the
rest names, dates and describes the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Literal

from ggufnorm.core.diff import MetadataDifference
from ggufnorm.formats.gguf_header import Value
from ggufnorm.formats.model_file import ModelFile

_ORDER = ("forward", "tokens", "nothing")
_FORWARD = ("xielu.", "adapter.", "diffusion.")
"""Hyperparameters that are stored without the architecture's name."""


def metadata_differences(a: ModelFile, b: ModelFile) -> tuple[MetadataDifference, ...]:
    """The keys whose values differ, those that affect most first."""
    architectures = (a.architecture, b.architecture)
    found = []
    alike = a.byte_order == b.byte_order
    for key in dict.fromkeys((*a.metadata, *b.metadata)):
        if alike and a.metadata.raw(key) == b.metadata.raw(key):
            continue  # an array takes longer to decode
        first, second = a.metadata.get(key), b.metadata.get(key)
        if not _same(first, second):
            found.append(_difference(key, affects(key, architectures), first, second))
    return tuple(sorted(found, key=lambda d: _ORDER.index(d.affects)))


def affects(key: str, architectures: Sequence[str]) -> Literal["forward", "tokens", "nothing"]:
    """What follows from another value of a metadata key.

    Args:
        key: as in the file.
        architectures: ``general.architecture`` of either file.
    """
    hyperparameters = (*(f"{name}." for name in architectures if name), *_FORWARD)
    if key == "general.architecture" or key.startswith(hyperparameters):
        return "forward"
    return "tokens" if key.startswith("tokenizer.ggml.") else "nothing"


def _difference(
    key: str, what: Literal["forward", "tokens", "nothing"], a: Value | None, b: Value | None
) -> MetadataDifference:
    if not (isinstance(a, list) and isinstance(b, list)):
        return MetadataDifference(key, what, _brief(a), _brief(b), None, None)
    at = [i for i, (x, y) in enumerate(zip_longest(a, b)) if not _same(x, y)]
    first, second = ((v[at[0]] if at[0] < len(v) else None) for v in (a, b))
    return MetadataDifference(key, what, _brief(first), _brief(second), at[0], len(at))


def _brief(value: Value | None) -> Any:
    """A value for a report; of an array beside none only the length is told."""
    return f"array of {len(value):,}" if isinstance(value, list) else value


def _same(a: Value | None, b: Value | None) -> bool:
    """Whether two values are equal, NaN and NaN too."""
    if isinstance(a, list) and isinstance(b, list):
        return a == b or (len(a) == len(b) and all(map(_same, a, b)))
    return a == b or (a != a and b != b)
