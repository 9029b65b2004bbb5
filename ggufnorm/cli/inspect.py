"""``ggufnorm inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ggufnorm.cli.models import at_least_one, model_arguments
from ggufnorm.cli.output import (
    FORMATS,
    choose_format,
    emit,
    output_options,
    require_outputs,
)
from ggufnorm.cli.process import complain
from ggufnorm.core.model import Inspection, InspectionSet, Skipped
from ggufnorm.core.printable import printable
from ggufnorm.errors import InputError

_FORMATS = (*FORMATS, "csv")


class _Layers(click.ParamType[range]):
    """A block number or a range of them: 3 or 0-3."""

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
    "--layer", "layers", type=_Layers(), multiple=True, help="Only these blocks: 3 or 0-3."
)
@click.option(
    "--role", "roles", metavar="NAME", multiple=True, help="Only these norms: attn, ffn, q …"
)
@click.option("--tensors", is_flag=True, help="List all tensors too.")
@output_options(*_FORMATS)
def command(
    models: tuple[str, ...],
    hf_repos: tuple[str, ...],
    layers: tuple[range, ...],
    roles: tuple[str, ...],
    tensors: bool,
    fmt: str | None,
    output: Path | None,
) -> int:
    """List every norm of the GGUF or ONNX model MODEL: kind, epsilon, shape, weights.

    MODEL is a path (any shard of a split model), https://…, hf://org/repo/file.gguf or
    ollama:name. Of a remote model only the header and the norms are fetched.

    Of several files each is listed; one that cannot be read does not keep the others back.
    """
    fmt = choose_format(fmt, output, _FORMATS)
    if tensors and fmt == "csv":
        raise click.UsageError("--tensors does not go with csv, which has one table")
    locations = at_least_one(models, hf_repos)
    require_outputs(output, reading=locations)
    found = [_try_inspect(model, tensors) for model in locations]
    inspections = [f for f in found if isinstance(f, Inspection)]
    failed = [f for f in found if isinstance(f, InputError)]
    if failed and len(locations) == 1:
        raise failed[0]
    for error in failed:
        complain(f"error: {printable(str(error))}", fg="red")
    if inspections:
        chosen = _select(inspections, layers, roles)
        skipped = tuple(
            Skipped(m, str(f))
            for m, f in zip(locations, found, strict=True)
            if isinstance(f, InputError)
        )
        emit(chosen[0] if len(locations) == 1 else InspectionSet(chosen, skipped), fmt, output)
    return InputError.exit_code if failed else 0


def _try_inspect(model: str, tensors: bool) -> Inspection | InputError:
    from ggufnorm.analysis.inspection import inspect

    try:
        return inspect(model, tensors=tensors)
    except InputError as error:
        return error


def _select(
    inspections: Sequence[Inspection], layers: Sequence[range], roles: Sequence[str]
) -> tuple[Inspection, ...]:
    """What was asked for of each model.

    Raises:
        click.UsageError: that is nothing.
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
