"""``ggufnorm compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ggufnorm.cli import INTERRUPTED
from ggufnorm.cli.models import all_models, at_least_one, model_arguments
from ggufnorm.cli.options import (
    crossed_logits,
    crossed_sites,
    crossed_thresholds,
    engine_options,
    read_text,
    side_of,
    side_options,
    tell_crossed,
    threshold_options,
)
from ggufnorm.cli.output import (
    FORMATS,
    choose_format,
    emit,
    output_options,
    require_outputs,
)
from ggufnorm.cli.progress import progress_bar

_ACROSS_ONLY = ("text_file", "n_tokens", "image", "max_rel", "trust_remote_code")
_TEXT_ONLY = ("text_file", "n_tokens", "max_kld", "min_top1")
_TRACES_ONLY = (
    "gpu_layers", "flash_attn", "cache_type_k", "cache_type_v", "extra_bufts", "unfused_norms",
)  # fmt: skip


@click.command("compare")
@model_arguments("REF", "QUANT...")
@click.option(
    "-f", "--file", "text_file", type=click.Path(path_type=Path),
    help="Text to run across frameworks.  [default: bundled]",
)  # fmt: skip
@click.option(
    "--tokens", "n_tokens", type=click.IntRange(2, 512),
    help="How many of its tokens.  [default: 127]",
)  # fmt: skip
@click.option(
    "--image", type=click.Path(path_type=Path),
    help="Picture to run through image encoders.  [default: generated]",
)  # fmt: skip
@click.option(
    "--trust-remote-code", is_flag=True, help="Run Python files that a checkpoint brings."
)
@click.option(
    "--max-rel", type=click.FloatRange(min=0),
    help="Exit 1 if a norm's result or the model's (relative L2) is further off.",
)  # fmt: skip
@engine_options
@side_options({"": "of the model"})
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
    """Show where QUANT parts from REF, which is right by definition.

    REF and QUANT are two traces, or a trace and a GGUF or ONNX model, which is run on the
    tokens of the trace. Only cumulative drift can be told; for an operation's own error give two
    models to drift.

    Or REF is the source in another framework, a checkpoint hf:FOLDER or a model.onnx, and
    each QUANT a GGUF model or a model.onnx: all run the same tokens, every norm is
    compared, and the first wrong one is named with its reason. With an mmproj.gguf among
    them the image encoders are compared, on the same pixels.
    """
    from ggufnorm.analysis.crosscheck.locations import kind_of

    locations = at_least_one(models, hf_repos)
    require_outputs(output, reading=[*locations, options["text_file"], options["image"]])
    if any(kind_of(location) for location in locations):
        _refuse(context, _TRACES_ONLY, "hf: and .onnx")
        if options["image"] is not None:
            _refuse(context, _TEXT_ONLY, "--image")
        if _is_onnx_and_trace(locations):
            _refuse(context, _ACROSS_ONLY, "traces")
            ref, quant = locations
            return _traces(ref, quant, choose_format(fmt, output), output, options)
        return _across(locations, choose_format(fmt, output), output, options)
    _refuse(context, _ACROSS_ONLY, "traces")
    ref, quant = all_models(models, hf_repos, "REF", "QUANT")
    return _traces(ref, quant, choose_format(fmt, output), output, options)


def _is_onnx_and_trace(locations: Sequence[str]) -> bool:
    from ggufnorm.analysis.crosscheck.locations import kind_of
    from ggufnorm.analysis.trace.run import is_model

    others = [location for location in locations if kind_of(location) != "onnx"]
    if len(locations) != 2 or len(others) != 1 or kind_of(others[0]) is not None:
        return False
    return not is_model(others[0])


def _refuse(context: click.Context, names: Sequence[str], what: str) -> None:
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if option.name in names and given:
            raise click.UsageError(f"{option.opts[-1]} does not go with {what}")


def _across(
    locations: Sequence[str], fmt: str, output: Path | None, options: dict[str, Any]
) -> int:
    from ggufnorm.analysis.crosscheck.run import compare_frameworks

    if len(locations) < 2:
        raise click.UsageError("missing QUANT")
    file: Path | None = options["text_file"]
    with progress_bar("compare") as show:
        report = compare_frameworks(
            locations[0],
            locations[1:],
            text=None if file is None else read_text(file),
            text_name=str(file),
            n_tokens=options["n_tokens"],
            image=options["image"],
            n_threads=options["threads"],
            trust_remote_code=options["trust_remote_code"],
            check_memory=not options["no_memory_check"],
            on_progress=show,
        )
    emit(report, fmt, output)
    lines = crossed_sites(report, options["max_rel"])
    for c in report.comparisons:
        lines += crossed_logits(c.logits, options["max_kld"], options["min_top1"])
    return tell_crossed(lines)


def _traces(ref: str, quant: str, fmt: str, output: Path | None, options: dict[str, Any]) -> int:
    from ggufnorm.analysis.trace.onnx import compare_with_onnx, is_onnx
    from ggufnorm.analysis.trace.run import compare, is_model

    if is_model(ref) and is_model(quant):
        raise click.UsageError(f"both are models: use ggufnorm drift {ref} {quant}")
    with progress_bar("compare") as show:
        if is_onnx(ref) or is_onnx(quant):
            report = compare_with_onnx(ref, quant, n_threads=options["threads"], on_progress=show)
        else:
            report = compare(
                ref,
                quant,
                n_threads=options["threads"],
                n_gpu_layers=options["gpu_layers"],
                options=side_of(options),
                check_memory=not options["no_memory_check"],
                on_progress=show,
            )
    emit(report, fmt, output)
    if report.run.n_chunks < report.run.n_chunks_planned:
        click.echo("interrupted: the report covers the chunks that were run", err=True)
        return INTERRUPTED
    return tell_crossed(crossed_thresholds(report, options["max_kld"], options["min_top1"]))
