"""Command lines that click refuses are answered with the one that was meant."""

from __future__ import annotations

import shlex
import sys

import click
import pytest

from ggufnorm.cli.main import _COMMANDS, cli
from ggufnorm.cli.signs import sign_for


@pytest.mark.parametrize(
    ("line", "sign"),
    [
        ("audit m.gguf --image x.png", "ggufnorm drift and ggufnorm compare take it"),
        ("drift a b --by layer", "ggufnorm attribute takes it"),
        ("drift a b --no-such-thing", None),
        ("trace m.gguf", "use ggufnorm trace m.gguf -o TRACE.safetensors"),
        ("fix 'my model.gguf'", "use ggufnorm fix 'my model.gguf' -o FIXED.gguf"),
        ("verify q.gguf", "use ggufnorm verify q.gguf --from F16.gguf"),
        ("audio --processor hf", "use ggufnorm audio --processor hf SOUND.wav"),
        ("report", "use ggufnorm report FILE.json"),
        ("chekc m.gguf", "did you mean ggufnorm check?"),
        ("model.gguf", "use ggufnorm check model.gguf"),
        ("perplexity m.gguf", "use ggufnorm drift REF QUANT"),
        ("zzz", None),
    ],
)
def test_a_refusal_names_the_command_that_was_meant(
    line: str, sign: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", ["ggufnorm", *words])
    with pytest.raises(click.ClickException) as refusal:
        cli.main(words, standalone_mode=False)

    assert sign_for(refusal.value, _COMMANDS) == sign
