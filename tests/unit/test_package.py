"""What is imported when, and that the documents agree with the code."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import ggufnorm
from tests.processes import loaded_after


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert loaded_after("import ggufnorm").isdisjoint(
        {"numpy", "gguf", "click", "rich", "llama_cpp", "ctypes"}
    )


def test_help_imports_neither_numpy_nor_the_engine() -> None:
    statement = "from ggufnorm.cli.main import cli; cli.main(['--help'], standalone_mode=False)"
    assert loaded_after(statement).isdisjoint(
        {"numpy", "gguf", "rich", "llama_cpp", "pathlib", "tempfile"}
    )


def test_inspect_imports_no_other_command_and_no_page() -> None:
    statement = """
from ggufnorm.cli.main import cli
from ggufnorm.samples import sample_model
cli.main(["inspect", str(sample_model())], standalone_mode=False)
"""
    loaded = loaded_after(statement)
    ours = {name for name in loaded if name.startswith("ggufnorm.")}
    assert "ggufnorm.analysis.inspection" in ours
    assert not {n for n in ours if n.startswith(("ggufnorm.analysis.", "ggufnorm.engines"))} - {
        "ggufnorm.analysis.inspection"
    }
    assert not {n for n in ours if n.startswith("ggufnorm.report.html")}
    assert {n for n in ours if n.startswith("ggufnorm.report.views.")} <= {
        "ggufnorm.report.views.common",
        "ggufnorm.report.views.inspect",
    }
    assert {n for n in ours if n.startswith("ggufnorm.core.")} <= {
        f"ggufnorm.core.{name}"
        for name in ("distribution", "fingerprint", "floats", "model", "printable", "result")
    }
    assert loaded.isdisjoint({"jinja2", "vl_convert", "pandas", "torch", "httpx2"})
    # Milliseconds each, of which all of gguf-py's others are none of its constants'.
    others = {"gguf", "yaml", "sentencepiece", "hashlib", "logging", "tempfile"}
    assert loaded.isdisjoint(others | {"numpy.ma", "numpy.ma.core"})


def test_inspecting_works_without_the_engine() -> None:
    statement = """
import sys
sys.modules["llama_cpp"] = None  # as if it were not installed
import ggufnorm
from ggufnorm.samples import sample_model
assert len(ggufnorm.inspect(sample_model()).norms) == 11
"""
    assert "numpy" in loaded_after(statement)


def test_drift_without_the_engine_says_what_to_install() -> None:
    code = """
import sys
sys.modules["llama_cpp"] = None
from ggufnorm.engines.llama.binding import llama
llama()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "ggufnorm[llama]"' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ggufnorm.__all__)
def test_public_names_resolve_and_are_documented(name: str) -> None:
    assert inspect.getdoc(getattr(ggufnorm, name))


def test_public_names_are_listed_once_and_an_unknown_one_is_an_error() -> None:
    assert sorted(set(ggufnorm.__all__)) == sorted(ggufnorm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ggufnorm.nothing
