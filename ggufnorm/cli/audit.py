"""``ggufnorm audit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggufnorm.cli import INTERRUPTED
from ggufnorm.cli.models import at_least_one, model_arguments
from ggufnorm.cli.output import FORMATS, choose_format, emit, output_options
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.audit import SEVERITIES, AuditReport, AuditSet, Severity
from ggufnorm.core.model import Skipped
from ggufnorm.errors import InputError

_FORMATS = (*FORMATS, "sarif", "github")


def _split(
    _context: click.Context, _parameter: click.Parameter, values: Sequence[str]
) -> tuple[str, ...]:
    """``N1,E104`` and repeated options alike."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


@click.command("audit")
@model_arguments("MODEL...")
@click.option(
    "--source", metavar="SOURCE", help="What the models were converted from: a folder with"
    " config.json and safetensors, or hf://org/repo; every tensor and key is compared."
)  # fmt: skip
@click.option("--run", is_flag=True, help="Run each model in llama.cpp too.")
@click.option(
    "--full", is_flag=True, help="Read all tensors, not just the norms: done anyway where the"
    " model and its source are both on this machine."
)  # fmt: skip
@click.option(
    "--select", multiple=True, callback=_split, metavar="IDS",
    help="Only rules whose id begins so: N,E104.  [default: all]",
)  # fmt: skip
@click.option(
    "--ignore", multiple=True, callback=_split, metavar="IDS", help="Not rules whose id begins so."
)
@click.option(
    "--ignore-file", type=click.Path(dir_okay=False, path_type=Path),
    help="Accepted findings.  [default: .ggufnorm-ignore.toml or pyproject.toml here]",
)  # fmt: skip
@click.option(
    "--fail-on", default="error", show_default=True, type=click.Choice(SEVERITIES),
    help="Exit 1 if there is a finding as grave as this.",
)  # fmt: skip
@output_options(*_FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    source: str | None,
    run: bool,
    full: bool,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    ignore_file: Path | None,
    fail_on: Severity,
    fmt: str | None,
    output: Path | None,
) -> int:
    """Check whether the converted GGUF model MODEL is right.

    Its norms are checked, and with --source every tensor and key.

    MODEL is a path (any shard of a split model), a folder or a quoted pattern of paths,
    https://…, hf://org/repo/file.gguf or ollama:name. Of a remote model only the header
    and the norms are fetched. `ggufnorm rules` lists the rules, `ggufnorm rule ID`
    explains one.

    Exit codes: 0 no finding as grave as --fail-on, 1 at least one, 2 usage, 3 a model
    cannot be read.
    """
    fmt = choose_format(fmt, output, _FORMATS)
    from ggufnorm.analysis.audit.ignores import find_ignores, read_ignores
    from ggufnorm.analysis.audit.run import AuditOptions, audit_all
    from ggufnorm.formats.location import expand

    accepted = read_ignores(ignore_file) if ignore_file else find_ignores(Path.cwd())
    options = AuditOptions(source, run, full, select, ignore, accepted)
    locations = expand(at_least_one(models, hf_repos))
    found: list[AuditReport | InputError] = []
    interrupted = False
    with progress_bar("audit") as show:
        try:
            for checked in audit_all(locations, options, show):
                found.append(checked)
        except KeyboardInterrupt:
            if not found:
                raise
            interrupted = True
    failed = [f for f in found if isinstance(f, InputError)]
    if failed and len(locations) == 1:
        raise failed[0]
    for error in failed:
        click.secho(f"error: {error}", fg="red", err=True)
    reports = tuple(f for f in found if isinstance(f, AuditReport))
    if len(locations) == 1:
        emit(reports[0], fmt, output)
    else:
        unread = [
            Skipped(m, str(f))
            for m, f in zip(locations, found, strict=False)
            if isinstance(f, InputError)
        ]
        unread += [Skipped(m, "interrupted before it was checked") for m in locations[len(found) :]]
        emit(AuditSet(reports, tuple(unread)), fmt, output)
    if interrupted:
        click.echo("interrupted: the report covers the models that were checked", err=True)
        return INTERRUPTED
    if failed:
        return InputError.exit_code
    return int(any(_is_grave(report, fail_on) for report in reports))


def _is_grave(report: AuditReport, fail_on: Severity) -> bool:
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    return any(f.severity in grave for f in report.findings)
