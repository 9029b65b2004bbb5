"""Models in several files, as ``llama-gguf-split`` writes them.

Each shard says which it is (``split.no``, counted from 0), of how many
(``split.count``) and how many tensors all of them hold (``split.tensors.count``). The
first carries the model's metadata. llama.cpp finds the others by their names
(``llama_split_path`` in ``src/llama.cpp``) and checks them as is done here
(``llama_model_loader`` in ``src/llama-model-loader.cpp``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.gguf_cursor import quoted
from ggufnorm.formats.gguf_header import Tensor
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.storage import Extent, LocalStorage, Storage, in_parallel

_SUFFIX = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_WORKERS = 8
_LISTED = 5
"""Names that a message lists before it says how many more there are."""


class Place(Protocol):
    """A file that can be opened, and that knows where its fellow shards lie.

    Attributes:
        name: as messages call it; ends in the file's name.
    """

    @property
    def name(self) -> str:
        """See the class."""

    def open(self) -> Storage:
        """Open the file."""

    def shard(self, number: int, count: int) -> Place:
        """The place of shard ``number`` (from 1) of the set that this file belongs to."""

    def is_missing(self) -> bool:
        """Whether it is known, without opening it, that there is no such file."""


@dataclass(frozen=True)
class LocalPlace:
    """A file on disk; see :class:`Place`."""

    name: str

    def open(self) -> LocalStorage:
        """Map the file."""
        return LocalStorage(self.name)

    def shard(self, number: int, count: int) -> LocalPlace:
        """In the same folder."""
        return LocalPlace(shard_name(self.name, number, count))

    def is_missing(self) -> bool:
        """Whether the folder lacks it."""
        return not Path(self.name).exists()


def shard_name(name: str, number: int, count: int) -> str:
    """The name of another shard of the same set: ``…-00002-of-00005.gguf``."""
    return _SUFFIX.sub("", name) + f"-{number:05d}-of-{count:05d}.gguf"


def all_shards(name: str) -> list[str]:
    """Names of all shards of the set that a file belongs to by its name; else its own."""
    named = _SUFFIX.search(name)
    if named is None:
        return [name]
    return [shard_name(name, i, int(named[2])) for i in range(1, int(named[2]) + 1)]


def is_shard_name(name: str) -> bool:
    """Whether a file is named like a shard."""
    return _SUFFIX.search(name) is not None


def shard_count(file: ModelFile) -> int:
    """How many files the model is in."""
    return file.metadata.integer("split.count") or 1


class SplitFile:
    """The shards of a model as one; see :class:`~ggufnorm.formats.model_file.ModelFile`.

    Args:
        path: as messages call the set.
        shards: all of them, in order.

    Raises:
        InputError: they do not make one model.
    """

    def __init__(self, path: str, shards: Sequence[GGUFFile]) -> None:
        self.path = path
        self.shards = tuple(shards)
        self.metadata = shards[0].metadata
        self.byte_order = shards[0].byte_order
        self.size = sum(shard.size for shard in shards)
        self._home: dict[str, GGUFFile] = {}
        for number, shard in enumerate(shards, 1):
            self._check(number, shard)
            self._home.update(dict.fromkeys(shard.tensors, shard))
        expected = self.metadata.integer("split.tensors.count")
        if expected != len(self._home):
            raise InputError(
                f"{path}: the shards hold {len(self._home)} tensors, but their split.tensors.count"
                f" is {expected}: one of them is from another model"
            )
        self.tensors: dict[str, Tensor] = {
            name: shard.tensors[name] for name, shard in self._home.items()
        }

    def _check(self, number: int, shard: GGUFFile) -> None:
        count = len(self.shards)
        said, of = shard.metadata.integer("split.no"), shard_count(shard)
        if said is None:
            raise InputError(f"{shard.path}: there is no split.no: this is not a shard")
        if of != count or shard.byte_order != self.byte_order:
            raise InputError(f"{shard.path}: shard {said + 1} of another set, one of {of} shards")
        if said != number - 1:
            raise InputError(
                f"{shard.path}: this is shard {said + 1} of {count} under the name of"
                f" shard {number}: it is doubled or renamed"
            )
        keys = ("split.tensors.count", "general.architecture")
        for key in keys:
            ours, theirs = self.metadata.get(key), shard.metadata.get(key)
            if theirs is not None and theirs != ours:
                raise InputError(
                    f"{shard.path}: this shard is from another model: {key} is"
                    f" {quoted(str(theirs))}, in {self.shards[0].path} it is {quoted(str(ours))}"
                )
        for name in shard.tensors:
            if name in self._home:
                raise InputError(
                    f"{shard.path}: tensor {quoted(name)} is in {self._home[name].path} too:"
                    " one of them is from another model"
                )

    @property
    def architecture(self) -> str:
        """``general.architecture``, or the empty string."""
        return self.shards[0].architecture

    def read_bytes(self, name: str) -> NDArray[np.uint8]:
        """The raw bytes of a tensor.

        Raises:
            KeyError: there is no such tensor.
            InputError: its bytes cannot be had.
        """
        return self._home[name].read_bytes(name)

    def read_part(
        self, name: str, start: int, n: int, into: memoryview | None = None
    ) -> bytes | memoryview:
        """``n`` bytes of a tensor from its byte ``start`` on, in the memory given if possible.

        Raises:
            KeyError: there is no such tensor.
            InputError: they cannot be had.
        """
        return self._home[name].read_part(name, start, n, into)

    def extent(self, name: str) -> Extent:
        """Where a tensor's bytes are.

        Raises:
            KeyError: there is no such tensor.
        """
        return self._home[name].extent(name)

    def read_many(self, names: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
        """The raw bytes of several tensors, from several shards at a time.

        Raises:
            KeyError: one of them does not exist.
            InputError: their bytes cannot be had.
        """
        wanted: dict[GGUFFile, list[str]] = {}
        for name in names:
            wanted.setdefault(self._home[name], []).append(name)
        parts = in_parallel(lambda item: item[0].read_many(item[1]), list(wanted.items()), _WORKERS)
        return {name: raw for part in parts for name, raw in part.items()}

    def close(self) -> None:
        """Give all shards back."""
        for shard in self.shards:
            shard.close()

    def __enter__(self) -> SplitFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_place(place: Place) -> ModelFile:
    """Open a file and, if it is a shard, the whole set it belongs to.

    Raises:
        InputError: a file cannot be opened, or the shards do not make one model.
        GGUFError: a file is not well-formed.
    """
    file = GGUFFile(place.open())
    if shard_count(file) == 1:
        return file
    shards: list[GGUFFile] = []
    try:
        shards = _open_shards(place, file)
        return SplitFile(place.name, shards)
    except BaseException:
        for shard in {file, *shards}:
            shard.close()
        raise


def _open_shards(place: Place, file: GGUFFile) -> list[GGUFFile]:
    """All shards in order, ``file`` among them."""
    number, count = (file.metadata.integer("split.no") or 0) + 1, shard_count(file)
    if not 0 < count <= 0xFFFF:  # a u16 in src/llama-model-loader.cpp
        raise InputError(f"{place.name}: split.count {count} is not from 1 to 65535")
    named = _SUFFIX.search(place.name)
    if not named or (int(named[1]), int(named[2])) != (number, count):
        raise InputError(
            f"{place.name}: this is shard {number} of {count}, but its name does not end in"
            f" -{number:05d}-of-{count:05d}.gguf: rename it, or download it again if it is doubled"
        )
    places = [place.shard(i, count) for i in range(1, count + 1)]
    missing = [p.name for p in places if p.is_missing()]
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise InputError(
            f"{place.name}: {len(missing)} of {count} shards are missing:"
            f" {', '.join(missing[:_LISTED])}{more}: put them beside it"
        )
    opened: list[GGUFFile] = []

    def open_one(i: int) -> GGUFFile:
        if i == number - 1:
            return file
        shard = GGUFFile(places[i].open())
        opened.append(shard)
        return shard

    try:
        return in_parallel(open_one, range(count), _WORKERS)
    except BaseException:
        for shard in opened:
            shard.close()
        raise
