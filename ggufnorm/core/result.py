"""What every result can do by itself: shorthands for the package's functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os


class Result:
    """Base of what a command or a call gives: a frozen dataclass of plain data.

    The package is imported when a method is called: this layer knows nothing of reports.
    """

    def save(self, path: str | os.PathLike[str]) -> None:
        """As :func:`ggufnorm.save`."""
        import ggufnorm

        ggufnorm.save(self, path)

    def to_dataframe(self, part: str | None = None) -> Any:
        """As :func:`ggufnorm.to_dataframe`."""
        import ggufnorm

        return ggufnorm.to_dataframe(self, part)

    def _repr_html_(self) -> str:
        """What a notebook shows: the report without its charts, a few kilobytes."""
        import ggufnorm

        fragment: str = ggufnorm.to_fragment(self)
        return fragment
