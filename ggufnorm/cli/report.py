"""``ggufnorm report``."""

from __future__ import annotations

from pathlib import Path

import click

from ggufnorm.cli.output import (
    FORMATS,
    choose_format,
    emit,
    output_options,
    require_outputs,
)


@click.command("report")
@click.argument("files", nargs=-1, required=True, metavar="FILE.json...", type=click.Path())
@output_options(*FORMATS)
def command(files: tuple[str, ...], fmt: str | None, output: Path | None) -> None:
    """Show saved results again, in another format or several side by side.

    FILE.json is what a command wrote with -o FILE.json. Several of drift (F16 against
    Q8_0, Q4_K_M …) or of inspect become one report.
    """
    fmt = choose_format(fmt, output)
    require_outputs(output, reading=files)
    from ggufnorm.report.document import side_by_side
    from ggufnorm.report.faces import load

    emit(side_by_side([load(file) for file in files]), fmt, output)
