"""``ggufnorm compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggufnorm.cli import INTERRUPTED
from ggufnorm.cli.models import all_models, model_arguments
from ggufnorm.cli.options import (
    crossed_thresholds,
    engine_options,
    side_of,
    side_options,
    tell_crossed,
    threshold_options,
)
from ggufnorm.cli.output import FORMATS, choose_format, emit, output_options
from ggufnorm.cli.progress import progress_bar


@click.command("compare")
@model_arguments("REF", "QUANT")
@engine_options
@side_options({"": "of the model"})
@threshold_options
@output_options(*FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    threads: int | None,
    gpu_layers: int,
    no_memory_check: bool,
    max_kld: float | None,
    min_top1: float | None,
    fmt: str | None,
    output: Path | None,
    **side: Any,
) -> int:
    """Show where QUANT parts from REF: two traces, or a trace and a GGUF model.

    A model is run on the tokens of the trace. REF is right by definition. Only
    cumulative drift can be told; for an operation's own error give two models to drift.
    """
    ref, quant = all_models(models, hf_repos, "REF", "QUANT")
    fmt = choose_format(fmt, output)
    from ggufnorm.tracing.run import compare, is_model

    if is_model(ref) and is_model(quant):
        raise click.UsageError(f"both are models: use ggufnorm drift {ref} {quant}")
    with progress_bar("compare") as show:
        report = compare(
            ref,
            quant,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            options=side_of(side),
            check_memory=not no_memory_check,
            on_progress=show,
        )
    emit(report, fmt, output)
    if report.run.n_chunks < report.run.n_chunks_planned:
        click.echo("interrupted: the report covers the chunks that were run", err=True)
        return INTERRUPTED
    return tell_crossed(crossed_thresholds(report, max_kld, min_top1))
