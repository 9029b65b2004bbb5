"""The wheel works where there is no source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


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
