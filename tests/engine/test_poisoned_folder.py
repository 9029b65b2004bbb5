"""Python files in the current folder, as a downloaded repository may have them, are not run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ggufnorm.engines.llama.quantize import quantize
from tests import models, vision
from tests.fault_table import fault

MODULES = (
    "numpy", "json", "queue", "gguf", "struct", "ctypes", "typing", "click", "rich", "psutil",
    "llama_cpp", "ggufnorm", "sitecustomize", "usercustomize", "torch", "transformers", "onnx",
)  # fmt: skip

COMMANDS = [
    "inspect m.gguf",
    "diff m.gguf q.gguf",
    "audit m.gguf --run",
    "drift m.gguf q.gguf -f text -c 32 --chunks 1 -t 1",
    "trace m.gguf -f text -c 32 --chunks 1 -t 1 -o t.safetensors",
    "compare old.safetensors q.gguf -t 1",
    "attribute m.gguf q.gguf -f text -c 32 --chunks 1 -t 1",
    "recipe m.gguf q.gguf -f text -c 32 --chunks 1 -t 1 --types q4_k,q5_k",
    "pixels picture.png --mmproj mmproj.gguf",
    "demo --chunks 1",
    "doctor",
    "rules",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    """A repository with models, and with modules that leave a mark when they are run."""
    path = tmp_path_factory.mktemp("repository")
    models.llama(path / "m.gguf")
    quantize(path / "m.gguf", path / "q.gguf", "Q4_K_S", n_threads=1)
    (path / "text").write_text(text)
    vision.write_mmproj(path / "mmproj.gguf")
    vision.write_picture(path / "picture.png", 32, 32)
    script = path.parent / "bin" / "ggufnorm"
    script.parent.mkdir(exist_ok=True)
    script.write_text("from ggufnorm.entry import main\nmain()\n")
    run(path, "trace m.gguf -f text -c 32 --chunks 1 -t 1 -o old.safetensors")
    for name in MODULES:
        mark = f"open({str(path / 'ran')!r}, 'a').write('{name} ')\n"
        (path / f"{name}.py").write_text(f"{mark}raise SystemExit('{name} was run')\n")
    return path


def run(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    script = folder.parent / "bin" / "ggufnorm"
    command = [sys.executable, str(script), *line.split()]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


@fault("Processes", "`numpy.py`, `json.py` … in the current folder", then="never run")
@pytest.mark.parametrize("line", COMMANDS)
def test_no_command_runs_python_of_the_current_folder(folder: Path, line: str) -> None:
    done = run(folder, line)
    assert not (folder / "ran").exists(), (folder / "ran").read_text()
    assert done.returncode in (0, 1), done.stderr
