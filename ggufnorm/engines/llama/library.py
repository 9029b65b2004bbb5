"""Which llama.cpp is run: llama-cpp-python's, or another build that a user names.

Where builds are is told by :mod:`ggufnorm.formats.llama_libraries`, which ggml's conversions
use, too: a process must not hold two.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ggufnorm.engines.llama.prebuilt import DEVICES, folder_of
from ggufnorm.errors import EngineMissingError
from ggufnorm.formats.llama_libraries import VARIABLE as CHOICE
from ggufnorm.formats.llama_libraries import LlamaLibraries, chosen_libraries, find_libraries

__all__ = ["CHOICE", "choose_build", "chosen_library", "digest_of", "find_library"]

_PART = 1 << 22


def chosen_library() -> Path | None:
    """The libllama of the build that was chosen; None for llama-cpp-python's own, or for none.

    Raises:
        EngineMissingError: the place that was named holds none.
    """
    libraries = chosen_libraries()
    if libraries is None or libraries.origin == "llama-cpp-python":
        return None
    return libraries.llama


def find_library(place: str | os.PathLike[str]) -> Path:
    """The libllama of a build.

    Args:
        place: a build tree, an install prefix, a release folder, the library itself, or the device
            of a build that was fetched (:mod:`ggufnorm.engines.llama.prebuilt`).

    Raises:
        EngineMissingError: there is none.
    """
    path = Path(place).expanduser()
    is_device = os.fspath(place) in DEVICES and not path.exists()
    if is_device and not folder_of(os.fspath(place)).is_dir():
        raise EngineMissingError(
            f"no {place} build was fetched: ggufnorm engine get {place} does that"
        )
    return find_libraries(path).llama


_LOADED: list[LlamaLibraries] = []


def mark_loaded(libraries: LlamaLibraries) -> None:
    """Note that this process has loaded a build, and can load no other."""
    _LOADED.append(libraries)


def choose_build(place: str | None) -> None:
    """Run a build in this process, and in those that it starts.

    Args:
        place: as for ``--llama-cpp``; None for the build that runs where none is named.

    Raises:
        EngineMissingError: there is none, or another one is loaded already. Two in one process
            would share symbols by their libraries' names: one might call into the other.
    """
    before = os.environ.pop(CHOICE, None)
    if place is not None:
        os.environ[CHOICE] = place
    chosen = chosen_libraries()
    if _LOADED and (chosen is None or chosen.llama != _LOADED[0].llama):
        os.environ.pop(CHOICE, None)
        os.environ.update({} if before is None else {CHOICE: before})
        raise EngineMissingError(
            f"this process has loaded another llama.cpp than {place or 'the one wanted'}"
        )


def digest_of(libraries: LlamaLibraries) -> str:
    """SHA-256 of the libraries that compute."""
    digest = hashlib.sha256()
    for path in (libraries.llama, *libraries.computing()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while part := file.read(_PART):
                digest.update(part)
    return digest.hexdigest()
