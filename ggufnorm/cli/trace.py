"""``ggufnorm trace``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from ggufnorm.cli.models import all_models, model_arguments
from ggufnorm.cli.options import (
    Size,
    engine_options,
    read_text,
    side_of,
    side_options,
    text_options,
)
from ggufnorm.cli.output import require_outputs
from ggufnorm.cli.progress import progress_bar


@click.command("trace")
@model_arguments("MODEL")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this safetensors file.",
)  # fmt: skip
@text_options
@engine_options
@side_options({"": "of the run"})
@click.option(
    "--budget", type=Size(),
    help="Let the file take at most so much (500MB): evenly spaced tokens are chosen.",
)  # fmt: skip
@click.option(
    "--dtype", default="f32", show_default=True, type=click.Choice(("f32", "f16")),
    help="Type of the values; logits are f32 always.",
)  # fmt: skip
@click.option(
    "--trust-remote-code", is_flag=True, help="Run Python files that a checkpoint brings."
)
@click.option(
    "--ids", "ids_file", type=click.Path(path_type=Path),
    help="Run the token ids of this trace or list, not a text (hf: and ONNX).",
)  # fmt: skip
@click.option("--no-logits", is_flag=True, help="Leave out the logits of the scored positions.")
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    output: Path,
    text_file: Path | None,
    ctx_size: int,
    chunks: int | None,
    threads: int | None,
    gpu_layers: int,
    no_memory_check: bool,
    budget: int | None,
    dtype: Literal["f32", "f16"],
    trust_remote_code: bool,
    ids_file: Path | None,
    no_logits: bool,
    **side: Any,
) -> None:
    """Run the GGUF model MODEL on a text and write what every watched operation gives.

    The file can be compared on another machine: with another trace, or with a model.

    MODEL may be a checkpoint, hf:FOLDER, which Transformers runs; then its norms, the
    residual stream and the logits are written. Or it is a model.onnx, which ONNX Runtime
    runs, with a tokenizer beside it or else on random token ids: its norms and the logits.
    """
    from ggufnorm.analysis.crosscheck.locations import kind_of

    (model,) = all_models(models, hf_repos, "MODEL")
    kind = kind_of(model)
    if kind is not None:
        _refuse_engine_options(gpu_layers, side, "hf:FOLDER" if kind == "hf" else "ONNX")
    if trust_remote_code and kind != "hf":
        raise click.UsageError("--trust-remote-code goes with hf:FOLDER only")
    if ids_file is not None and (kind is None or text_file is not None):
        raise click.UsageError(f"--ids does not go with {'-f' if kind else 'a GGUF model'}")
    require_outputs(output, reading=[model, text_file, ids_file])
    common: dict[str, Any] = {
        "text": None if text_file is None else read_text(text_file),
        "text_name": str(ids_file or text_file),
        "n_ctx": ctx_size,
        "chunks": chunks,
        "n_threads": threads,
        "logits": not no_logits,
        "dtype": dtype,
        "budget": budget,
    }
    if ids_file is not None:
        from ggufnorm.analysis.trace.ids import read_ids

        common["ids"] = read_ids(ids_file)
    with progress_bar("trace") as show:
        if kind == "hf":
            from ggufnorm.analysis.trace.hf import trace_checkpoint

            folder = model.partition(":")[2]
            trace_checkpoint(
                folder, output, **common, trust_remote_code=trust_remote_code, on_progress=show
            )
        elif kind == "onnx":
            from ggufnorm.analysis.trace.onnx import trace_onnx

            trace_onnx(model, output, **common, on_progress=show)
        else:
            from ggufnorm.analysis.trace.run import trace

            trace(
                model,
                output,
                **common,
                n_gpu_layers=gpu_layers,
                options=side_of(side),
                check_memory=not no_memory_check,
                on_progress=show,
            )


def _refuse_engine_options(gpu_layers: int, side: dict[str, Any], what: str) -> None:
    """What only llama.cpp knows does not go with another framework."""
    usual = {"flash_attn": "auto", "cache_type_k": "f16", "cache_type_v": "f16"}
    given = [n for n, v in side.items() if v not in (usual.get(n), False)]
    if given or gpu_layers:
        name = (given or ["gpu_layers"])[0].replace("_", "-")
        raise click.UsageError(f"--{name} does not go with {what}")
