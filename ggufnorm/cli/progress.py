"""Progress of a drift run on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import click

from ggufnorm.comparison.run import Progress


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[Progress], None]]:
    """A callback that shows a bar with speed and time left, if stderr is a terminal.

    Elsewhere it says once what is being done.
    """
    with ExitStack() as stack:
        bar = None
        if not sys.stderr.isatty():
            click.echo(f"{label} …", err=True)

        def show(progress: Progress) -> None:
            nonlocal bar
            if progress.warning:
                click.secho(f"warning: {progress.phase}", fg="yellow", err=True)
                return
            if progress.note:
                clear = "\r\x1b[K" if sys.stderr.isatty() else ""
                click.echo(f"{clear}{label}: {progress.phase}", err=True)
                return
            if not sys.stderr.isatty():
                return
            if progress.total == 0:
                click.echo(f"\r\x1b[K{label}: {progress.phase} …", err=True, nl=False)
                return
            if bar is None:
                click.echo("\r\x1b[K", err=True, nl=False)
                bar = stack.enter_context(
                    click.progressbar(
                        length=progress.total,
                        label=label,
                        file=sys.stderr,
                        show_pos=True,
                        item_show_func=lambda p: p and f"{p.tokens_per_second:,.0f} tokens/s",
                    )
                )
            bar.update(progress.done - bar.pos, progress)

        yield show
