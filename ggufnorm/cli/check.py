"""``ggufnorm check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggufnorm.cli.models import at_least_one, model_arguments
from ggufnorm.cli.options import engine_options, read_text, side_of, side_options
from ggufnorm.cli.output import FORMATS, choose_format, emit, output_options, require_outputs
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.engine import GpuLayers


@click.command("check")
@model_arguments("MODEL", "[EVIDENCE]...")
@click.option(
    "--source", metavar="SOURCE", help="The checkpoint that the model was converted from, a"
    " folder or hf://org/repo; a folder among EVIDENCE is taken for it."
)  # fmt: skip
@click.option(
    "--ref", metavar="MODEL", help="A better quant of the same model; a second GGUF model among"
    " EVIDENCE is taken for it."
)  # fmt: skip
@click.option(
    "-f", "--file", "text_file", type=click.Path(path_type=Path),
    help="Text to run.  [default: bundled]",
)  # fmt: skip
@click.option(
    "-c", "--ctx-size", default=512, show_default=True, type=click.IntRange(min=8),
    help="Tokens per chunk.",
)  # fmt: skip
@click.option(
    "--chunks", default=4, show_default=True, type=click.IntRange(min=1),
    help="Maximum number of chunks to run.",
)  # fmt: skip
@engine_options
@side_options({"": "as you run the model"})
@click.option("--all", "go_on", is_flag=True, help="Go on after a culprit is found.")
@output_options(*FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    source: str | None,
    ref: str | None,
    text_file: Path | None,
    ctx_size: int,
    chunks: int,
    threads: int | None,
    gpu_layers: GpuLayers | None,
    no_memory_check: bool,
    go_on: bool,
    fmt: str | None,
    output: Path | None,
    **sides: Any,
) -> int:
    """Find out who is to blame for a model that answers badly.

    Give MODEL and whatever is at hand: the checkpoint's folder, a better quant, its mmproj
    file, a text, your cache types (-ctk, -ctv). The cheapest steps run first; the table of
    suspects says who is guilty, who is cleared, and what nobody looked at.

    Exit codes: 0 nobody is found guilty, 1 somebody is, 2 usage error, 3 a file cannot be
    read, 130 interrupted.
    """
    fmt = choose_format(fmt, output)
    locations = at_least_one(models, hf_repos)
    require_outputs(output, reading=[*locations, source, ref, text_file])
    from ggufnorm import api

    text = None if text_file is None else read_text(text_file)
    with progress_bar("check") as show:
        report = api.check(
            *locations,
            source=source,
            ref=ref,
            text=text,
            text_name=str(text_file),
            n_ctx=ctx_size,
            chunks=chunks,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            options=side_of(sides),
            check_memory=not no_memory_check,
            go_on=go_on,
            on_progress=show,
        )
    emit(report, fmt, output)
    return report.exit_code
