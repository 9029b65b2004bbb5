"""``ggufnorm fix``."""

from __future__ import annotations

from pathlib import Path

import click

from ggufnorm.cli.audit import fails, split_ids
from ggufnorm.cli.models import all_models, model_arguments, require_source
from ggufnorm.cli.output import FORMATS, emit, require_outputs
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.audit import SEVERITIES, Severity
from ggufnorm.core.mend import Mend
from ggufnorm.core.printable import printable


@click.command("fix")
@model_arguments("MODEL")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="The corrected copy; of a split model the name before -00001-of-0000N.gguf.",
)  # fmt: skip
@click.option(
    "--source", metavar="SOURCE", help="What the model was converted from: a folder with"
    " config.json and safetensors, or hf://org/repo."
)  # fmt: skip
@click.option(
    "--select", multiple=True, callback=split_ids, metavar="RULES",
    help="Mend only findings of these rules: beginnings of ids, or names (S,K201,norm-dtype)."
    "  [default: all]",
)  # fmt: skip
@click.option(
    "--fail-on", default="error", show_default=True, type=click.Choice(SEVERITIES),
    help="Exit 1 if the result has findings of at least this severity.",
)  # fmt: skip
@click.option(
    "--format", "fmt", default="text", show_default=True, type=click.Choice(FORMATS),
    help="What to print.",
)  # fmt: skip
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    output: Path,
    source: str | None,
    select: tuple[str, ...],
    fail_on: Severity,
    fmt: str,
) -> int:
    """Write a corrected copy of a converted GGUF model.

    Mends what `ggufnorm audit` finds and whose right value is known, from the file itself or
    with --source from the checkpoint: keys, norms, and norms that are missing. MODEL is not
    changed, and every other byte is kept. What will be changed is shown first, on standard
    error; then the copy is audited. Without anything to mend no file is written.

    Exit codes: 0 no findings of at least the severity of --fail-on in the result, 1 some, 2
    usage error, 3 a file cannot be read or written.
    """
    (model,) = all_models(models, hf_repos, "MODEL")
    require_source(model, source)
    require_outputs(output, reading=[model, source])
    from ggufnorm import api

    with progress_bar("fix", show_position=False) as show:
        report = api.fix(
            model, output, source=source, select=select, on_plan=_tell, on_progress=show
        )
    emit(report, fmt, None)
    return int(fails(report.audit, fail_on))


def _tell(mends: tuple[Mend, ...]) -> None:
    for mend in mends:
        click.echo(f"fix: {printable(mend.action)}", err=True)
    if not mends:
        click.echo("fix: nothing to mend", err=True)
