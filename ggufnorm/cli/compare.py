"""``ggufnorm compare``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufnorm.cli.models import all_models, at_least_one, model_arguments, require_kinds
from ggufnorm.cli.options import (
    crossed_logits,
    crossed_sites,
    crossed_thresholds,
    engine_options,
    read_text,
    refuse,
    resume_option,
    side_of,
    side_options,
    tell_crossed,
    tell_cut,
    threshold_options,
    time_option,
)
from ggufnorm.cli.output import (
    FORMATS,
    choose_format,
    emit,
    output_options,
    require_outputs,
)
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.frameworks import FrameworksReport

if TYPE_CHECKING:
    from ggufnorm.runs.options import SideOptions

_ACROSS_ONLY = ("text_file", "n_tokens", "image", "max_rel", "trust_remote_code")
_INEXACT = (
    "flash_attn", "cache_type_k", "cache_type_v", "extra_bufts", "unfused_norms", "ubatch_size",
)  # fmt: skip
_TEXT_ONLY = ("text_file", "n_tokens", "max_kld", "min_top1")


@click.command("compare")
@model_arguments("REF", "QUANT...")
@click.option(
    "-f", "--file", "text_file", type=click.Path(path_type=Path),
    help="Text to run in all frameworks.  [default: bundled]",
)  # fmt: skip
@click.option(
    "--tokens", "n_tokens", type=click.IntRange(2, 512),
    help="Tokens of the text to run.  [default: 127]",
)  # fmt: skip
@click.option(
    "--image", type=click.Path(path_type=Path),
    help="Image to run through the image encoders.  [default: generated]",
)  # fmt: skip
@click.option(
    "--trust-remote-code", is_flag=True, help="Run Python files that come with a checkpoint."
)
@click.option(
    "--max-rel", type=click.FloatRange(min=0),
    help="Exit 1 if the relative L2 error of a norm's or the model's output exceeds this.",
)  # fmt: skip
@resume_option
@time_option
@engine_options
@side_options({"": "in GGUF models"})
@threshold_options
@output_options(*FORMATS)
@click.pass_context
def command(
    context: click.Context,
    /,
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    fmt: str | None,
    output: Path | None,
    **options: Any,
) -> int:
    """Show where QUANT diverges from the reference REF.

    REF and QUANT are two traces, or a trace and a GGUF or ONNX model, which is run on the
    tokens of the trace. This measures cumulative error only; for the local error of each
    operation, run drift on the two models.

    Or REF is the source in another framework, a checkpoint hf:FOLDER or a model.onnx, and
    each QUANT is a GGUF model or a model.onnx. All run the same tokens, every norm is
    compared, and the first wrong one is reported with the cause. If one of them is an
    mmproj.gguf, the image encoders are compared on the same pixels.
    """
    from ggufnorm import api

    locations = at_least_one(models, hf_repos)
    read = [*locations, options["text_file"], options["image"]]
    require_outputs(output, options["resume"], reading=read)
    how = api.compared_by(*locations)
    if how == "traces":
        refuse(context, _ACROSS_ONLY, "does not go with traces")
        all_models(models, hf_repos, "REF", "QUANT")
    else:
        refuse(context, ("resume", "budget"), "does not go with hf: and .onnx")
        refuse(context, _INEXACT, "does not go with hf: and .onnx: llama.cpp runs exactly there")
        if options["image"] is not None:
            refuse(context, _TEXT_ONLY, "does not go with --image")
        if len(locations) < 2:
            all_models(models, hf_repos, "REF", "QUANT")
        require_kinds(locations)
    fmt = choose_format(fmt, output)
    file: Path | None = options["text_file"]
    with progress_bar("compare") as show:
        report = api.compare(
            *locations,
            text=None if file is None else read_text(file),
            text_name=str(file),
            n_tokens=options["n_tokens"],
            image=options["image"],
            n_threads=options["threads"],
            n_gpu_layers=options["gpu_layers"],
            options=_side_of(options, is_exact=how != "traces"),
            resume=options["resume"],
            budget=options["budget"],
            trust_remote_code=options["trust_remote_code"],
            check_memory=not options["no_memory_check"],
            on_progress=show,
        )
    emit(report, fmt, output)
    limits = options["max_kld"], options["min_top1"]
    if isinstance(report, FrameworksReport):
        lines = crossed_sites(report, options["max_rel"])
        for compared in report.comparisons:
            lines += crossed_logits(compared.logits, *limits)
        return tell_crossed(lines)
    ended = tell_cut(report.run.cut)
    return ended or tell_crossed(crossed_thresholds(report, *limits))


def _side_of(options: Mapping[str, Any], *, is_exact: bool) -> SideOptions:
    """llama.cpp's options; across frameworks without a variable's batch size, which is exact."""
    found = side_of(options)
    return replace(found, n_ubatch=type(found).n_ubatch) if is_exact else found
