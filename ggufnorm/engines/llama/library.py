"""Which llama.cpp is run: llama-cpp-python's, or another build that a user names.

llama-cpp-python's bindings drive any build whose structures lie as theirs do; that is checked
(:func:`ggufnorm.engines.llama.binding.llama`). libllama and ggml are one handle then: the wheel
holds two copies of ggml's library, each with its own registry of backends, and libllama opens the
second.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufnorm.errors import EngineError, EngineMissingError

CHOICE = "GGUFNORM_LLAMA_CPP"
"""An environment variable, which child processes inherit: the build to run."""
_OTHERS = "LLAMA_CPP_LIB_PATH"
"""llama-cpp-python's own variable: a folder with libllama."""

_FOLDERS = ("", "bin", "lib", "lib64", "build/bin", "build/lib", "build/src")
"""Where build trees, install prefixes and release folders keep their libraries."""
_NAME = re.compile(r"(?:lib)?llama(?:\.[bv]?[\d.]+)?\.(?:so(?:\.[\d.]+)?|(?:[\d.]+\.)?dylib|dll)")
_OURS = re.compile(r"(?:lib)?(?:llama|ggml)\.(?:so|dylib|dll)")
"""What llama-cpp-python opens: libllama, and ggml beside it."""
_PART = 1 << 22


def chosen_library() -> Path | None:
    """The libllama of the build that was chosen; None for llama-cpp-python's own.

    Raises:
        EngineMissingError: the place that was named holds none.
    """
    for variable in (CHOICE, _OTHERS):
        place = os.environ.get(variable)
        if place:
            return find_library(place)
    return None


def find_library(place: str | os.PathLike[str]) -> Path:
    """The libllama in a build tree, an install prefix or a release folder, or the file itself.

    Raises:
        EngineMissingError: there is none.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return path.resolve()
    for folder in _FOLDERS:
        found = sorted(f for f in _files(path / folder) if _NAME.fullmatch(f.name))
        if found:
            return found[0].resolve()  # the shortest name is the link to the others
    raise EngineMissingError(
        f"{path}: no libllama there: name llama.cpp's build tree, install prefix or release folder,"
        f" or the library itself; or leave out --llama-cpp, {CHOICE} and {_OTHERS} to run"
        " llama-cpp-python's"
    )


def _files(folder: Path) -> Sequence[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except OSError:
        return ()


def identity() -> str | None:
    """What tells a chosen build from any other: the digest of its libraries.

    Returns:
        None for llama-cpp-python's own, which its version tells.

    Raises:
        EngineMissingError: the place that was named holds none.
    """
    library = chosen_library()
    if library is None:
        return None
    digest = hashlib.sha256()
    names = ("llama", "ggml")
    for path in sorted(_files(library.parent)):
        if path.name.removeprefix("lib").startswith(names) and not path.is_symlink():
            with path.open("rb") as file:
                while part := file.read(_PART):
                    digest.update(part)
    return digest.hexdigest()


class _Missing:
    """A function that a build lacks: an error when it is called, not when it is bound."""

    def __init__(self, name: str, library: Path) -> None:
        self.name, self.library = name, library

    def __call__(self, *_arguments: Any) -> Any:
        raise EngineError(f"{self.library} has no {self.name}: it is another release of llama.cpp")


@contextmanager
def opening(library: Path | None) -> Iterator[None]:
    """Have ``import llama_cpp`` open a library in the place of its own.

    Args:
        library: of the build that was chosen; None changes nothing.
    """
    if library is None:
        yield
        return
    original, chosen = ctypes.CDLL, library

    class Chosen(original):  # type: ignore[misc, valid-type]
        def __init__(self, name: Any, *arguments: Any, **options: Any) -> None:
            is_ours = name is not None and _OURS.fullmatch(Path(name).name)
            super().__init__(str(chosen) if is_ours else name, *arguments, **options)

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("__"):
                    raise
                missing = _Missing(name, chosen)
                setattr(self, name, missing)
                return missing

    # The folder that llama_cpp would look into must exist, and the file in it need not.
    former = os.environ.pop(_OTHERS, None)
    ctypes.CDLL = Chosen  # type: ignore[misc]
    try:
        yield
    finally:
        ctypes.CDLL = original  # type: ignore[misc]
        if former is not None:
            os.environ[_OTHERS] = former
