"""``ggufnorm doctor``."""

from __future__ import annotations

import click

from ggufnorm.cli.options import llama_cpp_option

_SIGNS = {"ok": ("✓", "green"), "absent": ("–", "yellow"), "broken": ("✗", "red")}


@click.command("doctor")
@llama_cpp_option
def command() -> int:
    """Show which packages are installed and work; include the output in bug reports.

    Exit codes: 0 all that is installed works, 1 something is broken.
    """
    from ggufnorm.doctor import examine

    broken = False
    for e in examine():
        sign, color = _SIGNS[e.state]
        click.echo(f"{click.style(sign, fg=color)} {e.what:<17}{e.found}")
        broken = broken or e.state == "broken"
    return int(broken)
