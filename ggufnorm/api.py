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
    from ggufnorm.analysis.audit.fix import fix as fix
    from ggufnorm.analysis.crosscheck.run import compare_frameworks as compare_frameworks
    from ggufnorm.analysis.diff.run import diff as diff
    from ggufnorm.analysis.drift.onnx.run import drift_onnx as drift_onnx
    from ggufnorm.analysis.drift.run import drift as drift
    from ggufnorm.analysis.preprocessing.audio.run import audio as audio
    from ggufnorm.analysis.preprocessing.image.run import pixels as pixels
    from ggufnorm.analysis.quants.run import quants as quants
    from ggufnorm.analysis.verify.run import verify as verify
    from ggufnorm.verbs.check import check as check
    from ggufnorm.verbs.files import audit as audit
    from ggufnorm.verbs.files import audit_each as audit_each
    from ggufnorm.verbs.files import inspect as inspect
    from ggufnorm.verbs.runs import compare as compare
    from ggufnorm.verbs.runs import compared_by as compared_by
    from ggufnorm.verbs.runs import trace as trace

_HOMES = {
    "attribute": "ggufnorm.analysis.attribution.run",
    "audio": "ggufnorm.analysis.preprocessing.audio.run",
    "audit": "ggufnorm.verbs.files",
    "audit_each": "ggufnorm.verbs.files",
    "check": "ggufnorm.verbs.check",
    "compare": "ggufnorm.verbs.runs",
    "compare_frameworks": "ggufnorm.analysis.crosscheck.run",
    "compared_by": "ggufnorm.verbs.runs",
    "diff": "ggufnorm.analysis.diff.run",
    "drift": "ggufnorm.analysis.drift.run",
    "drift_onnx": "ggufnorm.analysis.drift.onnx.run",
    "fix": "ggufnorm.analysis.audit.fix",
    "inspect": "ggufnorm.verbs.files",
    "pixels": "ggufnorm.analysis.preprocessing.image.run",
    "quants": "ggufnorm.analysis.quants.run",
    "recipe": "ggufnorm.analysis.attribution.recipe",
    "trace": "ggufnorm.verbs.runs",
    "verify": "ggufnorm.analysis.verify.run",
}

_OF_GGUF = {"attribute": 2, "diff": 2, "drift": 2, "fix": 1, "quants": 1, "recipe": 2, "verify": 2}
"""Verbs whose first arguments are GGUF models, and how many are."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = _checked(name, found) if name in _OF_GGUF else found
    return globals()[name]


def _checked(verb: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which first looks at the kinds of its first arguments."""
    from ggufnorm.verbs.kinds import require_kinds

    first = list(signature(function).parameters)[: _OF_GGUF[verb]]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(first, args, strict=False)), **kwargs}
        locations = [given[name] for name in first if name in given]
        require_kinds(verb, *locations)
        if verb == "drift":
            _require_gguf(locations)
        return function(*args, **kwargs)

    return call


def _require_gguf(locations: list[Any]) -> None:
    """The command takes ONNX too; its result is of another type, and so is another function's."""
    from ggufnorm.errors import InputError
    from ggufnorm.formats.forms import parse

    for location in locations:
        if parse(location).kind == "onnx":
            raise InputError(f"{location} is an ONNX model: use ggufnorm.drift_onnx")
