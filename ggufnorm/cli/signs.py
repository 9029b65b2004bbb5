"""What to type instead, for command lines that click refuses."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Iterable
from difflib import get_close_matches

import click

_MEANT = {
    "quantize": "llama.cpp's llama-quantize quantizes; ggufnorm recipe chooses the types",
    "convert": "llama.cpp's convert_hf_to_gguf.py converts; ggufnorm audit MODEL --source FOLDER"
    " says whether it is right",
    "lint": "use ggufnorm audit MODEL",
    "run": "use ggufnorm trace MODEL -o TRACE.safetensors",
    "perplexity": "use ggufnorm drift REF QUANT",
    "help": "use ggufnorm --help",
    "version": "use ggufnorm --version",
}
"""Commands of other programs, and what is ours."""


def sign_for(error: click.ClickException, commands: Iterable[str]) -> str | None:
    """The command that was meant; None where click's own message says it.

    Args:
        error: as click raised it.
        commands: names of all commands.
    """
    if isinstance(error, click.NoSuchOption):
        return _owners(error, commands)
    if isinstance(error, click.MissingParameter):
        return _complete(error.ctx)
    if isinstance(error, click.UsageError) and error.message.startswith("No such command"):
        return _command(_unknown(error), commands)
    return None


def _unknown(error: click.UsageError) -> str:
    return error.message.partition("'")[2].partition("'")[0]


def _command(name: str, commands: Iterable[str]) -> str | None:
    known = _MEANT.get(name.lower())
    if known is not None:
        return known
    near = get_close_matches(name.lower(), list(commands), 1, 0.6)
    if near:
        return f"did you mean ggufnorm {near[0]}?"
    looks_like_file = any(mark in name for mark in "./\\:")
    return f"use ggufnorm check {name}" if looks_like_file else None


def _owners(error: click.NoSuchOption, commands: Iterable[str]) -> str | None:
    """The commands that have the option."""
    here = error.ctx.command.name if error.ctx else None
    found = [name for name in commands if name != here and error.option_name in _options(name)]
    if not found:
        return None
    *most, last = [f"ggufnorm {name}" for name in found]
    return f"{', '.join(most)} and {last} take it" if most else f"{last} takes it"


def _options(name: str) -> set[str]:
    command: click.Command = importlib.import_module(
        f"ggufnorm.cli.{name.replace('-', '_')}"
    ).command
    return {option for parameter in command.params for option in parameter.opts}


def _complete(context: click.Context | None) -> str | None:
    """The command as it was typed, and an example of each option that it cannot do without."""
    if context is None or context.command.name is None:
        return None
    typed = sys.argv[2:] if sys.argv[1:2] == [context.command.name] else []
    words = [
        _EXAMPLES.get((context.command.name, parameter.name or ""), parameter.human_readable_name)
        for parameter in context.command.params
        if parameter.required and not set(parameter.opts) & set(typed)
    ]
    return f"use ggufnorm {context.command.name} {' '.join([shlex.join(typed), *words]).strip()}"


_EXAMPLES = {
    ("trace", "output"): "-o TRACE.safetensors",
    ("fix", "output"): "-o FIXED.gguf",
    ("verify", "source"): "--from F16.gguf",
    ("audio", "sound"): "SOUND.wav",
    ("report", "files"): "FILE.json",
    ("rule", "rule_id"): "N402",
}
"""What stands in for a missing parameter."""
