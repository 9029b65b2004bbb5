"""What a rule about a norm is, and what it says of a given file."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.model import NormKind
from ggufnorm.formats.gguf import Metadata
from ggufnorm.formats.naming.names import NormName


@dataclass(frozen=True)
class NormParameters:
    """What the metadata tells of a norm.

    Attributes:
        kind: None if it does not tell.
        epsilon: None if it does not tell; never a default.
        epsilon_key: the key that holds ``epsilon``.
        groups: of a group norm.
        note: why something is unknown, and what llama.cpp's graph does all the same.
    """

    kind: NormKind | None
    epsilon: float | None
    epsilon_key: str | None
    groups: int | None = None
    note: str = ""


NO_KEY = "no key holds its epsilon"
"""What the note of a norm says whose epsilon stands in llama.cpp's code."""


@dataclass(frozen=True)
class Rule:
    """What llama.cpp's graph does with some norms.

    Attributes:
        kind: the formula.
        keys: where its epsilon comes from: the first of these keys that is there.
            ``{arch}`` in them stands for the architecture.
        literal: the epsilon that stands in the graph's code instead of a key.
        source: the file of llama.cpp that says so.
    """

    kind: NormKind
    keys: tuple[str, ...]
    literal: float | None
    source: str


def keyed(kind: NormKind, source: str, *keys: str) -> Rule:
    """A rule whose epsilon comes from the metadata."""
    return Rule(kind, keys, None, source)


def fixed(kind: NormKind, source: str, epsilon: float) -> Rule:
    """A rule whose epsilon is a literal in llama.cpp's code."""
    return Rule(kind, (), epsilon, source)


def apply(rule: Rule, metadata: Metadata, architecture: str, name: NormName) -> NormParameters:
    """The rule's kind, and its epsilon if the file tells it."""
    if rule.literal is not None:
        note = f"{NO_KEY}; llama.cpp's graph uses {rule.literal:g} ({rule.source})"
        return NormParameters(rule.kind, None, None, note=note)
    keys = [key.format(arch=architecture) for key in rule.keys]
    for key in keys:
        if key in metadata:
            return from_key(rule.kind, metadata, key, name.layer)
    return NormParameters(rule.kind, None, None, note=f"{' and '.join(keys)} not present")


def from_key(kind: NormKind, metadata: Metadata, key: str, layer: int | None) -> NormParameters:
    """Kind with the epsilon that ``key`` holds: a number, or an array of one per layer."""
    value = metadata[key]
    if isinstance(value, list) and layer is not None and layer < len(value):
        value = value[layer]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NormParameters(kind, None, None, note=f"{key} holds no number for this norm")
    return NormParameters(kind, float(value), key)
