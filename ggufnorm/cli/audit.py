"""``ggufnorm audit``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggufnorm.cli import INTERRUPTED
from ggufnorm.cli.models import (
    at_least_one,
    model_arguments,
    report_failed,
    require_kinds,
    require_source,
)
from ggufnorm.cli.options import LLAMA_ONLY, engine_options, refuse, side_of, side_options
from ggufnorm.cli.output import FORMATS, choose_format, emit, output_options, require_outputs
from ggufnorm.cli.process import complain
from ggufnorm.cli.progress import progress_bar
from ggufnorm.core.audit import SEVERITIES, AuditReport, AuditSet, PassedOver, Severity
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.printable import printable
from ggufnorm.errors import ConfigError, InputError
from ggufnorm.report.formats import STREAMS
from ggufnorm.report.formatting import counted

if TYPE_CHECKING:
    from ggufnorm.analysis.audit.ignores import Ignore

_RUN_ONLY = ("threads", "no_memory_check", *LLAMA_ONLY)
_FORMATS = (*FORMATS, "sarif", "github", *STREAMS)


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
@click.option("--run", is_flag=True, help="Run each model in llama.cpp too.")
@engine_options
@side_options({"": "with --run"})
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
    help="File with the accepted findings and the rules' severities.  [default:"
    " .ggufnorm-ignore.toml or pyproject.toml in the current folder]",
)  # fmt: skip
@click.option(
    "--baseline", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json",
    help="Accept the findings of an audit that was saved as JSON, so that new ones alone count.",
)  # fmt: skip
@click.option(
    "--manifest", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json",
    help="Compare every tensor and key with what --save-manifest wrote.",
)  # fmt: skip
@click.option(
    "--save-manifest", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json",
    help="Write the digest of every tensor and key of the model.",
)  # fmt: skip
@click.option(
    "--fail-on", default="error", show_default=True, type=click.Choice(SEVERITIES),
    help="Exit 1 on findings of at least this severity.",
)  # fmt: skip
@click.option(
    "--models-from", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE",
    help="File with more models, one on each line; - for standard input.",
)  # fmt: skip
@click.option(
    "--jobs", type=click.IntRange(1, 256), help="Models to check at once.  [default: 16 on the"
    " network, on this machine as many as it has processors]",
)  # fmt: skip
@click.option(
    "--no-cache", is_flag=True, help="Check remote models again that have not changed since the"
    " last time.",
)  # fmt: skip
@click.option(
    "--dask", metavar="ADDRESS", help="Have the workers of this dask.distributed scheduler check:"
    " tcp://HOST:8786.",
)  # fmt: skip
@output_options(*_FORMATS)
@click.pass_context
def command(
    context: click.Context,
    /,
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    source: str | None,
    run: bool,
    full: bool,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    ignore_file: Path | None,
    baseline: Path | None,
    manifest: Path | None,
    save_manifest: Path | None,
    fail_on: Severity,
    models_from: str | None,
    jobs: int | None,
    no_cache: bool,
    dask: str | None,
    threads: int | None,
    gpu_layers: GpuLayers | None,
    no_memory_check: bool,
    fmt: str | None,
    output: Path | None,
    **side: Any,
) -> int:
    """Check a converted GGUF model: its norms, and with --source every tensor and key.

    MODEL is a path (any shard of a split model), a folder or a quoted glob pattern,
    https://…, hf://org/repo/file.gguf, hf://org for all models of an organisation, or
    ollama:name. For a remote model, only the header and the norms are downloaded; of many,
    what has not changed since the last time is not. `ggufnorm rules` lists the rules,
    `ggufnorm rule N402` explains one.

    Exit codes: 0 no findings of at least the severity of --fail-on, 1 some, 2 usage error,
    3 a model cannot be read.
    """
    fmt = choose_format(fmt, output, _FORMATS)
    locations = at_least_one((*models, *_listed(models_from)), hf_repos)
    from ggufnorm import api
    from ggufnorm.analysis.audit.ignores import IGNORE_FILE, find_policy, read_policy
    from ggufnorm.formats.location import expand

    require_kinds(locations)
    require_source(locations[0], source)
    read = [*expand(locations, ask=False), source, ignore_file, IGNORE_FILE, "pyproject.toml"]
    require_outputs(output, save_manifest, reading=[*read, baseline, manifest, models_from])

    policy = read_policy(ignore_file) if ignore_file else find_policy(Path.cwd())
    shared: dict[str, Any] = {
        "run": run, "full": full, "select": select, "ignore": ignore,
        "accepted": [*policy.accepted, *_known(baseline)], "severities": policy.severities,
        "jobs": jobs, "cache": not no_cache, "dask": dask,
    }  # fmt: skip
    if run:
        shared |= {
            "n_threads": threads, "n_gpu_layers": gpu_layers, "options": side_of(side),
            "check_memory": not no_memory_check,
        }  # fmt: skip
    else:
        refuse(context, _RUN_ONLY, "goes with --run")
    if manifest or save_manifest:
        _require_one(locations, fmt)
    if fmt in STREAMS:
        if source is not None:
            raise click.UsageError(f"--source goes with one report, not with {fmt}")
        return _stream(locations, shared, fmt, output, fail_on)
    with progress_bar("audit") as show:
        found = api.audit(locations, source=source, on_progress=show, manifest=manifest, **shared)
    is_one = report_failed(found)
    if save_manifest:
        from ggufnorm.analysis.audit.manifest import save_manifest as save

        save(locations[0], save_manifest)
        click.echo(f"manifest written to {printable(str(save_manifest))}", err=True)
    emit(found.models[0] if is_one else found, fmt, output)
    if found.interrupted:
        click.echo("interrupted: the report covers the models that were checked", err=True)
        return INTERRUPTED
    if found.failed:
        return InputError.exit_code
    return int(any(fails(report, fail_on) for report in found.models))


def _known(baseline: Path | None) -> list[Ignore]:
    """The findings of a saved audit, as entries of an ignore file."""
    if baseline is None:
        return []
    from ggufnorm.analysis.audit.ignores import baseline as entries
    from ggufnorm.report.formats import load

    saved = load(baseline)
    if not isinstance(saved, (AuditReport, AuditSet)):
        raise ConfigError(f"{baseline}: no audit: save one with `ggufnorm audit -o FILE.json`")
    return entries(baseline, [saved] if isinstance(saved, AuditReport) else saved.models)


def _require_one(locations: Sequence[str], fmt: str) -> None:
    from ggufnorm.formats.location import expand

    if fmt in STREAMS or len(locations) > 1 or expand(locations, ask=False) != [*locations]:
        raise click.UsageError("a manifest is of one model: give one, and no stream of results")


def _listed(file: str | None) -> list[str]:
    """The locations in a file: a line each, without empty lines and those that begin with ``#``."""
    if file is None:
        return []
    try:
        with click.open_file(file, encoding="utf-8") as lines:
            texts = [line.strip() for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the list {file}: {error}") from None
    return [text for text in texts if text and not text.startswith("#")]


def _stream(
    locations: Sequence[str],
    options: Mapping[str, Any],
    fmt: str,
    output: Path | None,
    fail_on: Severity,
) -> int:
    """Write each model as it is done."""
    from ggufnorm import api
    from ggufnorm.report.streams import require_stream, stream

    require_stream(fmt, output)
    n_read = n_failed = n_failing = 0
    with progress_bar("audit") as show, stream(fmt, output) as write:
        try:
            for item in api.audit_each(locations, on_progress=show, **options):
                write(item)
                if isinstance(item, AuditReport):
                    n_read += 1
                    n_failing += fails(item, fail_on)
                elif not isinstance(item, PassedOver):
                    n_failed += 1
                    complain(f"error: {printable(item.reason)}", fg="red")
        except KeyboardInterrupt:
            click.echo(
                f"interrupted after {n_read + n_failed} models: run it again to go on; remote ones"
                " that were checked are kept", err=True,
            )  # fmt: skip
            return INTERRUPTED
    click.echo(
        f"{counted(n_read, 'model')} checked, {n_failing} with a finding of severity {fail_on} or"
        f" worse, {n_failed} not read", err=True,
    )  # fmt: skip
    return InputError.exit_code if n_failed else int(n_failing > 0)


def fails(report: AuditReport, fail_on: Severity) -> bool:
    """Whether a finding is at least as severe as ``fail_on``."""
    severe = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    return any(finding.severity in severe for finding in report.findings)
