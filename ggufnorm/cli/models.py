"""How commands take models: as arguments, or by ``-hf`` as llama.cpp does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

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
            help="Model on the Hugging Face Hub, after those given as arguments.",
        )(command)
        return click.argument("models", nargs=-1, metavar=" ".join(names))(command)

    return add


def all_models(models: Sequence[str], hf_repos: Sequence[str], *names: str) -> list[str]:
    """Locations of the models that the command line names.

    Raises:
        click.UsageError: there are fewer or more of them than names.
    """
    locations = _locations(models, hf_repos)
    if len(locations) < len(names):
        raise click.UsageError(f"missing {' and '.join(names[len(locations) :])}")
    if len(locations) > len(names):
        raise click.UsageError(f"unexpected {locations[len(names)]}")
    return locations


def at_least_one(models: Sequence[str], hf_repos: Sequence[str]) -> list[str]:
    """Locations of all models that the command line names.

    Raises:
        click.UsageError: there is none.
    """
    locations = _locations(models, hf_repos)
    if not locations:
        raise click.UsageError("missing MODEL")
    return locations


def _locations(models: Sequence[str], hf_repos: Sequence[str]) -> list[str]:
    return [*models, *(f"hf://{repo}" for repo in hf_repos)]
