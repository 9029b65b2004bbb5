"""The verbs: ``ggufnorm.inspect`` … ``ggufnorm.compare``.

The command line calls these functions too. Each looks at the kinds of its locations
(:mod:`ggufnorm.formats.forms`), sends a user on who wants another verb
(:mod:`ggufnorm.verbs.kinds`), and calls :mod:`ggufnorm.analysis`. A verb is imported when it
is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggufnorm.analysis.attribution.recipe import recipe as recipe
    from ggufnorm.analysis.attribution.run import attribute as attribute
    from ggufnorm.analysis.crosscheck.run import compare_frameworks as compare_frameworks
    from ggufnorm.analysis.diff.run import diff as diff
    from ggufnorm.analysis.drift.run import drift as drift
    from ggufnorm.analysis.preprocessing.audio.run import audio as audio
    from ggufnorm.analysis.preprocessing.image.run import pixels as pixels
    from ggufnorm.verbs.files import audit as audit
    from ggufnorm.verbs.files import inspect as inspect
    from ggufnorm.verbs.runs import compare as compare
    from ggufnorm.verbs.runs import compared_by as compared_by
    from ggufnorm.verbs.runs import trace as trace

_HOMES = {
    "attribute": "ggufnorm.analysis.attribution.run",
    "audio": "ggufnorm.analysis.preprocessing.audio.run",
    "audit": "ggufnorm.verbs.files",
    "compare": "ggufnorm.verbs.runs",
    "compare_frameworks": "ggufnorm.analysis.crosscheck.run",
    "compared_by": "ggufnorm.verbs.runs",
    "diff": "ggufnorm.analysis.diff.run",
    "drift": "ggufnorm.analysis.drift.run",
    "inspect": "ggufnorm.verbs.files",
    "pixels": "ggufnorm.analysis.preprocessing.image.run",
    "recipe": "ggufnorm.analysis.attribution.recipe",
    "trace": "ggufnorm.verbs.runs",
}

_OF_TWO_GGUF = ("attribute", "diff", "drift", "recipe")
"""Verbs whose first two arguments are GGUF models."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = _checked(name, found) if name in _OF_TWO_GGUF else found
    return globals()[name]


def _checked(verb: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which first looks at the kinds of its first two arguments."""
    from ggufnorm.verbs.kinds import require_kinds

    first_two = list(signature(function).parameters)[:2]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(first_two, args, strict=False)), **kwargs}
        require_kinds(verb, *(given[name] for name in first_two if name in given))
        return function(*args, **kwargs)

    return call
