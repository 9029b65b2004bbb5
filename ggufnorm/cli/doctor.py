"""``ggufnorm doctor``."""

from __future__ import annotations

import click

_SIGNS = {"ok": ("✓", "green"), "absent": ("–", "yellow"), "broken": ("✗", "red")}


@click.command("doctor")
def command() -> int:
    """Show what is installed and what works: the first thing to put into a bug report.

    Exit code 1 if something is installed and broken.
    """
    from ggufnorm.doctor import examine

    broken = False
    for e in examine():
        sign, color = _SIGNS[e.state]
        click.echo(f"{click.style(sign, fg=color)} {e.what:<17}{e.found}")
        broken = broken or e.state == "broken"
    return int(broken)
