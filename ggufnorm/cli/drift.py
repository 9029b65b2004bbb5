"""``ggufnorm drift``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufnorm.cli.devices import layers_option
from ggufnorm.cli.models import all_models, model_arguments
from ggufnorm.cli.options import (
    LLAMA_ONLY,
    crossed_onnx,
    crossed_thresholds,
    engine_options,
    found_build,
    given,
    read_text,
    refuse,
    resume_option,
    side_of,
    side_options,
    tell_crossed,
    tell_cut,
    text_options,
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
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.engine import GpuLayers
from ggufnorm.errors import ConfigError
from ggufnorm.formats.forms import parse

if TYPE_CHECKING:
    from ggufnorm.runs.watch import Watch

_ONNX_ONLY = ("inputs", "max_rel")
_GGUF_ONLY = (
    *LLAMA_ONLY, *(f"ref_{name}" for name in LLAMA_ONLY), "floor", "watch", "local",
    "recompute_rows", "resume", "budget",
    "no_memory_check", "max_kld", "min_top1", "issue",
)  # fmt: skip


@click.command("drift")
@model_arguments("REF", "QUANT")
@text_options
@engine_options
@side_options({"ref-": "in the reference", "": "in the model under test"})
@click.option(
    "--ref-llama-cpp", type=click.Path(path_type=Path), metavar="PLACE", callback=found_build,
    help="Run the reference in this build of llama.cpp, and the model under test in that of"
    " --llama-cpp: two processes, in lockstep.",
)  # fmt: skip
@layers_option("ref-")
@click.option(
    "--floor",
    is_flag=True,
    help="Also run the reference against itself, to measure the engine's own noise.",
)
@click.option(
    "--watch", type=click.Choice(["all", "norms", "residual", "none"]), default="all",
    show_default=True,
    help="What to compare: every operation, inputs and results of norms, the residual stream, or"
    " the predictions alone, at the price of two plain runs.",
)  # fmt: skip
@click.option(
    "--local/--no-local", default=True,
    help="Run QUANT once more, pinned to REF's values, to tell each operation's own error.",
)  # fmt: skip
@click.option(
    "--recompute-rows", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
    help="Tokens of each batch for which norms are recomputed in NumPy where values lie on a GPU;"
    " on the CPU it is all of them.",
)  # fmt: skip
@click.option(
    "--image", "images", multiple=True, type=click.Path(path_type=Path),
    help="Picture to run through two versions of an image encoder (mmproj); may be repeated."
    "  [default: generated]",
)  # fmt: skip
@click.option(
    "--sound", "sounds", multiple=True, type=click.Path(path_type=Path),
    help="WAV file to run through two versions of an audio encoder (mmproj); may be repeated."
    "  [default: generated]",
)  # fmt: skip
@resume_option
@time_option
@click.option(
    "--max-local", type=click.FloatRange(min=0),
    help="Exit 1 if the local error (relative L2) of an operation exceeds this.",
)  # fmt: skip
@threshold_options
@click.option(
    "--inputs", type=click.Path(path_type=Path),
    help="Inputs of two ONNX models: an .npz with an array for each, or a single .npy.",
)  # fmt: skip
@click.option(
    "--max-rel", type=click.FloatRange(min=0),
    help="Exit 1 if the relative L2 error of an ONNX model's output exceeds this.",
)  # fmt: skip
@click.option(
    "--issue", type=click.Path(dir_okay=False, path_type=Path),
    help="Of one file in two engines: write what can be pasted into an issue of llama.cpp, without"
    " paths, names and text.",
)  # fmt: skip
@output_options(*FORMATS)
@click.pass_context
def command(
    context: click.Context,
    /,
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    text_file: Path | None,
    ctx_size: int,
    chunks: int | None,
    threads: int | None,
    gpu_layers: GpuLayers | None,
    floor: bool,
    watch: Watch,
    local: bool,
    recompute_rows: int,
    ref_llama_cpp: str | None,
    ref_gpu_layers: GpuLayers | None,
    images: tuple[Path, ...],
    sounds: tuple[Path, ...],
    resume: Path | None,
    budget: float | None,
    no_memory_check: bool,
    max_local: float | None,
    max_kld: float | None,
    min_top1: float | None,
    inputs: Path | None,
    max_rel: float | None,
    issue: Path | None,
    fmt: str | None,
    output: Path | None,
    **sides: Any,
) -> int:
    """Run two versions of a model on the same input and show where they diverge.

    REF is the reference; QUANT is the same network, quantized or converted differently.
    Both run in llama.cpp, in lockstep, node by node. They must be on this machine: paths
    (any shard of a split model), ollama:name, or hf://org/repo/file.gguf once downloaded.

    Two .onnx models run in ONNX Runtime: each operation of QUANT gets the input that REF gives
    it, and settings of the quantizer that would help are tried and measured. Two mmproj files are
    run on pictures (--image) or sounds (--sound): what quantization costs an encoder.
    """
    ref, quant = all_models(models, hf_repos, "REF", "QUANT")
    fmt = choose_format(fmt, output)
    reading = [ref, quant, text_file, inputs, *images, *sounds]
    require_outputs(output, resume, issue, reading=reading)
    from ggufnorm import api

    if parse(ref).engine == "onnxruntime":
        refuse(context, _GGUF_ONLY, "does not go with .onnx")
        return _drift_onnx(
            ref,
            quant,
            inputs=inputs,
            text_file=text_file,
            n_ctx=ctx_size if given(context, ("ctx_size",)) else None,
            chunks=chunks,
            threads=threads,
            limits=(max_local, max_rel),
            fmt=fmt,
            output=output,
        )
    refuse(context, _ONNX_ONLY, "goes with .onnx only")
    if watch != "all" or not local:
        refuse(context, ("max_local",), "needs the own errors of --watch all --local")
    text = None if text_file is None else read_text(text_file)
    with progress_bar("drift") as show:
        report = api.drift(
            ref,
            quant,
            images=images,
            sounds=sounds,
            text=text,
            text_name=str(text_file),
            n_ctx=ctx_size,
            chunks=chunks,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            options=side_of(sides),
            options_ref=replace(
                side_of(sides, "ref_"), llama_cpp=ref_llama_cpp, n_gpu_layers=ref_gpu_layers
            ),
            floor=floor,
            watch=watch,
            local=local,
            recompute_rows=recompute_rows,
            resume=resume,
            budget=budget,
            check_memory=not no_memory_check,
            on_progress=show,
        )
    emit(report, fmt, output)
    if issue is not None:
        _write_issue(report, issue)
    ended = tell_cut(report.run.cut)
    return ended or tell_crossed(crossed_thresholds(report, max_kld, min_top1, max_local))


def _write_issue(report: DriftReport, target: Path) -> None:
    """Write what an issue of llama.cpp needs.

    Raises:
        ConfigError: the report is not of one file in two engines.
    """
    from ggufnorm.formats.output import write_text
    from ggufnorm.report.views.kernels import issue_text

    if not report.kernels:
        raise ConfigError(
            "--issue goes with one file in two engines (other builds, devices or kernels): nothing"
            f" was written to {target}"
        )
    write_text(issue_text(report), target)


def _drift_onnx(
    ref: str,
    quant: str,
    *,
    inputs: Path | None,
    text_file: Path | None,
    n_ctx: int | None,
    chunks: int | None,
    threads: int | None,
    limits: tuple[float | None, float | None],
    fmt: str,
    output: Path | None,
) -> int:
    from ggufnorm import api

    with progress_bar("drift") as show:
        report = api.drift_onnx(
            ref,
            quant,
            inputs=inputs,
            text=None if text_file is None else read_text(text_file),
            text_name=str(text_file),
            n_ctx=n_ctx,
            chunks=chunks,
            n_threads=threads,
            on_progress=show,
        )
    emit(report, fmt, output)
    return tell_crossed(crossed_onnx(report, *limits))
