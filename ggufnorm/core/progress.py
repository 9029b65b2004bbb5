"""How far a long run is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: the current step, for a person.
        done: units (chunks, files) finished.
        total: units in all, 0 before that is known.
        tokens_per_second: over the units finished; 0 before the first.
        seconds_left: estimate; None before the first unit is finished.
        warning: whether ``phase`` is a warning.
        note: whether ``phase`` is to be shown even where no bar is.
    """

    phase: str
    done: int = 0
    total: int = 0
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    warning: bool = False
    note: bool = False

    @property
    def speed(self) -> str:
        """The speed for a person."""
        return f"{self.tokens_per_second:,.0f} tokens/s"


def duration(seconds: float) -> str:
    """Seconds for a person: ``12 s``, ``3 min``, ``2.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(n_bytes: float) -> str:
    """Bytes for a person: ``12 MB``, ``3.5 GB``."""
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.1f} GB"


OnProgress = Callable[[Progress], None]
"""Called as a run goes on."""


def no_progress(_progress: Progress) -> None:
    """Show nothing."""
