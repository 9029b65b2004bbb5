"""``ggufnorm drift``."""

from __future__ import annotations

from pathlib import Path

import click

from ggufnorm.cli.models import all_models, model_arguments
from ggufnorm.cli.output import choose_format, emit, output_options
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.drift import DriftReport
from ggufnorm.errors import TextError


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
@click.option(
    "--max-kld", type=click.FloatRange(min=0), help="Exit 1 if the mean KL divergence is above."
)
@click.option(
    "--min-top1",
    type=_Share(),
    help="Exit 1 if fewer positions (0.98 or 98%) agree on the top token.",
)
@output_options
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    text_file: Path | None,
    ctx_size: int,
    chunks: int | None,
    threads: int | None,
    gpu_layers: int,
    max_kld: float | None,
    min_top1: float | None,
    fmt: str | None,
    output: Path | None,
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
            on_progress=show,
        )
    emit(report, fmt, output)
    crossed = crossed_thresholds(report, max_kld, min_top1)
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
    report: DriftReport, max_kld: float | None, min_top1: float | None
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
    return lines


def _crossed(option: str, limit: float, what: str, value: float | None) -> str:
    if value is None:
        return f"{option} {limit:g}: crossed: there is no {what} (no finite logits)"
    return f"{option} {limit:g}: crossed: {what} is {value:.6g}; {option} {value:.6g} would pass"
