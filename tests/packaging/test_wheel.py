"""The wheel works where there is no source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.paths import ROOT

LIBRARY = "ggufnorm/core/libkernels.so"


def built(folder: Path, **environment: str) -> Path:
    """Build the wheel."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    command = [*pip, "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(command, check=True, env={**os.environ, **environment})
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment's python, with the wheel and, by path, our own dependencies."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False)
    base = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", base))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    dependencies = sysconfig.get_path("purelib")
    (packages / "dependencies.pth").write_text(dependencies + os.linesep, encoding="utf-8")
    return Path(sysconfig.get_path("scripts", "venv", base)) / "python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    script = "from ggufnorm.cli.main import main; main()"
    done = subprocess.run(
        [python, "-c", script, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_installed_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    script = "import ggufnorm; print(ggufnorm.__file__)"
    done = subprocess.run(
        [installed, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(installed.parents[1])


def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "demo", "--chunks", "1", "--keep", "demo")
    assert "The report names the damaged tensor: blk.2.ffn_down.weight." in shown
    assert "11 RMSNorms" in run(installed, tmp_path, "inspect", "demo/sotu-f16.gguf")
    assert "N402" in run(installed, tmp_path, "rules")


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"ggufnorm"}
    assert "ggufnorm/py.typed" in names


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_the_wheel_holds_the_compiled_loops_for_every_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert LIBRARY in archive.namelist()
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert not wheel.name.endswith("-any.whl")


@pytest.mark.parametrize("environment", [{"GGUFNORM_PURE": "1"}, {"CC": "no-such-compiler"}])
def test_without_a_compiler_the_wheel_is_for_all_platforms(
    environment: dict[str, str], tmp_path: Path
) -> None:
    here = Path(ROOT, LIBRARY)
    before = here.stat().st_mtime_ns if here.exists() else None
    wheel = built(tmp_path, **environment)
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    assert wheel.name.endswith("-py3-none-any.whl")
    assert (here.stat().st_mtime_ns if here.exists() else None) == before
