"""Frozen dataclasses to plain JSON-like data and back."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import reprlib
import types
from collections.abc import Container
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_plain(value: Any, leave_out: Container[str] = ()) -> Any:
    """Dataclasses to dicts, tuples to lists, NaN and infinities to None (JSON has none).

    Args:
        value: to be turned.
        leave_out: names of fields to leave out, in dataclasses at any depth.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.name not in leave_out]
        return {name: to_plain(getattr(value, name), leave_out) for name in names}
    if isinstance(value, (tuple, list)):
        return [to_plain(v, leave_out) for v in value]
    if isinstance(value, dict):
        return {k: to_plain(v, leave_out) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(kind: type[T], data: Any) -> T:
    """The inverse of :func:`to_plain` for a dataclass of that type.

    A field that has a default may be missing; what the dataclass does not know is passed
    over. So data of an earlier and of a later version can be read.

    Raises:
        ValueError: the data does not fit the type.
    """
    result: T = _decode(kind, data, kind.__name__)
    return result


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (isinstance(origin, type) and origin.__name__ == "ndarray"):
        return data
    if origin in (Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        *others, last = (a for a in arguments if a is not type(None))
        for other in others:
            with contextlib.suppress(ValueError):
                return _decode(other, data, where)
        return _decode(last, data, where)
    if origin is Literal and data in arguments:
        return data
    if origin is tuple and isinstance(data, list):
        kinds = arguments
        if arguments[1:] == (Ellipsis,):
            kinds = arguments[:1] * len(data)
        if len(kinds) != len(data):
            raise ValueError(f"{where}: {len(data)} elements and not {len(kinds)}")
        return tuple(_decode(kind, data[i], f"{where}[{i}]") for i, kind in enumerate(kinds))
    if origin is dict and isinstance(data, dict):
        return {k: _decode(arguments[1], v, f"{where}[{k!r}]") for k, v in data.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(data, dict):
        return _decode_fields(kind, data, where)
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if kind is int and isinstance(data, bool):  # which Python takes for a number
        raise ValueError(f"{where}: {data!r} does not fit int")
    # Python 3.10 takes tuple[int, ...] for a type
    if origin is None and isinstance(kind, type) and isinstance(data, kind):
        return data
    raise ValueError(f"{where}: {reprlib.repr(data)} does not fit {_name(kind)}")


def _decode_fields(kind: Any, data: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    fields = dataclasses.fields(kind)
    missing = [f.name for f in fields if f.name not in data and not has_default(f)]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    given = {f.name: data[f.name] for f in fields if f.name in data}
    return kind(**{n: _decode(hints[n], v, f"{where}.{n}") for n, v in given.items()})


def has_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a dataclass can be made without this field."""
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
