"""All rules, family by family, in the order of their ids."""

from __future__ import annotations

from collections.abc import Iterable

from ggufnorm.analysis.audit.registry import Rule
from ggufnorm.analysis.audit.rules import (
    adapters,
    capture,
    epsilon,
    hyperparameters,
    imatrix,
    keys,
    manifest,
    norms,
    source,
    tensors,
    vision,
)
from ggufnorm.analysis.audit.rules.norms.data import tensor_data
from ggufnorm.formats.forms import Kind

__all__ = ["BY_ID", "FAMILIES", "RULES", "TENSOR_DATA", "why_not_for"]

TENSOR_DATA = tensor_data
"""The rule of files whose tensors' data is not all there: none of the others can run then."""

FAMILIES: dict[str, str] = {
    "N": "Norms of the file and their values",
    "E": "Epsilons",
    "H": "Hyperparameters beside the tensors",
    "S": "The file beside its source (`--source`)",
    "T": "All tensors beside their source (`--source`)",
    "K": "Keys beside the source's configs (`--source`)",
    "M": "The file beside a manifest (`--manifest`)",
    "V": "Vision encoders",
    "I": "Importance matrices",
    "L": "LoRA adapters",
    "C": "What llama.cpp really computes (`--run`)",
}
"""What each letter stands for, in the order in which families are shown."""

RULES: tuple[Rule, ...] = (
    *norms.RULES, *epsilon.RULES, *hyperparameters.RULES, *source.RULES, *tensors.RULES,
    *keys.RULES, *manifest.RULES, *vision.RULES, *imatrix.RULES, *adapters.RULES, *capture.RULES,
)  # fmt: skip


_OWN: dict[Kind, tuple[str, str]] = {
    "imatrix": ("I", "an importance matrix"), "adapter": ("L", "a LoRA adapter"),
}  # fmt: skip
"""Kinds of files that have a family of their own, and what they are called."""

_OF_VALUES = ("N602",)
"""Rules on the values of all tensors, whatever they are."""


def compares_tensors(rules: Iterable[Rule], kind: Kind) -> bool:
    """Whether some rule compares all tensors of a file of this kind with their source."""
    return any(rule in tensors.RULES and why_not_for(rule, kind) is None for rule in rules)


def why_not_for(rule: Rule, kind: Kind) -> str | None:
    """Why a rule is not about files of this kind; None if it is."""
    if rule is TENSOR_DATA or (kind == "adapter" and rule.id in _OF_VALUES):
        return None
    owner = next((k for k, (letter, _) in _OWN.items() if rule.id.startswith(letter)), None)
    if owner == kind or (owner is None and kind not in _OWN):
        return None
    words = _OWN[kind if kind in _OWN else owner or kind][1]
    return f"the file is {words}" if kind in _OWN else f"it is no {words.split(' ', 1)[1]}"


BY_ID: dict[str, Rule] = {r.id: r for r in RULES}

BY_NAME: dict[str, Rule] = {r.name: r for r in RULES}


def names_rule(word: str, rule: Rule) -> bool:
    """Whether a word is the beginning of the rule's id, or its name."""
    return bool(word) and (rule.id.startswith(word.upper()) or rule.name == word.lower())


def find_rule(word: str) -> Rule | None:
    """The rule of an id or a name; None if there is none."""
    return BY_ID.get(word.upper()) or BY_NAME.get(word.lower())


def no_such_rule(word: str, what: str) -> str:
    """A sentence on a word that names no rule, with the rule that may have been meant."""
    from difflib import get_close_matches

    names = {**{r.id.lower(): r for r in RULES}, **BY_NAME}
    near = [r for r in RULES if word and (word.lower() in r.name or r.id.startswith(word.upper()))]
    near = near or [names[name] for name in get_close_matches(word.lower(), names, 1, 0.7)]
    hint = f"did you mean {near[0].id} {near[0].name}?" if near else "`ggufnorm rules` lists them"
    return f"{word!r} is {what}: {hint}"
