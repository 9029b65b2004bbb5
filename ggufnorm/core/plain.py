"""Frozen dataclasses to plain JSON-like data and back."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists, NaN and infinities to None (JSON has none)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(kind: type[T], data: Any) -> T:
    """The inverse of :func:`to_plain` for a dataclass of that type.

    Raises:
        ValueError: the data does not fit the type.
    """
    result: T = _decode(kind, data)
    return result


def _decode(kind: Any, data: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin in (Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return _decode(next(a for a in arguments if a is not type(None)), data)
    if origin is Literal and data in arguments:
        return data
    if origin is tuple and isinstance(data, list):
        return tuple(_decode(arguments[0], v) for v in data)
    if origin is dict and isinstance(data, dict):
        return {k: _decode(arguments[1], v) for k, v in data.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(data, dict):
        hints = get_type_hints(kind)
        fields = [f.name for f in dataclasses.fields(kind)]
        missing = [n for n in fields if n not in data]
        if missing:
            raise ValueError(f"{kind.__name__} lacks {', '.join(missing)}")
        return kind(**{n: _decode(hints[n], data[n]) for n in fields})
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if isinstance(kind, type) and isinstance(data, kind):
        return data
    raise ValueError(f"{data!r} does not fit {kind}")
