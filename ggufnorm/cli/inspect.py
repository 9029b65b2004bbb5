"""``ggufnorm inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from ggufnorm.cli.models import all_models, model_arguments
from ggufnorm.cli.output import choose_format, emit, output_options


@click.command("inspect")
@model_arguments("MODEL")
@output_options
def command(
    models: tuple[str, ...], hf_repos: tuple[str, ...], fmt: str | None, output: Path | None
) -> None:
    """List every norm of the GGUF model MODEL: kind, epsilon, shape, weights.

    MODEL is a path (any shard of a split model), https://…, hf://org/repo/file.gguf or
    ollama:name. Of a remote model only the header and the norms are fetched.
    """
    (model,) = all_models(models, hf_repos, "MODEL")
    fmt = choose_format(fmt, output)
    from ggufnorm.inspection import inspect

    emit(inspect(model), fmt, output)
