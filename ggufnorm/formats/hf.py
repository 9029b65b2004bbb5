"""A checkpoint as Hugging Face's libraries save it: config.json and safetensors.

Read without torch: F32, F16, BF16 and F64, in one file or in shards that
``model.safetensors.index.json`` lists. What lies in the folder is someone else's: sizes
are bounded, and no name leads out of the folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.safetensors import SafetensorsFile
from ggufnorm.formats.safetensors_header import Place, parse_json
from ggufnorm.formats.storage import LocalStorage

Config = Mapping[str, Any]
"""What a JSON file of a checkpoint says."""

MAX_CONFIG = 1 << 24
"""Most bytes of a JSON file that describes a model."""
MAX_INDEX = 1 << 27
"""Most bytes of a list of shards."""

_INDEX = "model.safetensors.index.json"


class Folder:
    """The files of a local checkpoint, none of them outside its folder.

    Raises:
        InputError: it is not a folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._path = Path(path)
        if not self._path.is_dir():
            what = "not a folder" if self._path.exists() else "no such folder"
            raise InputError(
                f"{self.name}: {what}: give one with config.json and model.safetensors"
            )

    def names(self) -> list[str]:
        """The files in it, sorted."""
        return sorted(p.name for p in self._path.iterdir())

    def read_json(self, name: str, limit: int = MAX_CONFIG) -> Config | None:
        """What a JSON file says; None without such a file.

        Raises:
            InputError: it cannot be read, is too large or is not a JSON object.
        """
        path = self._inside(name)
        if path is None:
            return None
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path}: {size:,} bytes are too many for such a file")
        try:
            value = parse_json(path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        if not isinstance(value, dict):
            raise InputError(f"{path}: not a JSON object")
        return value

    def open(self, name: str) -> SafetensorsFile:
        """One safetensors file, memory-mapped read-only.

        Raises:
            InputError: it is not there, leads out of the folder or is not well-formed.
        """
        path = self._inside(name)
        if path is None:
            raise InputError(f"{self.name}: {name!a} is missing: download the checkpoint again")
        return SafetensorsFile(LocalStorage(path))

    def _inside(self, name: str) -> Path | None:
        if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            raise InputError(f"{self.name}: {name[:64]!a} leads out of the folder")
        path = self._path / name
        try:
            mode = path.stat().st_mode
            target = path.resolve()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{self.name}: cannot open {name[:64]!a}: {error}") from None
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: not a file")
        if not any(target.is_relative_to(root) for root in self._roots()):
            raise InputError(f"{path}: a link that leads out of the folder")
        return path

    def _roots(self) -> list[Path]:
        # huggingface_hub's cache keeps a snapshot's files beside it, under their digests.
        folder = self._path.resolve()
        repository = folder.parent.parent
        in_cache = folder.parent.name == "snapshots"
        return [folder, repository / "blobs"] if in_cache else [folder]


@dataclass(frozen=True)
class Source:
    """An open checkpoint; use it as a context manager.

    Attributes:
        path: as given.
        config: what ``config.json`` says.
        preprocessor: what ``preprocessor_config.json`` and ``processor_config.json`` say of
            images; None without either.
        tensors: by name.
    """

    path: str
    config: Config
    preprocessor: Config | None
    tensors: Mapping[str, Place]
    _files: Mapping[str, SafetensorsFile]

    def read(self, name: str, rows: int | None = None) -> NDArray[np.floating]:
        """A tensor's values; see :meth:`SafetensorsFile.read`."""
        return self._files[name].read(name, rows)

    def read_many(self, names: Iterable[str]) -> dict[str, NDArray[np.floating]]:
        """Several tensors' values, those of one file fetched together."""
        of_file: dict[str, list[str]] = {}
        for name in names:
            of_file.setdefault(self._files[name].name, []).append(name)
        return {
            name: values
            for together in of_file.values()
            for name, values in self._files[together[0]].read_many(together).items()
        }

    def why_unreadable(self, name: str) -> str | None:
        """Why a tensor cannot be read; None if it can."""
        return self._files[name].why_unreadable(name)

    def close(self) -> None:
        """Close all its files."""
        for file in {id(f): f for f in self._files.values()}.values():
            file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_source(location: str | os.PathLike[str]) -> Source:
    """Open a checkpoint.

    Args:
        location: a folder with ``config.json`` and safetensors.

    Raises:
        InputError: something is missing or not well-formed.
    """
    return read_source(Folder(location))


def read_source(folder: Folder) -> Source:
    """The checkpoint in a folder.

    Raises:
        InputError: something is missing or not well-formed.
    """
    config = folder.read_json("config.json")
    if config is None:
        raise InputError(f"{folder.name}: no config.json: give the checkpoint's own folder")
    preprocessor = _preprocessor(folder)
    files = _open_tensors(folder)
    tensors = {name: file.places[name] for name, file in files.items()}
    return Source(folder.name, config, preprocessor, tensors, files)


def _preprocessor(folder: Folder) -> Config | None:
    # The second file's entries win, as in MmprojModel of llama.cpp's conversion/base.py.
    found: dict[str, Any] = {}
    parts = (
        ("preprocessor_config.json", "media_proc_cfg"),
        ("processor_config.json", "image_processor"),
    )
    for name, nested in parts:
        config = folder.read_json(name) or {}
        inner = config.get(nested)
        found |= {**config, **(inner if isinstance(inner, dict) else {})}
    return found or None


def _open_tensors(folder: Folder) -> dict[str, SafetensorsFile]:
    """Each tensor's name to the file that holds it."""
    index = folder.read_json(_INDEX, MAX_INDEX)
    if index is not None:
        return _open_shards(folder, index)
    names = [name for name in folder.names() if name.endswith(".safetensors")]
    if "model.safetensors" in names:
        names = ["model.safetensors"]
    if not names:
        raise InputError(
            f"{folder.name}: no safetensors: other checkpoints are not read;"
            " save it with save_pretrained"
        )
    found: dict[str, SafetensorsFile] = {}
    for file in [folder.open(name) for name in names]:
        twice = next((name for name in file.places if name in found), None)
        if twice is not None:
            raise InputError(f"{file.name}: {twice!a} is in {found[twice].name} too")
        found.update(dict.fromkeys(file.places, file))
    return found


def _open_shards(folder: Folder, index: Config) -> dict[str, SafetensorsFile]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{folder.name}: {_INDEX}: no usable weight_map")
    shards = {shard: folder.open(shard) for shard in sorted(set(weight_map.values()))}
    for name, shard in weight_map.items():
        if name not in shards[shard].places:
            raise InputError(
                f"{shards[shard].name}: {name[:64]!a} is not in it, but {_INDEX} says so:"
                " download the checkpoint again"
            )
    return {name: shards[shard] for name, shard in weight_map.items()}
