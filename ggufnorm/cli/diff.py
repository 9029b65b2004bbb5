"""``ggufnorm diff``."""

from __future__ import annotations

from pathlib import Path

import click

from ggufnorm.cli.models import all_models, model_arguments
from ggufnorm.cli.output import (
    FORMATS,
    choose_format,
    emit,
    output_options,
    require_outputs,
)
from ggufnorm.cli.progress import progress_bar


@click.command("diff")
@model_arguments("A", "B")
@click.option("-t", "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option("--fail-on-norms", is_flag=True, help="Exit 1 unless all norms are identical.")
@output_options(*FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    threads: int | None,
    fail_on_norms: bool,
    fmt: str | None,
    output: Path | None,
) -> int:
    """Compare two GGUF models tensor by tensor, without running them.

    Norms are compared bit for bit. All other tensors are dequantized, and errors are
    relative to A. Metadata that affect the computation are listed apart from the rest.
    """
    a, b = all_models(models, hf_repos, "A", "B")
    fmt = choose_format(fmt, output)
    require_outputs(output, reading=[a, b])
    from ggufnorm import api

    with progress_bar("diff", show_position=False) as show:
        report = api.diff(a, b, n_threads=threads, on_progress=show)
    emit(report, fmt, output)
    changed = sum(n.n_differing > 0 for n in report.norms)
    if fail_on_norms and changed:
        click.secho(f"--fail-on-norms: {changed} norm tensors differ", fg="red", err=True)
        return 1
    return 0
