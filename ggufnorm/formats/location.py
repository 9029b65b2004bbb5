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
from pathlib import Path
from types import ModuleType

from ggufnorm.errors import InputError
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.ollama import find_blob
from ggufnorm.formats.split import LocalPlace, Place, is_shard_name, open_place, shard_count


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
