"""``ggufnorm demo``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ggufnorm.cli.options import engine_options_for, side_of, side_options
from ggufnorm.cli.output import emit
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.engine import GpuLayers
from ggufnorm.errors import InputError, NoQuantizerError
from ggufnorm.formats.output import replacing, reported, temporary_folder

FAULTY = "blk.2.ffn_down.weight"
THREADS = 1
"""The sample's products are too small to share: without OpenMP (prebuilt builds) ggml starts
threads for each hook point anew, and those wait for each other busily."""


@click.command("demo")
@click.option(
    "--chunks",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Chunks of 512 tokens of the bundled text to run.",
)
@engine_options_for(str(THREADS))
@side_options({"": "in both models"})
@click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path),
    help="Keep the three models in this folder, to try other commands on them.",
)  # fmt: skip
def command(
    chunks: int,
    threads: int | None,
    gpu_layers: GpuLayers | None,
    no_memory_check: bool,
    keep: Path | None,
    **side: Any,
) -> int:
    """Quantize the bundled model, show its drift, then damage a tensor and locate it."""
    from ggufnorm.analysis.drift.run import drift
    from ggufnorm.samples import sample_model

    model = sample_model()
    options = side_of(side)
    how: dict[str, Any] = {
        "chunks": chunks, "n_threads": threads or THREADS, "n_gpu_layers": gpu_layers,
        "options": options, "options_ref": options, "check_memory": not no_memory_check,
    }  # fmt: skip
    with _folder(keep, model) as folder:
        quant = _quantized(model, folder)
        faulty = quant.with_name(f"{quant.stem}-damaged.gguf")
        with progress_bar("drift") as show:
            report = drift(model, quant, **how, on_progress=show)
        emit(_kept_in(report, keep), "text", None)

        damage(quant, faulty, FAULTY)
        click.secho(
            f"\nNow the same file with one damaged tensor: every 16th row of {FAULTY} is zero.\n",
            bold=True,
        )
        sys.stdout.flush()
        with progress_bar("drift") as show:
            report = drift(model, faulty, **how, on_progress=show)
        emit(_kept_in(report, keep), "text", None)
    named = report.culprit.tensor if report.culprit else None
    if named != FAULTY:
        click.secho(f"\nThe report names {named}, not {FAULTY}.", fg="red", err=True)
        return 1
    click.secho(f"\nThe report names the damaged tensor: {named}.", bold=True)
    if keep is None:
        click.echo("ggufnorm demo --keep demo leaves the three models in demo, to go on with.")
    return 0


def _quantized(model: Path, folder: Path) -> Path:
    """The model as llama-quantize makes it, or where a build has no quantizer as ggml does."""
    from ggufnorm.engines.llama.quantize import quantize
    from ggufnorm.formats.pure import quantize_purely

    quant = folder / "sotu-Q4_K_M.gguf"
    click.echo(f"Quantizing {model.name} to Q4_K_M with llama.cpp …", err=True)
    try:
        quantize(model, quant, "Q4_K_M")
    except NoQuantizerError as error:
        click.echo(f"{error}. Making all matrices Q4_0 instead …", err=True)
        quant = folder / "sotu-Q4_0.gguf"
        quantize_purely(model, quant, "Q4_0")
    return quant


def _kept_in(report: DriftReport, keep: Path | None) -> DriftReport:
    """The report with the paths of files that `demo --keep demo` leaves: others are gone."""
    folder = keep or Path("demo")
    return replace(
        report,
        reference=replace(report.reference, path=str(folder / Path(report.reference.path).name)),
        quant=replace(report.quant, path=str(folder / Path(report.quant.path).name)),
    )


@contextmanager
def _folder(keep: Path | None, model: Path) -> Iterator[Path]:
    """A folder for the models: one that is kept, with the sample in it, or a temporary one."""
    if keep is None:
        with temporary_folder() as folder:
            yield folder
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {keep}: {error.strerror or error}") from None
    _copy(model, keep / model.name)
    yield keep


def damage(source: Path, target: Path, tensor: str) -> None:
    """Copy a GGUF file and set every 16th row of one tensor to zero bytes."""
    from ggufnorm.formats.gguf import GGUFFile

    with GGUFFile(source) as file:
        t = file.tensors[tensor]
    row = t.n_bytes // t.shape[1]
    with replacing(target) as unfinished, reported(target):
        shutil.copyfile(source, unfinished)
        with unfinished.open("r+b") as out:
            for i in range(0, t.shape[1], 16):
                out.seek(t.offset + i * row)
                out.write(bytes(row))


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as unfinished, reported(target):
        shutil.copyfile(source, unfinished)
