"""Other builds of llama.cpp: where their library is found, and what they lack."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufnorm.engines.llama.library import CHOICE, chosen_library, digest_of, find_library
from ggufnorm.errors import EngineMissingError
from ggufnorm.formats.llama_libraries import find_libraries


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)


@pytest.mark.parametrize(
    "place",
    [
        "libllama.so", "bin/libllama.so", "lib/libllama.so", "build/bin/libllama.so",
        "lib/libllama.dylib", "bin/llama.dll", "libllama.v0.5.0.so", "libllama.b10361.so",
        "libllama.vulkan.v0.5.0.so",
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

    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "b"))
    assert chosen_library() == tmp_path / "b" / "libllama.so"

    monkeypatch.setenv(CHOICE, str(tmp_path / "a"))
    assert chosen_library() == tmp_path / "a" / "libllama.so"
    assert len({digest_of(find_libraries(tmp_path / folder)) for folder in "ab"}) == 2
