"""The ``ggufnorm`` command: its subcommands are imported when they are called."""

from __future__ import annotations

import importlib
import io
import os
import sys
from contextlib import suppress
from typing import Any

import click

from ggufnorm.cli import AT_FAULT, INTERRUPTED, process
from ggufnorm.core.printable import printable
from ggufnorm.errors import EngineError, GgufnormError
from ggufnorm.version import __version__

_COMMANDS = {
    "check": "Find out who is to blame for a model that answers badly.",
    "inspect": "List every norm of a GGUF or ONNX model.",
    "audit": "Lint the normalization of a converted GGUF model.",
    "fix": "Write a corrected copy of a converted GGUF model.",
    "drift": "Run two models on the same text and show where they diverge.",
    "quants": "Measure several quantizations beside one reference.",
    "attribute": "Attribute the KL divergence of a quantized model to its tensors.",
    "recipe": "Choose a quantization type for each tensor, within a size.",
    "diff": "Compare two GGUF models tensor by tensor, without running them.",
    "verify": "Tell whether a file is exactly what llama-quantize makes of another.",
    "trace": "Run a model and save its activations, to compare later.",
    "compare": "Compare traces, or a checkpoint or ONNX model with its conversions.",
    "pixels": "Compare image preprocessing pipelines, above all their normalization.",
    "audio": "Compare audio preprocessing pipelines: spectrograms and waveforms.",
    "report": "Show saved results, in another format or side by side.",
    "rules": "List the rules of audit.",
    "rule": "Explain a rule of audit.",
    "demo": "Show what drift finds, on the bundled model.",
    "engine": "Fetch builds of llama.cpp that need no compiler.",
    "rpc-server": "Lend this machine to --rpc of another one.",
    "doctor": "Show which packages are installed and work, for bug reports.",
    "completion": "Print the completion script for a shell.",
}

_WITHOUT_MATRICES = ("inspect", "report", "rules", "rule")
"""Commands that multiply none: NumPy need not start a thread for each processor."""


class _UnforeseenError(Exception):
    """An error that click would take for its own: for an abort, or for a closed output."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _LazyGroup(click.Group):
    """Lists its commands without importing them, so that --help starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        if cmd_name in _WITHOUT_MATRICES and "numpy" not in sys.modules:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        module = importlib.import_module(f"ggufnorm.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (EOFError, BrokenPipeError) as error:
            raise _UnforeseenError(error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _print_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from importlib import metadata

        engines = []
        for package in ("llama-cpp-python", "gguf", "numpy"):
            with suppress(metadata.PackageNotFoundError):
                engines.append(f"{package} {metadata.version(package)}")
        click.echo(f"ggufnorm {__version__} ({', '.join(engines)})")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the versions of ggufnorm and its main dependencies.",
)  # fmt: skip
def cli() -> None:
    """Tell whether a GGUF model still computes what its source computed.

    Exit codes: 0 fine, 1 a threshold was crossed or audit found an error, 2 usage, 3 a
    file cannot be read or written, 4 llama.cpp failed, 70 ggufnorm failed, 130 interrupted.
    """


def main() -> None:
    """Run the command line; every error becomes lines on stderr and an exit code."""
    process.mend_streams()
    with process.terminable():
        try:
            code = _run()
        except KeyboardInterrupt:  # a second one, while the first was answered
            code = INTERRUPTED
    sys.exit(code)


def _run() -> int:
    try:
        code = cli.main(prog_name="ggufnorm", standalone_mode=False)
        process.check_output()
    except GgufnormError as error:
        code = _tell(error)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        process.complain(said.getvalue().rstrip("\n"))
        sign = _sign(error)
        if sign is not None:
            process.complain(sign)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    except process.Terminated as signal_:
        click.echo("ended by a signal", err=True)
        code = signal_.exit_code
    except _UnforeseenError as error:
        code = _fault(error.error)
    except Exception as error:
        code = _fault(error)
    return code if isinstance(code, int) else 0


def _sign(error: click.ClickException) -> str | None:
    from ggufnorm.cli.signs import sign_for  # only a refusal needs it

    sign = sign_for(error, _COMMANDS)
    return None if sign is None else printable(sign)


def _fault(error: Exception) -> int:
    process.complain(process.fault(error), fg="red")
    return AT_FAULT


def _tell(error: GgufnormError) -> int:
    process.complain(f"error: {printable(str(error))}", fg="red")
    if isinstance(error, EngineError) and error.log:
        process.complain("llama.cpp's last lines:")
        for line in error.log:
            process.complain(f"  {printable(line)}")
    return error.exit_code
