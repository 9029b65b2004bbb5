"""Which build of llama.cpp runs is told from folders and variables alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufnorm.errors import EngineMissingError
from ggufnorm.formats import llama_libraries
from ggufnorm.formats.llama_libraries import (
    BINDING_VARIABLE,
    CACHE_VARIABLE,
    MISSING,
    VARIABLE,
    chosen_libraries,
    find_libraries,
)


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (VARIABLE, BINDING_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(llama_libraries, "package_folder", lambda _name: None)


def library(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "libllama.so",
        "libllama.so.0",
        "libllama.so.0.0.6301",
        "libllama.dylib",
        "libllama.0.dylib",
        "llama.dll",
        "libllama.v0.5.0.so",
        "libllama.vulkan.v0.5.0.so",
    ],
)
@pytest.mark.parametrize("folder", ["", "bin", "lib", "lib64", "build/bin", "bin/Release"])
def test_a_build_is_found_under_every_name(tmp_path: Path, folder: str, name: str) -> None:
    path = library(tmp_path / folder / name)
    library(path.with_name("libllama-common.so"))
    library(path.with_name("libllamafile.so"))
    assert find_libraries(tmp_path).llama == path


def test_one_shared_library_is_a_build(tmp_path: Path) -> None:
    path = library(tmp_path / "anything.abi3.so")
    assert find_libraries(path).llama == path


def test_a_place_without_a_build_is_refused(tmp_path: Path) -> None:
    library(tmp_path / "libllama-common.so")
    with pytest.raises(EngineMissingError, match="no libllama there"):
        find_libraries(tmp_path)


def test_the_order_is_option_variable_binding_fetched_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen_libraries() is None
    packages = {name: tmp_path / name for name in ("llama_cpp", "xllamacpp")}
    monkeypatch.setattr(llama_libraries, "package_folder", packages.get)
    packages["xllamacpp"].mkdir()
    library(packages["xllamacpp"] / "xllamacpp.abi3.so")
    packages["llama_cpp"] = None  # type: ignore[assignment]
    found = [chosen_libraries()]
    library(tmp_path / "cache/engines/cpu/libllama.so")
    found.append(chosen_libraries())
    packages["llama_cpp"] = tmp_path / "llama_cpp"
    library(tmp_path / "llama_cpp/lib/libllama.so")
    found.append(chosen_libraries())
    library(tmp_path / "own/libllama.so")
    monkeypatch.setenv(BINDING_VARIABLE, str(tmp_path / "own"))
    found.append(chosen_libraries())
    library(tmp_path / "build/bin/libllama.so")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "build"))
    found.append(chosen_libraries())
    origins = ["xllamacpp", "fetched", "llama-cpp-python", "LLAMA_CPP_LIB_PATH", "--llama-cpp"]
    assert [f.origin for f in found if f] == origins


def test_the_error_names_all_four_ways() -> None:
    for way in ("--llama-cpp", VARIABLE, BINDING_VARIABLE, "ggufnorm[llama]", "engine get"):
        assert way in MISSING


def test_ggml_and_its_backends_compute(tmp_path: Path) -> None:
    path = library(tmp_path / "libllama.so")
    for name in ("libggml.so", "libggml-base.so", "libggml-cpu-zen4.so", "libllama-common.so"):
        library(tmp_path / name)
    computing = [p.name for p in find_libraries(path).computing()]
    assert computing == ["libggml-base.so", "libggml-cpu-zen4.so", "libggml.so"]
