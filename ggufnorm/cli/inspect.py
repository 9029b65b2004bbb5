"""``ggufnorm inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from ggufnorm.cli.output import choose_format, emit, output_options


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@output_options
def command(model: Path, fmt: str | None, output: Path | None) -> None:
    """List every norm of the GGUF file MODEL: kind, epsilon, shape, weights."""
    fmt = choose_format(fmt, output)
    from ggufnorm.inspection import inspect

    emit(inspect(model), fmt, output)
