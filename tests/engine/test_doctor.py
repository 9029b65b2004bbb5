"""``doctor`` where all is installed."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
from click.testing import CliRunner

from ggufnorm import doctor
from ggufnorm.cli.main import cli
from ggufnorm.engines import worker
from ggufnorm.errors import EngineError
from ggufnorm.version import __version__
from tests.servers import HubServer, running
from tests.unit.cli.test_doctor import found


def test_all_is_well_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(HubServer()) as server:
        examined = found(monkeypatch, server.url)
    assert {e.state for e in examined.values()} == {"ok"}
    assert metadata.version("llama-cpp-python") in examined["llama.cpp"].found
    assert "CPU (" in examined["llama.cpp"].found
    assert "11 norms" in examined["drift"].found
    assert "without a token" in examined["Hugging Face Hub"].found


def test_what_is_broken_is_told_and_the_rest_is_still_examined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = worker.call

    def crash(task: Any, *arguments: Any, **how: Any) -> Any:
        if task is doctor.describe_engine:
            raise EngineError("llama.cpp crashed (SIGILL)")
        return call(task, *arguments, **how)

    monkeypatch.setattr(worker, "call", crash)
    monkeypatch.setattr(doctor, "HUB_PATIENCE", 0.1)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = CliRunner().invoke(cli, ["doctor"], standalone_mode=False)
    lines = {line[2:19].strip(): line for line in done.output.splitlines()}
    assert lines["llama.cpp"] == "✗ llama.cpp        llama.cpp crashed (SIGILL)"
    assert lines["drift"].startswith("✓")
    assert done.return_value == 1


def test_optional_packages_are_told_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_torch(package: str) -> str:
        if package == "torch":
            raise metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(metadata, "version", without_torch)
    examined = found(monkeypatch, "http://127.0.0.1:9")["optional"]
    assert examined.state == "absent"
    assert "not installed: torch ([hf])" in examined.found
    assert f"transformers {version('transformers')}" in examined.found


def test_version_names_the_engine() -> None:
    done = CliRunner().invoke(cli, ["--version"])
    assert done.exit_code == 0
    assert done.output.startswith(f"ggufnorm {__version__} (")
    assert f"llama-cpp-python {metadata.version('llama-cpp-python')}" in done.output
