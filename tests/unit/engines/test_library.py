"""Other builds of llama.cpp: where their library is found, and what they lack."""

from __future__ import annotations

import ctypes
import ctypes.util
from pathlib import Path

import pytest

from ggufnorm.engines.llama import library
from ggufnorm.engines.llama.library import CHOICE, chosen_library, find_library, identity, opening
from ggufnorm.errors import EngineError, EngineMissingError


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)


@pytest.mark.parametrize(
    "place",
    [
        "libllama.so", "bin/libllama.so", "lib/libllama.so", "build/bin/libllama.so",
        "lib/libllama.dylib", "bin/llama.dll", "libllama.v0.5.0.so", "libllama.b10361.so",
        "lib64/libllama.so.0.5.0",
    ],
)  # fmt: skip
def test_a_library_is_found_where_builds_put_it(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True, parents=True)
    for name in (path.name, "libllama-common.so", "llama-cli", "libggml.so"):
        (path.parent / name).write_bytes(b"")

    assert find_library(tmp_path) == path
    assert find_library(path) == path


def test_a_place_without_one_names_all_ways(tmp_path: Path) -> None:
    with pytest.raises(EngineMissingError, match=r"no libllama there.*--llama-cpp, GGUFNORM_LLAMA"):
        find_library(tmp_path)


def test_the_choice_goes_before_llama_cpp_pythons_own_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "libllama.so").write_bytes(folder.encode())
    assert chosen_library() is None
    assert identity() is None

    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "b"))
    other = identity()
    assert chosen_library() == tmp_path / "b" / "libllama.so"

    monkeypatch.setenv(CHOICE, str(tmp_path / "a"))
    assert chosen_library() == tmp_path / "a" / "libllama.so"
    assert identity() not in (None, other)


def test_what_a_build_lacks_fails_when_it_is_called() -> None:
    libm = ctypes.util.find_library("m")
    if libm is None:
        pytest.skip("no C library to stand for a build")

    with opening(Path(libm)):
        opened = ctypes.CDLL("libllama.so")
        assert ctypes.CDLL(None) is not None
    function = opened.llama_batch_ext_init
    function.argtypes = [ctypes.c_int]

    assert opened.cos is not None
    with pytest.raises(EngineError, match="has no llama_batch_ext_init: it is another release"):
        function(1)
    assert ctypes.CDLL.__name__ == "CDLL"


def test_the_libraries_that_are_replaced_are_llama_and_ggml_alone() -> None:
    for name, is_ours in (("libllama.so", True), ("libggml.dylib", True), ("ggml.dll", True),
                          ("libmtmd.so", False), ("libc.so.6", False)):  # fmt: skip
        assert bool(library._OURS.fullmatch(name)) == is_ours
