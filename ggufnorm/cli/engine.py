"""``ggufnorm engine``."""

from __future__ import annotations

import click

from ggufnorm.engines.llama.prebuilt import DEVICES

_DEVICE = click.argument("device", type=click.Choice(DEVICES))


@click.group("engine")
def command() -> None:
    """Fetch builds of llama.cpp that need no compiler.

    They are packages of npm, pinned by version and digest, and run by `--llama-cpp DEVICE`.
    """


@command.command("get")
@_DEVICE
def get_command(device: str) -> None:
    """Fetch the build for DEVICE with npm, into the user's cache."""
    from ggufnorm.engines.llama import prebuilt

    package = prebuilt.prebuilt(device)
    click.echo(
        f"engine: {package.package} {package.version}, llama.cpp {package.llama_cpp}", err=True
    )
    click.echo(prebuilt.get(device))


@command.command("list")
def list_command() -> None:
    """List the builds that were fetched."""
    from ggufnorm.engines.llama import prebuilt

    found = list(prebuilt.installed())
    for device, folder in found:
        click.echo(f"{device:<8}{prebuilt.prebuilt(device).llama_cpp:<10}{folder}")
    if not found:
        click.echo("none was fetched: ggufnorm engine get cpu", err=True)


@command.command("remove")
@_DEVICE
def remove_command(device: str) -> None:
    """Delete the build for DEVICE."""
    from ggufnorm.engines.llama import prebuilt

    if not prebuilt.remove(device):
        click.echo(f"no {device} build was fetched", err=True)
