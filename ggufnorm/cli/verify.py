"""``ggufnorm verify``."""

from __future__ import annotations

from pathlib import Path

import click

from ggufnorm.cli.models import all_models, model_arguments, require_kinds
from ggufnorm.cli.output import FORMATS, choose_format, emit, output_options, require_outputs
from ggufnorm.cli.progress import progress_bar


@click.command("verify")
@model_arguments("QUANT")
@click.option(
    "--from", "source", required=True, metavar="SOURCE",
    help="The model that QUANT is said to be made of: F32, F16 or BF16, or a larger quant.",
)  # fmt: skip
@click.option(
    "--imatrix", type=click.Path(dir_okay=False, path_type=Path),
    help="The importance matrix that it was made with.",
)  # fmt: skip
@click.option(
    "--attest", type=click.Path(dir_okay=False, path_type=Path),
    help="Write an in-toto statement of it, to be signed elsewhere; only if all is verified.",
)  # fmt: skip
@click.option("-t", "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@output_options(*FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    source: str,
    imatrix: Path | None,
    attest: Path | None,
    threads: int | None,
    fmt: str | None,
    output: Path | None,
) -> int:
    """Tell whether a file is exactly what llama-quantize makes of another.

    Every tensor of QUANT is quantized again, to the type that it has there, and compared byte by
    byte. Nothing is written. llama.cpp's quantization changes now and then: a file of another
    release may differ in a few blocks.

    Exit codes: 0 all was made again bit for bit, 1 it was not, 2 usage error, 3 a file cannot be
    read.
    """
    (quant,) = all_models(models, hf_repos, "QUANT")
    require_kinds([quant, source])
    fmt = choose_format(fmt, output)
    require_outputs(output, attest, reading=[quant, source, imatrix])
    from ggufnorm import api

    with progress_bar("verify", show_position=False) as show:
        report = api.verify(quant, source, imatrix=imatrix, n_threads=threads, on_progress=show)
    emit(report, fmt, output)
    if attest is not None and report.is_derived:
        from ggufnorm.analysis.verify.attest import statement
        from ggufnorm.formats.output import write_text

        write_text(statement(report), attest)
    return int(not report.is_derived)
