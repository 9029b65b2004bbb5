"""``ggufnorm inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggufnorm.cli.models import at_least_one, model_arguments, report_failed
from ggufnorm.cli.output import (
    FORMATS,
    choose_format,
    chosen_table,
    emit,
    output_options,
    require_outputs,
)
from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.errors import InputError


class _Layers(click.ParamType[range]):
    """A layer or a range of layers: 3 or 0-3."""

    name = "layers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        first, _, last = str(value).partition("-")
        try:
            layers = range(int(first), int(last or first) + 1)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor a range such as 0-3", param, ctx)
        if not layers:
            self.fail(f"{value!r} ends before it begins", param, ctx)
        return layers


@click.command("inspect")
@model_arguments("MODEL...")
@click.option(
    "--layer", "layers", type=_Layers(), multiple=True, help="Show only these layers: 3 or 0-3."
)
@click.option(
    "--role",
    "roles",
    metavar="NAME",
    multiple=True,
    help="Show only norms with this role: attn, ffn, q …",
)
@click.option("--tensors", is_flag=True, help="Also list all tensors.")
@output_options(*FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    layers: tuple[range, ...],
    roles: tuple[str, ...],
    tensors: bool,
    fmt: str | None,
    output: Path | None,
) -> int:
    """List every norm of a GGUF or ONNX model: kind, epsilon, shape, weight statistics.

    MODEL is a path (any shard of a split model), a folder or a quoted glob pattern,
    https://…, hf://org/repo/file.gguf or ollama:name. For a remote model, only the header
    and the norms are downloaded.

    A model that cannot be read is reported, and the others are still listed.
    """
    fmt = choose_format(fmt, output)
    if tensors and fmt == "csv" and chosen_table() is None:
        raise click.UsageError("csv has one table: give --table norms or --table tensors")
    locations = at_least_one(models, hf_repos)
    require_outputs(output, reading=locations)
    from ggufnorm import api

    found = api.inspect(locations, tensors=tensors)
    is_one = report_failed(found)
    if found.models:
        chosen = _select(found.models, layers, roles)
        emit(chosen[0] if is_one else InspectionSet(chosen, found.failed), fmt, output)
    return InputError.exit_code if found.failed else 0


def _select(
    inspections: Sequence[Inspection], layers: Sequence[range], roles: Sequence[str]
) -> tuple[Inspection, ...]:
    """The norms that the options select, of each model.

    Raises:
        click.UsageError: there is none.
    """
    from ggufnorm.analysis.inspection import select

    chosen = tuple(select(i, layers=layers, roles=roles) for i in inspections)
    if (layers or roles) and not any(i.norms for i in chosen):
        known = dict.fromkeys(n.role for i in inspections for n in i.norms)
        blocks = max(
            (n.layer + 1 for i in inspections for n in i.norms if n.layer is not None), default=0
        )
        raise click.UsageError(
            f"no norm matches --layer and --role: there are {blocks} layers and the roles"
            f" {', '.join(known) or '(none)'}"
        )
    return chosen
