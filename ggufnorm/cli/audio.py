"""``ggufnorm audio``."""

from __future__ import annotations

from pathlib import Path

import click

from ggufnorm.cli.models import require_kinds
from ggufnorm.cli.output import (
    FORMATS,
    choose_format,
    emit,
    output_options,
    require_outputs,
)


@click.command("audio")
@click.argument("sound", type=click.Path(path_type=Path))
@click.option(
    "--processor", metavar="FOLDER", type=click.Path(path_type=Path),
    help="Folder with the Hugging Face feature extractor (preprocessor_config.json).",
)  # fmt: skip
@click.option(
    "--mmproj", metavar="MODEL",
    help="GGUF file of the audio encoder, to include llama.cpp's own preprocessing.",
)  # fmt: skip
@click.option(
    "--array", metavar="FILE.npy", type=click.Path(path_type=Path),
    help="Model input of your own pipeline: mel bins × frames, saved with numpy.save.",
)  # fmt: skip
@output_options(*FORMATS)
def command(
    sound: Path,
    processor: Path | None,
    mmproj: str | None,
    array: Path | None,
    fmt: str | None,
    output: Path | None,
) -> int:
    """Compare the log-mel spectrograms that audio pipelines compute from a WAV file.

    The pipelines are the Hugging Face feature extractor, Whisper's formula in NumPy,
    llama.cpp's own preprocessing, and your own (--array).

    Exit codes: 0 all are normalized as expected, 1 one is not or cannot be told, 2 usage
    error, 3 an input cannot be read, 4 llama.cpp failed.
    """
    require_kinds([str(sound)])
    fmt = choose_format(fmt, output)
    require_outputs(output, reading=[sound, processor, mmproj, array])
    from ggufnorm import api
    from ggufnorm.core.feed import is_refuted

    report = api.audio(sound, processor=processor, mmproj=mmproj, array=array)
    emit(report, fmt, output)
    return int(is_refuted(report.findings))
