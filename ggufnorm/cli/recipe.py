"""``ggufnorm recipe``."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ggufnorm.cli.models import all_models, model_arguments
from ggufnorm.cli.options import (
    Duration,
    Size,
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
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.recipe import RecipeReport
from ggufnorm.errors import GgufnormError
from ggufnorm.formats.output import write_text


class _Limit(click.ParamType[dict[str, Any]]):
    """A size, absolute or relative to QUANT: 4.5GB, +3%, -10%."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """The argument of ``recipe`` that it stands for."""
        found = re.fullmatch(r"([+-]\d+(?:\.\d+)?)\s*%", str(value).strip())
        if found:
            growth = float(found[1]) / 100
            if growth <= -1:
                self.fail(f"{value!r} leaves nothing", param, ctx)
            return {"max_growth": growth}
        return {"max_bytes": Size().convert(value, param, ctx)}


@click.command("recipe")
@model_arguments("REF", "QUANT")
@click.option(
    "--max-size", type=_Limit(),
    help="Maximum size of the file: 4.5GB, or relative to QUANT, +3%.  [default: +3%]",
)  # fmt: skip
@click.option(
    "--target-kld", type=click.FloatRange(min=0, min_open=True),
    help="Find the smallest file with at most this mean KL divergence instead.",
)  # fmt: skip
@click.option(
    "--types",
    help="Comma-separated types to try: q3_k,q4_k,q5_k.  [default: eight from Q2_K to Q8_0]",
)
@click.option(
    "--imatrix", metavar="FILE|auto",
    help="Importance matrix (GGUF or .dat), or auto to compute one from the text.",
)  # fmt: skip
@click.option(
    "--save-imatrix", type=click.Path(dir_okay=False, path_type=Path),
    help="Save the computed importance matrix to this file.",
)  # fmt: skip
@click.option(
    "--tensor-type-file", type=click.Path(dir_okay=False, path_type=Path),
    help="Save the types to this file, for llama-quantize --tensor-type-file.",
)  # fmt: skip
@click.option(
    "--apply", type=click.Path(dir_okay=False, path_type=Path),
    help="Quantize to this file with the recipe, and measure the result.",
)  # fmt: skip
@click.option(
    "--budget", default="10m", show_default=True, type=Duration(),
    help="Time limit for measuring the share of each tensor, in each of two types.",
)  # fmt: skip
@resume_option
@text_options
@engine_options
@side_options({"": "in all runs"})
@output_options(*FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    max_size: dict[str, Any] | None,
    target_kld: float | None,
    types: str | None,
    imatrix: str | None,
    save_imatrix: Path | None,
    tensor_type_file: Path | None,
    apply: Path | None,
    budget: float,
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
) -> None:
    """Choose a quantization type for each tensor, to improve on the mix of QUANT.

    REF (F32, F16 or BF16) is quantized to several types and run, and each tensor gets the
    type that lowers the KL divergence most for its bytes. QUANT, a quantization of REF,
    sets the size to start from.
    """
    ref, quant = all_models(models, hf_repos, "REF", "QUANT")
    if max_size and target_kld is not None:
        raise click.UsageError("give --max-size or --target-kld, not both")
    if save_imatrix and imatrix != "auto":
        raise click.UsageError("--save-imatrix goes with --imatrix auto")
    fmt = choose_format(fmt, output)
    from ggufnorm import api
    from ggufnorm.analysis.attribution.recipe import AUTO, TYPES, known_types

    inputs = [ref, quant, text_file, None if imatrix == AUTO else imatrix]
    require_outputs(output, tensor_type_file, save_imatrix, apply, resume, reading=inputs)
    wanted = {"target_kld": target_kld} if target_kld else max_size or {"max_growth": 0.03}
    text = None if text_file is None else read_text(text_file)
    try:
        names = known_types(types.split(",") if types else TYPES)
    except ValueError as error:
        raise click.UsageError(f"--types: {error}") from None
    failure: GgufnormError | None = None
    with progress_bar("recipe") as show:
        try:
            report = api.recipe(
                ref,
                quant,
                imatrix=imatrix,
                save_imatrix=save_imatrix,
                types=names,
                apply=apply,
                budget=budget,
                resume=resume,
                text=text,
                text_name=str(text_file),
                n_ctx=ctx_size,
                chunks=chunks,
                n_threads=threads,
                n_gpu_layers=gpu_layers,
                options=side_of(side),
                check_memory=not no_memory_check,
                on_progress=show,
                **wanted,
            )
        except GgufnormError as error:
            if not isinstance(error.result, RecipeReport):
                raise
            report, failure = error.result, error
    with ExitStack() as stack:
        stack.callback(emit, report, fmt, output)
        if tensor_type_file:
            write_text("".join(f"{a}\n" for a in report.arguments), tensor_type_file)
    if failure is not None:
        raise failure
