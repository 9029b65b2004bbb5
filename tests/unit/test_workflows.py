"""The commands of the workflows exist: without a runner nothing else would notice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ggufnorm.cli.main import cli

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_there_are_workflows() -> None:
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_commands_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"\brun: make ([a-z]+)", text)) <= targets
    assert set(re.findall(r"\bggufnorm ([a-z]+)$", text, re.M)) <= set(cli.list_commands(None))  # type: ignore[arg-type]
    for folder in re.findall(r"\bpytest .*?(tests/\S+)", text):
        assert (ROOT / folder).exists()
