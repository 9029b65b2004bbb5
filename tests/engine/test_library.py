"""A build of llama.cpp that is named runs as the installed one does, or is refused."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import pytest

import ggufnorm
from ggufnorm.engines.llama import binding
from ggufnorm.engines.llama.library import CHOICE
from ggufnorm.errors import InputError, RefusedError
from tests.processes import ggufnorm as run

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 4


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Path:
    """llama-cpp-python's libraries, named as another build."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "lib"
    monkeypatch.setenv(CHOICE, str(folder))
    return folder


def drift(path: Path, **more: object) -> ggufnorm.DriftReport:
    return ggufnorm.drift(path, path, text=TEXT, n_ctx=32, chunks=2, n_threads=1, **more)  # type: ignore[arg-type]


def test_a_named_build_runs_and_stands_in_the_report(tiny: dict[str, Path], build: Path) -> None:
    report = drift(tiny["llama"])

    assert report.logits is not None
    assert report.logits.max_kld == 0
    assert report.run.engine.startswith("llama.cpp 0")


def test_two_builds_do_not_share_a_checkpoint(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Path
) -> None:
    kept = tmp_path / "kept.json"
    drift(tiny["llama"], resume=kept)
    monkeypatch.delenv(CHOICE)

    with pytest.raises(InputError, match="belongs to another run"):
        drift(tiny["llama"], resume=kept)


def test_the_option_chooses_for_the_command_and_its_child(
    tiny: dict[str, Path], build: Path
) -> None:
    done = run(
        "drift", tiny["llama"], tiny["llama"], "-c", "32", "--chunks", "1", "--llama-cpp", build
    )

    assert done.returncode == 0
    assert "(libllama.so, ggml " in done.stdout


def test_a_place_without_a_build_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    done = run("drift", "a.gguf", "b.gguf", "--llama-cpp", tmp_path)

    assert done.returncode == 4
    assert done.stderr.startswith(f"error: {tmp_path}: no libllama there")


def test_gpu_layers_without_a_gpu_are_refused_and_not_run_on_the_cpu(
    tiny: dict[str, Path],
) -> None:
    if binding.llama().llama_supports_gpu_offload():
        pytest.skip("this llama.cpp has a GPU")

    with pytest.raises(
        RefusedError, match=r"99 layers cannot be put on a GPU: this llama\.cpp has"
    ):
        drift(tiny["llama"], n_gpu_layers=99)


def test_ggml_is_the_one_that_libllama_uses() -> None:
    from llama_cpp.llama_cpp import _lib

    address = ctypes.cast(_lib.ggml_nbytes, ctypes.c_void_p).value
    assert ctypes.cast(binding.ggml().ggml_nbytes, ctypes.c_void_p).value == address
