"""``ggufnorm audit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggufnorm.cli import INTERRUPTED
from ggufnorm.cli.models import (
    at_least_one,
    model_arguments,
    report_failed,
    require_kinds,
    require_source,
)
from ggufnorm.cli.options import llama_cpp_option
from ggufnorm.cli.output import FORMATS, choose_format, emit, output_options, require_outputs
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.audit import SEVERITIES, AuditReport, Severity
from ggufnorm.errors import InputError

_FORMATS = (*FORMATS, "sarif", "github")


def split_ids(
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
@llama_cpp_option
@click.option("--run", is_flag=True, help="Run each model in llama.cpp too.")
@click.option(
    "--full", is_flag=True, help="Read all tensors, not just the norms: done anyway where the"
    " model and its source are both on this machine."
)  # fmt: skip
@click.option(
    "--select", multiple=True, callback=split_ids, metavar="RULES",
    help="Check only these rules: beginnings of ids, or names (N,E104,norm-duplicated)."
    "  [default: all]",
)  # fmt: skip
@click.option(
    "--ignore", multiple=True, callback=split_ids, metavar="RULES",
    help="Skip these rules, named in the same way.",
)  # fmt: skip
@click.option(
    "--ignore-file", type=click.Path(dir_okay=False, path_type=Path),
    help="File with the accepted findings.  [default: .ggufnorm-ignore.toml or pyproject.toml in"
    " the current folder]",
)  # fmt: skip
@click.option(
    "--fail-on", default="error", show_default=True, type=click.Choice(SEVERITIES),
    help="Exit 1 on findings of at least this severity.",
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
    """Check a converted GGUF model: its norms, and with --source every tensor and key.

    MODEL is a path (any shard of a split model), a folder or a quoted glob pattern,
    https://…, hf://org/repo/file.gguf or ollama:name. For a remote model, only the header
    and the norms are downloaded. `ggufnorm rules` lists the rules, `ggufnorm rule N402`
    explains one.

    Exit codes: 0 no findings of at least the severity of --fail-on, 1 some, 2 usage error,
    3 a model cannot be read.
    """
    fmt = choose_format(fmt, output, _FORMATS)
    locations = at_least_one(models, hf_repos)
    from ggufnorm import api
    from ggufnorm.analysis.audit.ignores import IGNORE_FILE, find_ignores, read_ignores
    from ggufnorm.formats.location import expand

    require_kinds(locations)
    require_source(locations[0], source)
    read = [*expand(locations), source, ignore_file, IGNORE_FILE, "pyproject.toml"]
    require_outputs(output, reading=read)

    accepted = read_ignores(ignore_file) if ignore_file else find_ignores(Path.cwd())
    with progress_bar("audit") as show:
        found = api.audit(
            locations,
            source=source,
            run=run,
            full=full,
            select=select,
            ignore=ignore,
            accepted=accepted,
            on_progress=show,
        )
    is_one = report_failed(found)
    emit(found.models[0] if is_one else found, fmt, output)
    if found.interrupted:
        click.echo("interrupted: the report covers the models that were checked", err=True)
        return INTERRUPTED
    if found.failed:
        return InputError.exit_code
    return int(any(fails(report, fail_on) for report in found.models))


def fails(report: AuditReport, fail_on: Severity) -> bool:
    """Whether a finding is at least as severe as ``fail_on``."""
    severe = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    return any(finding.severity in severe for finding in report.findings)
