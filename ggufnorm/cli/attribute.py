"""``ggufnorm attribute``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggufnorm.cli import INTERRUPTED
from ggufnorm.cli.models import all_models, model_arguments
from ggufnorm.cli.options import (
    Duration,
    Share,
    engine_options,
    read_text,
    resume_option,
    side_of,
    side_options,
    text_options,
)
from ggufnorm.cli.output import (
    FORMATS,
    choose_format,
    emit,
    output_options,
    require_outputs,
)
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.attribution import By
from ggufnorm.core.engine import GpuLayers


@click.command("attribute")
@model_arguments("REF", "QUANT")
@click.option(
    "--by", default="tensor", show_default=True, type=click.Choice(("tensor", "layer", "role")),
    help="Unit to attribute the divergence to.",
)  # fmt: skip
@click.option(
    "--rest", default="5%", show_default=True, type=Share(),
    help="Do not measure the tensors of layers that together contribute at most this share.",
)  # fmt: skip
@click.option(
    "--budget", default="10m", show_default=True, type=Duration(),
    help="Time limit (90s, 10m, 2h), kept by running less text and fewer tensors.",
)  # fmt: skip
@click.option(
    "--no-norms", is_flag=True, help="Skip the runs in which the input of a norm is restored."
)
@resume_option
@text_options
@engine_options
@side_options({"": "in both models"})
@output_options(*FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    by: By,
    rest: float,
    budget: float,
    no_norms: bool,
    resume: Path | None,
    text_file: Path | None,
    ctx_size: int,
    chunks: int | None,
    threads: int | None,
    gpu_layers: GpuLayers | None,
    no_memory_check: bool,
    fmt: str | None,
    output: Path | None,
    **side: Any,
) -> int:
    """Attribute the KL divergence between REF and QUANT to the tensors of QUANT.

    For each tensor, REF runs with one patch: the activations that QUANT's tensor computes
    from REF's own inputs. The KL divergence that the patch causes is the tensor's share.
    """
    ref, quant = all_models(models, hf_repos, "REF", "QUANT")
    fmt = choose_format(fmt, output)
    require_outputs(output, resume, reading=[ref, quant, text_file])
    from ggufnorm import api

    text = None if text_file is None else read_text(text_file)
    with progress_bar("attribute", show_position=False) as show:
        report = api.attribute(
            ref,
            quant,
            by=by,
            rest=rest,
            budget=budget,
            norms=not no_norms,
            text=text,
            text_name=str(text_file),
            n_ctx=ctx_size,
            chunks=chunks,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            options=side_of(side),
            resume=resume,
            check_memory=not no_memory_check,
            on_progress=show,
        )
    emit(report, fmt, output)
    if report.interrupted:
        click.echo("interrupted: the report covers what was measured", err=True)
        return INTERRUPTED
    return 0
