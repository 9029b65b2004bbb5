"""The order that llama.cpp's converter gives each tensor, where it is not the source's.

Architecture and role are shell patterns; the first match counts. Made of ``modify_tensors``
in ``conversion/*.py``, and held against what that converter writes.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from ggufnorm.analysis.audit.source.arrange import Steps

_INTERLEAVED: Steps = ("heads interleaved",)

_ORDERS: tuple[tuple[str, str, Steps], ...] = ()
"""Filled in below."""


def expected_orders(architecture: str, role: str) -> tuple[Steps, ...]:
    """The orders that the converter may give a tensor, the usual one first."""
    found = [s for a, r, s in _ORDERS if fnmatchcase(architecture, a) and fnmatchcase(role, r)]
    return tuple(found) or ((),)


def is_verified(architecture: str) -> bool:
    """Whether the orders of an architecture were held against llama.cpp's own converter."""
    return architecture in _VERIFIED


_VERIFIED: frozenset[str] = frozenset()
