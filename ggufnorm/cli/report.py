"""``ggufnorm report``."""

from __future__ import annotations

from pathlib import Path

import click

from ggufnorm.cli.models import require_kinds
from ggufnorm.cli.output import FORMATS, choose_format, emit, output_options, require_outputs
from ggufnorm.cli.process import complain
from ggufnorm.core.audit import AuditSet
from ggufnorm.core.model import InspectionSet
from ggufnorm.core.printable import printable
from ggufnorm.errors import InputError


@click.command("report")
@click.argument("files", nargs=-1, required=True, metavar="FILE.json...", type=click.Path())
@output_options(*FORMATS)
def command(files: tuple[str, ...], fmt: str | None, output: Path | None) -> int:
    """Show saved results, in another format or side by side.

    FILE.json is a result that a command saved with -o FILE.json. Several results of drift
    (F16 against Q8_0, Q4_K_M …) or of inspect become one report.

    Exit codes: 0 fine, 2 usage, 3 a file cannot be read, or one of the models in it could
    not when it was written.
    """
    require_kinds(files)
    fmt = choose_format(fmt, output)
    require_outputs(output, reading=files)
    from ggufnorm.report.document import side_by_side
    from ggufnorm.report.formats import load

    result = side_by_side([load(file) for file in files])
    failed = result.failed if isinstance(result, (InspectionSet, AuditSet)) else ()
    for skipped in failed:
        complain(f"error: {printable(skipped.reason)}", fg="red")
    emit(result, fmt, output)
    return InputError.exit_code if failed else 0
