"""``ggufnorm quants``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ggufnorm.cli.models import at_least_one, model_arguments, require_kinds
from ggufnorm.cli.options import (
    crossed_logits,
    engine_options,
    read_text,
    resume_option,
    side_of,
    side_options,
    tell_crossed,
    tell_cut,
    text_options,
    threshold_options,
    time_option,
)
from ggufnorm.cli.output import FORMATS, choose_format, emit, output_options, require_outputs
from ggufnorm.cli.process import complain
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.printable import printable
from ggufnorm.errors import InputError


@click.command("quants")
@model_arguments("REF", "QUANT...")
@text_options
@click.option(
    "--chat", "chat_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.jsonl",
    help="Chats to run instead of a text, rendered with the chat template of REF; the tokens of"
    " the assistant are scored.",
)  # fmt: skip
@click.option(
    "--card", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.md",
    help="Also write the table alone, in Markdown, for a model card.",
)  # fmt: skip
@engine_options
@side_options({"": "in all models"})
@resume_option
@time_option
@threshold_options
@output_options(*FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    text_file: Path | None,
    chat_file: Path | None,
    card: Path | None,
    ctx_size: int,
    chunks: int | None,
    threads: int | None,
    gpu_layers: GpuLayers | None,
    resume: Path | None,
    budget: float | None,
    no_memory_check: bool,
    max_kld: float | None,
    min_top1: float | None,
    fmt: str | None,
    output: Path | None,
    **side: Any,
) -> int:
    """Measure several quantizations beside one reference: which is best at which size?

    REF is decoded once, and each QUANT beside it, without a look inside the models (see drift).
    Sizes, types, KL divergence, top token, perplexity and speed become one table. Files are
    ranked only where the text tells them apart.

    REF among the QUANTs is passed over, so that a pattern may name all files of a folder. A file
    that cannot be measured is reported, and the others still are.
    """
    locations = at_least_one(models, hf_repos)
    if len(locations) < 2:
        raise click.UsageError("missing QUANT")
    require_kinds(locations)
    if text_file is not None and chat_file is not None:
        raise click.UsageError("--chat does not go with -f")
    fmt = choose_format(fmt, output)
    require_outputs(output, card, resume, reading=[*locations, text_file, chat_file])
    from ggufnorm import api

    with progress_bar("quants") as show:
        report = api.quants(
            locations[0],
            locations[1:],
            text=None if text_file is None else read_text(text_file),
            text_name=str(text_file),
            chat=chat_file,
            n_ctx=ctx_size,
            chunks=chunks,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            options=side_of(side),
            resume=resume,
            budget=budget,
            check_memory=not no_memory_check,
            on_progress=show,
        )
    for skipped in report.failed:
        complain(f"error: {printable(skipped.reason)}", fg="red")
    if card is not None:
        from ggufnorm.formats.output import write_text
        from ggufnorm.report.markdown import table_lines
        from ggufnorm.report.views.quants import card as card_of

        write_text("\n".join(table_lines(card_of(report))) + "\n", card)
    emit(report, fmt, output)
    crossed = [
        f"{printable(file.model.path)}: {line}"
        for file in report.files
        for line in crossed_logits(file.logits, max_kld, min_top1)
    ]
    ended = tell_cut(report.run.cut)
    return ended or (InputError.exit_code if report.failed else tell_crossed(crossed))
