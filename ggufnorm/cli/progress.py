"""Progress of a run on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import click

from ggufnorm.core.printable import printable

_MOST_UPDATES = 400
"""A bar is drawn so often at most: drawing takes the interpreter from who works."""


class Progress(Protocol):
    """How far something is: what the bar needs of it."""

    @property
    def phase(self) -> str:
        """What is being done, for a person."""

    @property
    def done(self) -> int:
        """Steps that are finished."""

    @property
    def total(self) -> int:
        """Steps in all, 0 before that is known."""

    @property
    def speed(self) -> str:
        """The speed for a person."""

    @property
    def warning(self) -> bool:
        """Whether ``phase`` is a warning."""

    @property
    def note(self) -> bool:
        """Whether ``phase`` is to be told even where no bar is shown."""


@contextmanager
def progress_bar(label: str, *, show_position: bool = True) -> Iterator[Callable[[Progress], None]]:
    """A callback that shows a bar with speed and time left, if stderr is a terminal.

    Elsewhere it says once what is being done.

    Args:
        label: stands before the bar.
        show_position: behind it stands ``done/total``, or else a percentage.
    """
    with ExitStack() as stack:
        bar = None
        live = sys.stderr is not None and sys.stderr.isatty()
        if not live:
            click.echo(f"{label} …", err=True)

        def show(progress: Progress) -> None:
            nonlocal bar
            phase = printable(progress.phase)
            if progress.warning:
                click.secho(f"warning: {phase}", fg="yellow", err=True)
                return
            if progress.note:
                clear = "\r\x1b[K" if live else ""
                click.echo(f"{clear}{label}: {phase}", err=True)
                return
            if not live:
                return
            if progress.total == 0:
                click.echo(f"\r\x1b[K{label}: {phase} …", err=True, nl=False)
                return
            if bar is None:
                click.echo("\r\x1b[K", err=True, nl=False)
                bar = stack.enter_context(
                    click.progressbar(
                        length=progress.total,
                        label=label,
                        file=sys.stderr,
                        show_pos=show_position,
                        item_show_func=lambda p: p and p.speed,
                    )
                )
            step = progress.done - bar.pos
            if progress.done == progress.total or step * _MOST_UPDATES >= progress.total:
                bar.update(step, progress)

        yield show
