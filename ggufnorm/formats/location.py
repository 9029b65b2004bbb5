"""One word for where a model is.

A location is one of

- a path; any shard of a split model stands for the whole of it;
- ``https://…`` or ``http://…``, read by range requests;
- ``hf://org/repo[@revision]/file.gguf`` on the Hugging Face Hub, or
  ``hf://org/repo[@revision][:QUANT]`` with the meaning of ``llama.cpp -hf``;
- ``ollama:[[host/]namespace/]name[:tag]``, a model that Ollama has pulled.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ggufnorm.errors import InputError
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.ollama import find_blob
from ggufnorm.formats.split import (
    LocalPlace,
    Place,
    all_shards,
    is_shard_name,
    open_place,
    shard_count,
)

if TYPE_CHECKING:
    from ggufnorm.formats.hf import Folder


def open_model(location: str | os.PathLike[str]) -> ModelFile:
    """Open a model, wherever it is.

    Args:
        location: see the module; a ``PathLike`` is always a path.

    Returns:
        A context manager. Of a remote model only the header has been fetched.

    Raises:
        InputError: it cannot be found or opened, or its shards do not make one model.
        GGUFError: a file is not well-formed.
    """
    kind, text = _kind(location)
    if kind == "http":
        return open_place(_remote("remote").remote_place(text))
    if kind == "hf":
        return open_place(_remote("hub").hub_place(text))
    return open_place(_local_place(kind, text))


def local_path(location: str | os.PathLike[str]) -> Path:
    """The file on this machine that llama.cpp is to open: of a split model, its first shard.

    Raises:
        InputError: the location is remote and not in huggingface_hub's cache, or the
            model cannot be found.
    """
    kind, text = _kind(location)
    if kind == "http":
        name = _remote("remote").public_address(text)
        raise InputError(
            f"{name}: running a model needs it on this machine: download it first"
            f" (`curl -LO {name}`)"
        )
    if kind == "hf":
        path: Path = _remote("hub").downloaded(text)
        return _first_shard(LocalPlace(str(path)))
    return _first_shard(_local_place(kind, text))


def checkpoint_folder(name: str) -> Path:
    """The folder of a checkpoint on this machine.

    Args:
        name: of the folder, or ``org/repo`` for one in huggingface_hub's cache.

    Raises:
        InputError: there is neither.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or name.count("/") != 1 or not all(name.split("/")) or name[0] in "./~":
        raise InputError(f"{name}: no such folder: give one with config.json and safetensors")
    folder: Path = _remote("hub").snapshot(name)
    return folder


def hub_folder(location: str) -> Folder:
    """A repository ``hf://org/repo[@revision]`` that holds a checkpoint.

    Raises:
        InputError: it cannot be found.
    """
    folder: Folder = _remote("hub").HubFolder(location)
    return folder


def expand(locations: Iterable[str]) -> list[str]:
    """Folders and shell patterns become the GGUF files in them; all else stays as it is.

    Args:
        locations: see the module. A folder stands for all ``*.gguf`` in and below it.

    Returns:
        Each model once, a split one by its first shard that is there, in the order given
        and within a folder by name.

    Raises:
        InputError: a folder or a pattern has no GGUF file.
    """
    found: dict[str, str] = {}
    for location in locations:
        for path in _expanded(location):
            # All shards of a set have the same first name.
            found.setdefault(all_shards(path)[0], path)
    return list(found.values())


def _expanded(location: str) -> Iterator[str]:
    path = Path(location)
    if _kind_or_path(location) != "path" or path.is_file():
        yield location
    elif path.is_dir():
        yield from _some(map(str, path.rglob("*.gguf")), location)
    elif set(location) & set("*?["):
        root = Path(path.anchor)
        matching = root.glob(str(path.relative_to(root)))
        yield from _some(map(str, matching), location)
    else:
        yield location


def _kind_or_path(location: str) -> str:
    scheme = location.partition(":")[0].lower()
    return "path" if "://" not in location and scheme != "ollama" else scheme


def _some(paths: Iterable[str], location: str) -> list[str]:
    found = sorted(paths)
    if not found:
        raise InputError(f"{location}: there is no GGUF file")
    return found


def _kind(location: str | os.PathLike[str]) -> tuple[str, str]:
    """``path``, ``http``, ``hf`` or ``ollama``, and the location as text."""
    text = os.fspath(location)
    scheme = text.partition(":")[0].lower() if isinstance(location, str) else ""
    if scheme in ("http", "https") and "://" in text:
        return "http", text
    if scheme == "hf" and "://" in text:
        return "hf", text
    if scheme == "ollama":
        return "ollama", text.partition(":")[2]
    if isinstance(location, str) and "://" in text and not Path(text).exists():
        raise InputError(
            f"{text}: models are opened from a path, https://…, hf://org/repo/file.gguf"
            " or ollama:name"
        )
    return "path", text


def _local_place(kind: str, text: str) -> Place:
    return LocalPlace(str(find_blob(text)) if kind == "ollama" else text)


def _first_shard(place: Place) -> Path:
    if not is_shard_name(place.name):
        return Path(place.name)
    with GGUFFile(place.open()) as file:
        count = shard_count(file)
    return Path(place.shard(1, count).name if count > 1 else place.name)


def _remote(name: str) -> ModuleType:
    """A module that needs the ``remote`` extra.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(f"ggufnorm.formats.{name}")
    except ImportError as error:
        raise InputError(
            f"remote models need another package ({error}): pip install 'ggufnorm[remote]'"
        ) from None
