"""``ggufnorm rpc-server``."""

from __future__ import annotations

import os

import click

from ggufnorm.cli.devices import Devices
from ggufnorm.cli.options import llama_cpp_option
from ggufnorm.errors import ConfigError


@click.command("rpc-server")
@click.option("-H", "--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "-p", "--port", default=50052, show_default=True, type=click.IntRange(1, 65535),
    help="Port to listen at.",
)  # fmt: skip
@click.option("-t", "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option(
    "-dev", "--device", type=Devices(), metavar="DEV,…",
    help="Devices to serve.  [default: all GPUs, or the CPU]",
)  # fmt: skip
@llama_cpp_option
def command(host: str, port: int, threads: int | None, device: tuple[str, ...] | None) -> None:
    """Lend this machine to --rpc of another one.

    It is the server of llama.cpp's RPC backend, for builds that bring no program for it. It serves
    one client at a time.

    It has NO AUTHENTICATION and no encryption: whoever reaches the port can use the machine's
    memory, and crash or corrupt the process. Listen only where all are trusted.
    """
    from ggufnorm.engines.llama.rpc_serve import own_program, serve, served

    if (program := own_program()) is not None:
        raise ConfigError(
            f"this build of llama.cpp has its own program: {program} -H {host} -p {port}"
        )
    devices = served(device or ())
    names = ", ".join(f"{d.name} ({d.description})" for d in devices)
    click.echo(f"rpc-server: {names} at {host}:{port}, without authentication", err=True)
    serve(host, port, threads or os.cpu_count() or 1, devices)
