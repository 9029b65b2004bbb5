"""Where llama.cpp's shared libraries are: which build runs, found without loading it.

A build is a folder (a CMake build tree, an install prefix, an unpacked release) or one shared
library that holds all of llama.cpp. The first of these that there is runs:

1. what ``--llama-cpp`` or the variable ``GGUFNORM_LLAMA_CPP`` names,
2. the folder in ``LLAMA_CPP_LIB_PATH``, llama-cpp-python's own variable,
3. the package llama-cpp-python,
4. an engine that ``ggufnorm engine get`` fetched, or the package xllamacpp.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ggufnorm.errors import EngineMissingError

VARIABLE = "GGUFNORM_LLAMA_CPP"
"""Names the build to run, for this process and those that it starts."""

BINDING_VARIABLE = "LLAMA_CPP_LIB_PATH"
"""The folder that llama-cpp-python loads its libraries from (``llama_cpp/llama_cpp.py``)."""

CACHE_VARIABLE = "GGUFNORM_CACHE"

Origin = Literal["--llama-cpp", "LLAMA_CPP_LIB_PATH", "llama-cpp-python", "fetched", "xllamacpp"]

_FOLDERS = ("", "bin", "lib", "lib64", "build/bin", "Release", "bin/Release", "build/bin/Release")
"""Where builds keep their libraries, as seen from the folder that a user names."""

MISSING = (
    "this needs llama.cpp, and there is none: name a build with --llama-cpp DIR (or"
    f" {VARIABLE}), set {BINDING_VARIABLE} to a folder with its libraries,"
    ' pip install "ggufnorm[llama]" (llama-cpp-python; it compiles, so a C++ compiler is'
    " needed), or fetch a prebuilt one: ggufnorm engine get cpu"
    ' (or pip install "ggufnorm[prebuilt]")'
)


@dataclass(frozen=True)
class LlamaLibraries:
    """A build of llama.cpp.

    Attributes:
        llama: the shared library with llama.h's functions; it leads to ggml's.
        origin: who named it.
    """

    llama: Path
    origin: Origin

    @property
    def folder(self) -> Path:
        """Where it lies, and the libraries that belong to it."""
        return self.llama.parent

    def computing(self) -> list[Path]:
        """The other files that decide what is computed: ggml and its backends."""
        beside = sorted(p.resolve() for p in self.folder.iterdir() if _is_ggml(p.name))
        return [p for p in dict.fromkeys(beside) if p != self.llama.resolve()]

    def backend(self, name: str) -> Path | None:
        """The plugin of a backend (``ggml-rpc``) beside it; None where there is none."""
        return _library_in(self.folder, f"ggml-{name}")

    def others(self) -> list[Path]:
        """The libraries beside it that make up ggml, in order of their names."""
        found = {p.resolve() for p in self.folder.iterdir() if _stem(p.name) in _GGML}
        return sorted(found)


_GGML = ("ggml", "ggml-base")


def find_libraries(where: Path, origin: Origin = "--llama-cpp") -> LlamaLibraries:
    """The libraries of a build.

    Args:
        where: a build tree, an install prefix, a release's folder, or a shared library.
        origin: who named it.

    Raises:
        EngineMissingError: none is there.
    """
    if not where.exists():  # the device of a fetched one?
        fetched = [f for f in fetched_engines() if f.name.partition("-")[0] == str(where)]
        where = fetched[0] if fetched else where
    if where.is_file():
        return LlamaLibraries(where.resolve(), origin)
    for folder in _FOLDERS:
        path = _library_in(where / folder, "llama")
        if path is not None:
            return LlamaLibraries(path.resolve(), origin)
    raise EngineMissingError(
        f"{where}: no libllama there: name llama.cpp's build tree, install prefix or release"
        f" folder, or the library itself; or leave out --llama-cpp, {VARIABLE} and"
        f" {BINDING_VARIABLE} to run llama-cpp-python's"
    )


def chosen_libraries() -> LlamaLibraries | None:
    """The build that runs; None where there is none.

    Raises:
        EngineMissingError: a variable names a place that has none.
    """
    if named := os.environ.get(VARIABLE):
        return find_libraries(Path(named).expanduser(), "--llama-cpp")
    if named := os.environ.get(BINDING_VARIABLE):
        return find_libraries(Path(named), "LLAMA_CPP_LIB_PATH")
    if (folder := package_folder("llama_cpp")) is not None:
        path = _library_in(folder / "lib", "llama")
        return None if path is None else LlamaLibraries(path, "llama-cpp-python")
    for folder in fetched_engines():
        return find_libraries(folder, "fetched")
    if (folder := package_folder("xllamacpp")) is not None:
        path = next(iter(sorted(folder.glob(f"xllamacpp*{_suffix()}"))), None)
        return None if path is None else LlamaLibraries(path, "xllamacpp")
    return None


def package_folder(name: str) -> Path | None:
    """The folder of a Python package, not imported; None where it is not installed."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def cache_folder() -> Path:
    """Where fetched engines are kept."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    base = {
        "darwin": Path.home() / "Library" / "Caches",
        "win32": Path(os.environ.get("LOCALAPPDATA") or Path.home()),
    }.get(sys.platform) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ggufnorm"


def fetched_engines() -> list[Path]:
    """Folders of the engines that were fetched, the last one first."""
    folder = cache_folder() / "engines"
    if not folder.is_dir():
        return []
    complete = [p for p in folder.iterdir() if p.is_dir() and _library_in(p, "llama")]
    return sorted(complete, key=lambda p: (p.stat().st_mtime, p.name), reverse=True)


def _library_in(folder: Path, stem: str) -> Path | None:
    """The library of that stem in a folder: the plainest name of it."""
    if not folder.is_dir():
        return None
    found = [p for p in folder.iterdir() if _stem(p.name) == stem and p.is_file()]
    return min(found, key=lambda p: (len(p.name), p.name), default=None)


# libllama.so, libllama.so.0, libllama.0.dylib, libllama.v0.5.0.so, libllama.vulkan.v0.5.0.so
_NAME = re.compile(r"^(?:lib)?([a-z][a-z0-9-]*?)(?:\.[\w.]+)?\.(?:so|dylib|dll)(?:\.[\d.]+)?$")


def _stem(name: str) -> str | None:
    """``llama`` of a shared library's name; None for other files."""
    found = _NAME.match(name)
    return None if found is None else found[1]


def _is_ggml(name: str) -> bool:
    stem = _stem(name)
    return stem is not None and stem.split("-")[0] == "ggml"


def _suffix() -> str:
    return ".pyd" if sys.platform == "win32" else ".so"
