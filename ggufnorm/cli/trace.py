"""``ggufnorm trace``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ggufnorm.cli.models import all_models, model_arguments
from ggufnorm.cli.options import (
    LLAMA_ONLY,
    Size,
    engine_options,
    given,
    read_text,
    refuse,
    resume_option,
    side_of,
    side_options,
    text_options,
)
from ggufnorm.cli.output import require_outputs
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.printable import printable
from ggufnorm.errors import TooLargeError

if TYPE_CHECKING:
    from ggufnorm.formats.forms import Engine


_ASK_ABOVE = 1_000_000_000
"""Bytes of a trace above which somebody has to agree."""


class Layers(click.ParamType[tuple[int, int]]):
    """A range of layers: 0-39."""

    name = "layers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """The first and the last."""
        first, dash, last = str(value).partition("-")
        if not (first.isdecimal() and dash and last.isdecimal() and int(first) <= int(last)):
            self.fail(f"{value!r} is no range of layers such as 0-39", param, ctx)
        return int(first), int(last)


@click.command("trace")
@model_arguments("MODEL")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="Trace to write, a safetensors file.",
)  # fmt: skip
@text_options
@engine_options
@side_options({"": "in the run"})
@click.option(
    "--budget", type=Size(),
    help="Limit the size of the file (500MB) by keeping evenly spaced tokens.",
)  # fmt: skip
@click.option(
    "--dtype", default="f32", show_default=True, type=click.Choice(("f32", "f16")),
    help="Data type of the activations; logits are always f32.",
)  # fmt: skip
@click.option(
    "--trust-remote-code", is_flag=True, help="Run Python files that come with a checkpoint."
)
@click.option(
    "--ids", "ids_file", type=click.Path(path_type=Path),
    help="Run the token ids in this trace or list instead of a text (hf: and ONNX).",
)  # fmt: skip
@click.option(
    "--layers", type=Layers(), metavar="FIRST-LAST",
    help="Run these layers alone; the weights of the others are never touched.",
)  # fmt: skip
@click.option(
    "--after", type=click.Path(dir_okay=False, path_type=Path), metavar="TRACE",
    help="Trace of the layers before --layers: they start from its last value, and it goes into the"
    " new trace.",
)  # fmt: skip
@resume_option
@click.option("--yes", is_flag=True, help="Write a file of more than 1 GB without being asked.")
@click.option("--no-logits", is_flag=True, help="Do not save the logits of the scored positions.")
@click.pass_context
def command(
    context: click.Context,
    /,
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    output: Path,
    text_file: Path | None,
    ctx_size: int,
    chunks: int | None,
    threads: int | None,
    gpu_layers: GpuLayers | None,
    no_memory_check: bool,
    budget: int | None,
    dtype: Literal["f32", "f16"],
    trust_remote_code: bool,
    ids_file: Path | None,
    layers: tuple[int, int] | None,
    after: Path | None,
    resume: Path | None,
    yes: bool,
    no_logits: bool,
    **side: Any,
) -> None:
    """Run a model on a text and save its activations.

    The trace can be compared on another machine, with another trace or with a model. The
    outputs of norms, matrix products and attention are saved.

    MODEL is a GGUF model, run by llama.cpp; a checkpoint hf:FOLDER, run by Transformers, of
    which the norms, the residual stream and the logits are saved; or a model.onnx, run by
    ONNX Runtime, with the tokenizer beside it or else on random token ids, of which the
    norms and the logits are saved.
    """
    from ggufnorm import api
    from ggufnorm.formats.forms import parse

    (model,) = all_models(models, hf_repos, "MODEL")
    _refuse_options(context, parse(model).engine)
    require_outputs(output, resume, reading=[model, text_file, ids_file, after])
    in_llama_cpp = parse(model).engine == "llama.cpp"
    agreed = yes or (resume is not None and resume.exists())
    record = partial(
        api.trace,
        model,
        output,
        text=None if text_file is None else read_text(text_file),
        text_name=str(text_file),
        ids=ids_file,
        n_ctx=ctx_size,
        chunks=chunks,
        n_threads=threads,
        n_gpu_layers=gpu_layers if in_llama_cpp else None,
        options=side_of(side) if in_llama_cpp else None,
        logits=not no_logits,
        dtype=dtype,
        budget=budget,
        resume=resume,
        layers=layers,
        after=after,
        trust_remote_code=trust_remote_code,
        check_memory=not no_memory_check,
    )
    try:
        with progress_bar("trace") as show:
            record(ask_above=None if agreed else _ASK_ABOVE, on_progress=show)
    except TooLargeError as error:
        if not _agrees(error):
            raise
        with progress_bar("trace") as show:
            record(on_progress=show)


def _agrees(error: TooLargeError) -> bool:
    """Ask whether the file may be that large, if there is somebody to be asked."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        return False
    size = str(error).partition(":")[0]
    return click.confirm(f"{printable(size)}. Write it?", err=True)


def _refuse_options(context: click.Context, engine: Engine) -> None:
    """Refuse options of other engines than the one that runs the model.

    Raises:
        click.UsageError: there is one.
    """
    if engine != "llama.cpp":
        what = "hf:FOLDER" if engine == "transformers" else "ONNX"
        refuse(context, LLAMA_ONLY, f"does not go with {what}")
    if engine != "transformers":
        refuse(context, ("trust_remote_code",), "goes with hf:FOLDER only")
    if engine != "llama.cpp":
        refuse(context, ("layers", "after"), "goes with GGUF models only")
    if engine == "llama.cpp":
        refuse(context, ("ids_file",), "does not go with a GGUF model")
    if given(context, ("text_file",)):
        refuse(context, ("ids_file",), "does not go with -f")
