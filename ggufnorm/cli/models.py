"""How commands take models: as arguments, or by ``-hf`` as llama.cpp does."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ggufnorm.cli.process import complain
from ggufnorm.core.model import NOT_CHECKED, InspectionSet
from ggufnorm.core.printable import printable
from ggufnorm.errors import InputError

if TYPE_CHECKING:
    from ggufnorm.core.audit import AuditSet

F = TypeVar("F", bound=Callable[..., Any])


def model_arguments(*names: str) -> Callable[[F], F]:
    """Add one argument per name, in order, any of which may be given by ``-hf`` instead.

    The command takes them as ``models``: see :func:`all_models`.
    """

    def add(command: F) -> F:
        command = click.option(
            "-hf",
            "--hf-repo",
            "hf_repos",
            multiple=True,
            metavar="ORG/REPO[:QUANT]",
            help="Model on the Hugging Face Hub, added after the arguments.",
        )(command)
        return click.argument("models", nargs=-1, metavar=" ".join(names))(command)

    return add


def all_models(models: Sequence[str], hf_repos: Sequence[str], *names: str) -> list[str]:
    """Locations of the models that the command line names.

    Raises:
        click.UsageError: there are fewer or more of them than names, or they are of a kind that
            another command takes.
    """
    locations = _locations(models, hf_repos)
    if len(locations) != len(names):
        require_kinds(locations)  # a text or an importance matrix, of which an option was meant
    if len(locations) < len(names):
        raise click.UsageError(
            f"missing {' and '.join(names[len(locations) :])}: {_example(locations)}"
        )
    if len(locations) > len(names):
        meant = _meant(locations) or f": {_example(())}"
        raise click.UsageError(f"unexpected {locations[len(names)]}{meant}")
    require_kinds(locations)
    return locations


def _meant(locations: Sequence[str]) -> str:
    """The command for several files beside one reference, where that is likely meant."""
    if click.get_current_context().command.name != "drift":
        return ""
    return f": for several files beside one reference use ggufnorm quants {shlex.join(locations)}"


def at_least_one(models: Sequence[str], hf_repos: Sequence[str]) -> list[str]:
    """Locations of all models that the command line names.

    Raises:
        click.UsageError: there is none.
    """
    locations = _locations(models, hf_repos)
    if not locations:
        raise click.UsageError(f"missing MODEL: {_example(locations)}")
    return locations


def _example(locations: Sequence[str]) -> str:
    from ggufnorm.verbs.kinds import example

    return f"use {example(click.get_current_context().command.name or '', locations)}"


def require_kinds(locations: Sequence[str]) -> None:
    """Make sure that the command that is being run takes these locations.

    Raises:
        click.UsageError: another command was meant; the message has it.
    """
    from ggufnorm.verbs.kinds import wrong_turn

    verb = click.get_current_context().command.name
    sentence = wrong_turn(verb or "", locations)
    if sentence is not None:
        raise click.UsageError(sentence)


def require_source(model: str, source: str | None) -> None:
    """Make sure that ``--source`` may be a checkpoint.

    Raises:
        click.UsageError: it is something else; the message has the command that was meant.
    """
    from ggufnorm.verbs.kinds import wrong_source

    verb = click.get_current_context().command.name
    sentence = None if source is None else wrong_source(verb or "", model, source)
    if sentence is not None:
        raise click.UsageError(sentence)


def report_failed(found: InspectionSet | AuditSet) -> bool:
    """Name the models that could not be read on standard error.

    Returns:
        Whether it was one model, of which the result alone is to be shown.

    Raises:
        InputError: it was one model, and it could not be read.
    """
    failed = [skipped for skipped in found.failed if skipped.reason != NOT_CHECKED]
    passed_over = () if isinstance(found, InspectionSet) else found.passed_over
    is_one = len(found.models) + len(found.failed) + len(passed_over) == 1
    if is_one and failed:
        raise InputError(failed[0].reason)
    for skipped in failed:
        complain(f"error: {printable(skipped.reason)}", fg="red")
    return is_one


def _locations(models: Sequence[str], hf_repos: Sequence[str]) -> list[str]:
    return [*models, *(f"hf://{repo}" for repo in hf_repos)]
