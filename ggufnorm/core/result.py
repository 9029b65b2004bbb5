"""What every result can do by itself: shorthands for the package's functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

_functions: dict[str, Callable[[], Callable[..., Any]]] = {}


def register(name: str, load: Callable[[], Callable[..., Any]]) -> None:
    """Say how a function that shows results is loaded, without loading it.

    The package registers ``save``, ``to_dataframe`` and ``to_fragment`` when it is imported, so
    that this layer imports none above it.

    Args:
        name: of the function.
        load: imports it.
    """
    _functions[name] = load


class Result:
    """Base of what a command or a call gives: a frozen dataclass of plain data."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """As :func:`ggufnorm.save`."""
        _functions["save"]()(self, path)

    def to_dataframe(self, part: str | None = None) -> Any:
        """As :func:`ggufnorm.to_dataframe`."""
        return _functions["to_dataframe"]()(self, part)

    def _repr_html_(self) -> str:
        """What a notebook shows: the report without its charts, a few kilobytes."""
        return str(_functions["to_fragment"]()(self))
