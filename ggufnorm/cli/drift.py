"""``ggufnorm drift``."""

from __future__ import annotations

from decimal import ROUND_DOWN, ROUND_UP, Context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufnorm.cli import INTERRUPTED
from ggufnorm.cli.models import all_models, model_arguments
from ggufnorm.cli.output import FORMATS, F, choose_format, emit, output_options
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.drift import DriftReport
from ggufnorm.errors import TextError

if TYPE_CHECKING:
    from ggufnorm.comparison.run import SideOptions


class _Share(click.ParamType[float]):
    """A share from 0 to 1, or a percentage with its sign: 0.98 or 98%."""

    name = "share"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip()
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not from 0 to 1 (or from 0% to 100%)", param, ctx)
        return share


_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def side_options(command: F) -> F:
    """Options of how one side runs: of the model under test, and ``--ref-…`` of the reference."""
    for prefix, short, whose in (("ref-", False, "of the reference"), ("", True, "under test")):

        def names(long: str, brief: str, prefix: str = prefix, short: bool = short) -> list[str]:
            return [f"--{prefix}{long}", *([f"-{brief}"] if short else [])]

        for option in (
            click.option(
                *names("flash-attn", "fa"), default="auto", show_default=True,
                type=click.Choice(("auto", "on", "off")), help=f"Flash attention {whose}.",
            ),
            click.option(
                *names("cache-type-k", "ctk"), default="f16", show_default=True,
                type=click.Choice(_CACHE_TYPES), help=f"Type of cached keys {whose}.",
            ),
            click.option(
                *names("cache-type-v", "ctv"), default="f16", show_default=True,
                type=click.Choice(_CACHE_TYPES), help=f"Type of cached values {whose}.",
            ),
            click.option(
                f"--{prefix}extra-bufts", is_flag=True,
                help=f"Let llama.cpp repack weights for its fastest CPU kernels, {whose}.",
            ),
            click.option(
                f"--{prefix}unfused-norms", is_flag=True,
                help=f"Keep llama.cpp from fusing RMSNorm with its weight, {whose}.",
            ),
        ):  # fmt: skip
            command = option(command)
    return command


def _side(values: dict[str, Any], prefix: str) -> SideOptions:
    from ggufnorm.comparison.run import SideOptions

    return SideOptions(
        flash_attention=values[f"{prefix}flash_attn"],
        cache_type_k=values[f"{prefix}cache_type_k"],
        cache_type_v=values[f"{prefix}cache_type_v"],
        use_extra_bufts=values[f"{prefix}extra_bufts"],
        unfused_norms=values[f"{prefix}unfused_norms"],
    )


@click.command("drift")
@model_arguments("REF", "QUANT")
@click.option(
    "-f",
    "--file",
    "text_file",
    type=click.Path(path_type=Path),
    help="Text to run.  [default: bundled]",
)
@click.option(
    "-c", "--ctx-size", default=512, show_default=True, type=click.IntRange(min=8),
    help="Tokens of one chunk; its second half is scored.",
)  # fmt: skip
@click.option("--chunks", type=click.IntRange(min=1), help="Run at most so many.  [default: all]")
@click.option("-t", "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option(
    "-ngl", "--gpu-layers", default=0, show_default=True, type=click.IntRange(min=0),
    help="Layers to run on the GPU.",
)  # fmt: skip
@side_options
@click.option(
    "--floor", is_flag=True, help="Also run the reference against itself: the engine's own noise."
)
@click.option(
    "--resume", type=click.Path(dir_okay=False, path_type=Path),
    help="Keep progress in this file, and go on from what it holds.",
)  # fmt: skip
@click.option("--no-memory-check", is_flag=True, help="Load models that seem too large.")
@click.option(
    "--max-local", type=click.FloatRange(min=0),
    help="Exit 1 if an operation's own error (relative L2) is above.",
)  # fmt: skip
@click.option(
    "--max-kld", type=click.FloatRange(min=0), help="Exit 1 if the mean KL divergence is above."
)
@click.option(
    "--min-top1",
    type=_Share(),
    help="Exit 1 if fewer positions (0.98 or 98%) agree on the top token.",
)
@output_options(*FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    text_file: Path | None,
    ctx_size: int,
    chunks: int | None,
    threads: int | None,
    gpu_layers: int,
    floor: bool,
    resume: Path | None,
    no_memory_check: bool,
    max_local: float | None,
    max_kld: float | None,
    min_top1: float | None,
    fmt: str | None,
    output: Path | None,
    **sides: Any,
) -> int:
    """Run the GGUF models REF and QUANT on the same text and show where they part.

    REF is right by definition; QUANT is the same network, quantized or converted
    otherwise. Both run in llama.cpp, node by node in step with each other. They must be
    on this machine: paths (any shard of a split model), ollama:name, or
    hf://org/repo/file.gguf once downloaded.
    """
    ref, quant = all_models(models, hf_repos, "REF", "QUANT")
    fmt = choose_format(fmt, output)
    from ggufnorm.comparison.run import drift

    text = None if text_file is None else read_text(text_file)
    with progress_bar("drift") as show:
        report = drift(
            ref,
            quant,
            text=text,
            text_name=str(text_file),
            n_ctx=ctx_size,
            chunks=chunks,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            options=_side(sides, ""),
            options_ref=_side(sides, "ref_"),
            floor=floor,
            resume=resume,
            check_memory=not no_memory_check,
            on_progress=show,
        )
    emit(report, fmt, output)
    if report.run.n_chunks < report.run.n_chunks_planned:
        click.echo("interrupted: the report covers the chunks that were run", err=True)
        return INTERRUPTED
    crossed = crossed_thresholds(report, max_kld, min_top1, max_local)
    for line in crossed:
        click.secho(line, fg="red", err=True)
    return 1 if crossed else 0


def read_text(path: Path) -> str:
    """The text to run.

    Raises:
        TextError: it cannot be read, is not UTF-8 or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TextError(f"the text {path} is not UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise TextError(f"the text {path} is empty")
    return text


def crossed_thresholds(
    report: DriftReport,
    max_kld: float | None,
    min_top1: float | None,
    max_local: float | None,
) -> list[str]:
    """One line per threshold that the report crosses, with the value that would have passed."""
    lines = []
    s = report.logits
    if max_kld is not None:
        value = s.mean_kld if s else None
        if value is None or value > max_kld or (s and s.non_finite_tokens):
            lines.append(_crossed("--max-kld", max_kld, "mean KL divergence", value))
    if min_top1 is not None:
        value = s.same_top1 if s else None
        if value is None or value < min_top1:
            lines.append(_crossed("--min-top1", min_top1, "same top token", value))
    if max_local is not None:
        worst = max((o.local.rel_l2 or 0.0 for o in report.operations), default=0.0)
        if any(o.local.non_finite_rows for o in report.operations):
            lines.append(_crossed("--max-local", max_local, "finite local error", None))
        elif worst > max_local:
            lines.append(_crossed("--max-local", max_local, "largest local error", worst))
    return lines


def _crossed(option: str, limit: float, what: str, value: float | None) -> str:
    if value is None:
        return f"{option} {limit:g}: crossed: there is no {what}"
    # Rounded to the side that passes.
    shown = _rounded(value, up=option.startswith("--max"))
    return f"{option} {limit:g}: crossed: {what} is {value:.6g}; {option} {shown} would pass"


def _rounded(value: float, *, up: bool) -> str:
    """Four digits, rounded up or down."""
    context = Context(prec=4, rounding=ROUND_UP if up else ROUND_DOWN)
    return f"{context.create_decimal(repr(value)).normalize():g}"
