"""A checkpoint as Hugging Face's libraries save it: config.json and safetensors.

Read without torch: F32, F16, BF16 and F64, in one file or in shards that
``model.safetensors.index.json`` lists. What lies in the folder is someone else's: sizes
are bounded, and no name leads out of the folder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import GGUFError, InputError
from ggufnorm.formats.folder import Folder, LocalFolder
from ggufnorm.formats.location import source_folder
from ggufnorm.formats.quantized import Quantization, entries, quantization
from ggufnorm.formats.safetensors import SafetensorsFile, Stored
from ggufnorm.formats.safetensors_header import Entry, parse_json, quoted
from ggufnorm.formats.storage import Extent, Scratch, Storage, in_parallel

Config = Mapping[str, Any]
"""What a JSON file of a checkpoint says."""

MAX_CONFIG = 1 << 24
"""Most bytes of a JSON file that describes a model."""
MAX_INDEX = 1 << 27
"""Most bytes of a list of shards."""

MAX_SHARDS = 10_000
"""Most shards of a checkpoint; the largest have some hundreds."""

MAX_LAYERS = 1024
"""Most layers of a checkpoint; the deepest have some 130."""

_MOST_LAYERS = dict.fromkeys(
    (
        "num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "encoder_layers",
        "decoder_layers", "num_encoder_layers", "num_decoder_layers",
    ),
    MAX_LAYERS,
)  # fmt: skip
"""Numbers of a ``config.json`` by which the work grows."""

_MOST_OF_PROCESSOR = {
    "n_fft": 1 << 16, "feature_size": 1 << 12, "chunk_length": 3600, "n_samples": 1 << 28,
    "nb_max_frames": 1 << 20, "sampling_rate": 1_000_000, "height": 1 << 14, "width": 1 << 14,
}  # fmt: skip
"""The same of a processor's configuration; ``longest_edge`` counts pixels in some."""

_AT_ONCE = 8
"""Files opened at a time."""

_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
"""What PEFT saves beside the weights of an adapter, which has no config.json of its own."""


@dataclass(frozen=True)
class Source:
    """An open checkpoint; use it as a context manager.

    Attributes:
        path: as given.
        config: what ``config.json`` says.
        preprocessor: what ``preprocessor_config.json`` and ``processor_config.json`` say of
            images; None without either.
        tensors: by name; of a quantized checkpoint those that its tensors stand for.
    """

    path: str
    config: Config
    preprocessor: Config | None
    tensors: Mapping[str, Entry]
    _files: Mapping[str, SafetensorsFile]
    _folder: Folder | None = None
    _quantized: Quantization = field(default_factory=Quantization)

    def read(self, name: str, rows: int | None = None) -> NDArray[np.floating]:
        """A tensor's values; see :meth:`SafetensorsFile.read`."""
        if name not in self._quantized.tensors:
            self._check(name)
            return self._files[name].read(name, rows)
        shape = self.tensors[name].shape
        first = shape if rows is None else (min(rows, shape[0]), *shape[1:])
        return self.read_rows(name, 0, math.prod(first[:-1])).reshape(first)

    def read_many(self, names: Iterable[str]) -> dict[str, NDArray[np.floating]]:
        """Several tensors' values, those of one file fetched together."""
        of_file: dict[str, list[str]] = {}
        found: dict[str, NDArray[np.floating]] = {}
        for name in names:
            self._check(name)
            if name in self._quantized.tensors:
                found[name] = self.read(name)
            else:
                of_file.setdefault(self._files[name].name, []).append(name)
        for together in of_file.values():
            found |= self._files[together[0]].read_many(together)
        return found

    def _check(self, name: str) -> None:
        if name in self._quantized.refused:
            raise InputError(self._quantized.refused[name])

    def read_stored(self, name: str) -> NDArray[Any]:
        """A tensor as it is stored, or dequantized; see :meth:`SafetensorsFile.read_stored`."""
        if name in self._quantized.tensors:
            return self.read(name)
        self._check(name)
        return self._files[name].read_stored(name)

    def read_rows(
        self, name: str, start: int, stop: int, scratch: Scratch | None = None
    ) -> NDArray[Any]:
        """Some rows of a tensor, as :meth:`read_stored`; see :meth:`SafetensorsFile.read_rows`."""
        made = self._quantized.tensors.get(name)
        if made is not None:
            try:
                return made.rows(start, stop)
            except (ValueError, IndexError) as error:
                raise InputError(f"{name}: what it is quantized by does not fit: {error}") from None
        self._check(name)
        return self._files[name].read_rows(name, start, stop, scratch)

    def read_flat(
        self, name: str, start: int, stop: int, scratch: Scratch | None = None
    ) -> NDArray[Any]:
        """Some values of a tensor as stored; see :meth:`SafetensorsFile.read_flat`."""
        if name not in self._quantized.tensors:
            self._check(name)
            return self._files[name].read_flat(name, start, stop, scratch)
        columns = self.tensors[name].shape[-1]
        first, last = start // columns, -(-stop // columns)
        flat = self.read_rows(name, first, last).reshape(-1)
        return flat[start - first * columns : stop - first * columns]

    def extent(self, name: str) -> Extent | None:
        """Where a tensor's bytes are; None if its values are made of several tensors'."""
        return None if name in self._quantized.tensors else self._files[name].extent(name)

    def read_json(self, name: str) -> Config | None:
        """What another JSON file of the checkpoint says; None if there is none.

        Args:
            name: of the file, below the checkpoint's folder: ``1_Pooling/config.json``.

        Raises:
            InputError: it cannot be had, or is not a JSON object.
        """
        return None if self._folder is None else _read_json(self._folder, name)

    def read_text(self, name: str) -> str | None:
        """Another text file of the checkpoint; None if there is none.

        Raises:
            InputError: it cannot be had, or is not UTF-8.
        """
        data = self.read_bytes(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError:
            raise InputError(f"{name}: is not valid UTF-8") from None

    def read_bytes(self, name: str) -> bytes | None:
        """Another file of the checkpoint, whole; None if there is none.

        Raises:
            InputError: it cannot be had, or is too large.
        """
        storage = None if self._folder is None else _opened(self._folder, name)
        if storage is None:
            return None
        if storage.size > MAX_CONFIG:
            raise InputError(f"{storage.name}: {storage.size:,} bytes are too many")
        return bytes(storage.read(0, storage.size))

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a file of that name."""
        return self._folder is not None and _opened(self._folder, name) is not None

    @property
    def n_bytes(self) -> int:
        """Of all its tensors as they are stored."""
        places = (file.places[name] for name, file in self._files.items())
        return sum(place.end - place.offset for place in places)

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter of PEFT's, and no model."""
        return not self.config and self.has(_ADAPTER)

    @property
    def is_local(self) -> bool:
        """Whether its bytes are on this machine."""
        return isinstance(self._folder, LocalFolder)

    def why_unreadable(self, name: str) -> str | None:
        """Why a tensor cannot be read; None if it can."""
        if name in self._quantized.tensors:
            return None
        why = self._quantized.refused.get(name)
        return why or self._files[name].why_unreadable(name)

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
        location: a folder with ``config.json`` and safetensors, ``hf:FOLDER``, or
            ``hf://org/repo[@revision]``, of which only the configs, the safetensors headers
            and the tensors that are read are fetched; a ``PathLike`` is always a folder.

    Raises:
        InputError: something is missing, cannot be had or is not well-formed.
    """
    return read_source(source_folder(location))


def read_source(folder: Folder) -> Source:
    """The checkpoint in a folder.

    Raises:
        InputError: something is missing or not well-formed.
    """
    config = _read_json(folder, "config.json")
    if config is None and _opened(folder, _ADAPTER) is not None:
        config = {}
    if config is None:
        raise InputError(f"{folder.name}: no config.json: give the original checkpoint")
    preprocessor = _preprocessor(folder)
    files = _open_tensors(folder)
    found = quantization(config, {name: Stored(file, name) for name, file in files.items()})
    tensors: dict[str, Entry] = {
        name: file.places[name] for name, file in files.items() if name not in found.consumed
    }
    tensors.update(entries(found))
    return Source(folder.name, config, preprocessor, tensors, files, folder, found)


def check_checkpoint(path: str | os.PathLike[str]) -> None:
    """Check a folder that Transformers is to open: it believes what the folder says.

    Raises:
        InputError: a shard leads out of the folder, or there are more layers than any model
            has.
    """
    folder = LocalFolder(path)
    index = _read_json(folder, _INDEX, MAX_INDEX) or {}
    weight_map = index.get("weight_map")
    for name in set(weight_map.values()) if isinstance(weight_map, dict) else ():
        storage = folder.storage(_shard(folder, str(name)))
        if storage is not None:
            storage.close()
    _check_numbers(folder, "config.json", _MOST_LAYERS)


def n_stored_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of all tensors in a folder's safetensors.

    Raises:
        InputError: one of them cannot be read.
    """
    files = {id(f): f for f in _open_tensors(LocalFolder(path)).values()}.values()
    total = sum(p.end - p.offset for file in files for p in file.places.values())
    for file in files:
        file.close()
    return total


def check_processor(path: str | os.PathLike[str]) -> None:
    """Check a folder of an image processor or a feature extractor that Transformers is to load.

    Raises:
        InputError: it asks for pictures, sounds or filters larger than any model takes.
    """
    folder = LocalFolder(path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        _check_numbers(folder, name, _MOST_OF_PROCESSOR)


def _check_numbers(folder: Folder, name: str, most: Mapping[str, int]) -> None:
    configs: list[object] = [_read_json(folder, name)]
    while configs:
        config = configs.pop()
        if isinstance(config, dict):
            configs += config.values()
            for key in most.keys() & config.keys():
                if isinstance(config[key], (int, float)) and config[key] > most[key]:
                    raise InputError(
                        f"{folder.name}: {name}: {key} is more than {most[key]:,}: is it damaged?"
                    )


def _read_json(folder: Folder, name: str, limit: int = MAX_CONFIG) -> Config | None:
    """What a JSON file says; None without such a file."""
    storage = _opened(folder, name)
    if storage is None:
        return None
    if storage.size > limit:
        raise InputError(f"{storage.name}: {storage.size:,} bytes are too many for such a file")
    value = parse_json(storage.read(0, storage.size), storage.name)
    if not isinstance(value, dict):
        raise InputError(f"{storage.name}: not a JSON object")
    return value


def _open_file(folder: Folder, name: str) -> SafetensorsFile:
    storage = _opened(folder, name)
    if storage is None:
        raise InputError(f"{folder.name}: {quoted(name)} is missing: download the checkpoint again")
    return SafetensorsFile(storage)


def _opened(folder: Folder, name: str) -> Storage | None:
    try:
        return folder.storage(name)
    except GGUFError:  # as storages are a model's elsewhere
        raise InputError(f"{folder.name}: {name} is empty: download the checkpoint again") from None


def _preprocessor(folder: Folder) -> Config | None:
    # The second file's entries win, as in MmprojModel of llama.cpp's conversion/base.py.
    found: dict[str, Any] = {}
    parts = (
        ("preprocessor_config.json", "media_proc_cfg"),
        ("processor_config.json", "image_processor"),
    )
    for name, nested in parts:
        config = _read_json(folder, name) or {}
        inner = config.get(nested)
        found |= {**config, **(inner if isinstance(inner, dict) else {})}
    return found or None


def _open_tensors(folder: Folder) -> dict[str, SafetensorsFile]:
    """Each tensor's name to the file that holds it."""
    index = _read_json(folder, _INDEX, MAX_INDEX)
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
    for file in _open_files(folder, names):
        twice = next((name for name in file.places if name in found), None)
        if twice is not None:
            raise InputError(f"{file.name}: {quoted(twice)} is in {found[twice].name} too")
        found.update(dict.fromkeys(file.places, file))
    return found


def _shard(folder: Folder, name: str) -> str:
    """The name of a shard, which lies in the folder itself.

    Raises:
        InputError: it does not.
    """
    if "/" in name:
        raise InputError(f"{folder.name}: {quoted(name)} leads out of the folder")
    return name


def _open_shards(folder: Folder, index: Config) -> dict[str, SafetensorsFile]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{folder.name}: {_INDEX}: no usable weight_map")
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise InputError(f"{folder.name}: {_INDEX}: {len(names):,} shards are too many")
    files = _open_files(folder, [_shard(folder, name) for name in names])
    shards = dict(zip(names, files, strict=True))
    for name, shard in weight_map.items():
        if name not in shards[shard].places:
            raise InputError(
                f"{shards[shard].name}: {quoted(name)} is not in it, but {_INDEX} says so:"
                " download the checkpoint again"
            )
    return {name: shards[shard] for name, shard in weight_map.items()}


def _open_files(folder: Folder, names: Sequence[str]) -> list[SafetensorsFile]:
    return in_parallel(lambda name: _open_file(folder, name), names, _AT_ONCE)
