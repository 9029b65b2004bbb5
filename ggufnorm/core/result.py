"""What every result can do by itself: shorthands for the package's functions."""

from __future__ import annotations

TYPE_CHECKING = False  # a Ctrl-C while typing is imported would be a traceback
if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Any

_load: Callable[[str], Any]


def register(load: Callable[[str], Any]) -> None:
    """Say how ``save``, ``to_dataframe`` and ``to_fragment`` are loaded, without loading them.

    The package registers itself when it is imported, so that this layer imports none above it.

    Args:
        load: imports a function of that name.
    """
    global _load  # noqa: PLW0603 (one package, registered once)
    _load = load


class Result:
    """Base of what a command or a call gives: a frozen dataclass of plain data."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """As :func:`ggufnorm.save`."""
        _load("save")(self, path)

    def to_dataframe(self, part: str | None = None) -> Any:
        """As :func:`ggufnorm.to_dataframe`."""
        return _load("to_dataframe")(self, part)

    def _repr_html_(self) -> str:
        """What a notebook shows: the report without its charts, a few kilobytes."""
        return str(_load("to_fragment")(self))
