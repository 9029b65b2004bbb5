"""``ggufnorm completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    For bash: `ggufnorm completion bash >> ~/.bashrc`. For fish:
    `ggufnorm completion fish > ~/.config/fish/completions/ggufnorm.fish`.
    """
    root = ctx.find_root().command
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(root, {}, "ggufnorm", "_GGUFNORM_COMPLETE").source())
