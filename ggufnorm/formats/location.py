"""Opens what a location names; :data:`ggufnorm.formats.forms.FORMS` has every form of one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

from ggufnorm.errors import InputError
from ggufnorm.formats.folder import Folder, LocalFolder
from ggufnorm.formats.forms import AnyLocation, Location, parse
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


def open_model(location: AnyLocation | Location) -> ModelFile:
    """Open a GGUF model, wherever it is.

    Args:
        location: see :data:`~ggufnorm.formats.forms.FORMS`.

    Returns:
        A context manager. Of a remote model only the header has been fetched.

    Raises:
        InputError: it cannot be found or opened, or its shards do not make one model.
        GGUFError: a file is not well-formed.
    """
    place = parse(location)
    if place.scheme == "http":
        return open_place(_remote("remote").remote_place(place.text))
    if place.scheme == "hub":
        return open_place(_remote("hub").hub_place(place.text))
    return open_place(_local_place(place))


def is_remote(location: AnyLocation | Location) -> bool:
    """Whether its bytes come over a network."""
    return parse(location).scheme in ("http", "hub")


def share_connection(most: int) -> AbstractContextManager[None]:
    """Have all remote models that are opened meanwhile, in any thread, share a connection.

    Args:
        most: requests under way at a time.

    Raises:
        MissingPackageError: the packages for remote models are not installed.
    """
    connection = _remote("connection")
    shared: AbstractContextManager[None] = connection.one_connection(
        connection.Connection(connection.LONG_PATIENCE, most)
    )
    return shared


def commit_of(location: AnyLocation | Location) -> str | None:
    """The commit of a repository on the Hub that a location names; None if it names none."""
    found = _COMMIT.match(parse(location).text)
    return found["commit"] if found else None


def identity_of(file: ModelFile) -> str | None:
    """What tells the content of a remote model from another; None if its servers do not say."""
    found = [getattr(shard.storage, "identity", None) for shard in file.shards]
    return None if None in found else "; ".join(map(str, found))


def current_identity(location: AnyLocation | Location) -> str | None:
    """:func:`identity_of` a remote model of one file, of which a byte is fetched.

    Raises:
        InputError: it cannot be had.
    """
    place = parse(location)
    module = _remote("hub" if place.scheme == "hub" else "remote")
    found = (
        module.hub_place(place.text) if place.scheme == "hub" else module.remote_place(place.text)
    )
    identity: str | None = found.open(front=1).identity
    return identity


_COMMIT = re.compile(r"hf://[^/@:]+/[^/@:]+@(?P<commit>[0-9a-f]{40})/")


def local_path(location: AnyLocation | Location) -> Path:
    """The file on this machine that an engine is to open: of a split model, its first shard.

    Raises:
        InputError: the location is remote and not in huggingface_hub's cache, or the
            model cannot be found.
    """
    place = parse(location)
    if place.scheme == "http":
        name = _remote("remote").public_address(place.text)
        raise InputError(
            f"{name}: running a model needs it on this machine: download it first"
            f" (`curl -LO {name}`)"
        )
    if place.scheme == "hub":
        path: Path = _remote("hub").downloaded(place.text)
        return _first_shard(LocalPlace(str(path)))
    return _first_shard(_local_place(place))


def is_encoder(location: AnyLocation | Location) -> bool:
    """Whether a GGUF model on this machine is an image or audio encoder (mmproj).

    Raises:
        InputError: it cannot be opened.
    """
    with open_model(local_path(location)) as file:
        return file.architecture == "clip"


def checkpoint_folder(location: AnyLocation | Location) -> Path:
    """The folder of a checkpoint on this machine.

    Args:
        location: ``hf:FOLDER``, ``hf:org/repo`` for one in huggingface_hub's cache, or either
            without its prefix.

    Raises:
        InputError: there is neither.
    """
    name = parse(location).name
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or name.count("/") != 1 or not all(name.split("/")) or name[0] in "./~":
        raise InputError(f"{name}: no such folder: give one with config.json and safetensors")
    folder: Path = _remote("hub").snapshot(name)
    return folder


def source_folder(location: AnyLocation | Location) -> Folder:
    """Where the files of a checkpoint are read: a folder, ``hf:FOLDER`` or ``hf://org/repo``.

    Raises:
        InputError: it cannot be found.
    """
    place = parse(location)
    if place.scheme == "hub":
        folder: Folder = _remote("hub").HubFolder(place.text)
        return folder
    if place.scheme == "checkpoint":
        return LocalFolder(checkpoint_folder(place))
    if place.scheme != "path" or ("://" in place.text and not Path(place.text).exists()):
        raise InputError(f"{place.text}: a source is a folder or hf://org/repo[@revision]")
    return LocalFolder(place.name)


def expand(locations: Iterable[str], *, ask: bool = True) -> list[str]:
    """Folders and patterns become the GGUF files in them; all else stays as it is.

    Args:
        locations: see :data:`~ggufnorm.formats.forms.FORMS`. A folder stands for all
            ``*.gguf`` in and below it, ``hf://org`` for all models of an organisation, and
            ``hf://org/repo/*.gguf`` for those of a repository.
        ask: whether to ask the Hub; if not, what is there stays as it is.

    Returns:
        Each model once, a split one by its first shard that is there, in the order given
        and within a folder by name.

    Raises:
        InputError: a folder or a pattern has no GGUF file.
    """
    found: dict[str, str] = {}
    for location in locations:
        for path in _expanded(location, ask):
            # All shards of a set have the same first name.
            found.setdefault(all_shards(path)[0], path)
    return list(found.values())


def _expanded(location: str, ask: bool) -> Iterator[str]:
    path = Path(location)
    if parse(location).scheme == "hub" and ask and _remote("hub").stands_for_several(location):
        yield from _remote("hub").expand(location)
    elif parse(location).scheme != "path" or "://" in location or path.is_file():
        yield location
    elif path.is_dir():
        yield from _some(map(str, path.rglob("*.gguf")), location)
    elif set(location) & set("*?["):
        root = Path(path.anchor)
        matching = root.glob(str(path.relative_to(root)))
        yield from _some(map(str, matching), location)
    else:
        yield location


def _some(paths: Iterable[str], location: str) -> list[str]:
    found = sorted(paths)
    if not found:
        raise InputError(f"{location}: there is no GGUF file")
    return found


def _local_place(place: Location) -> Place:
    """A model's file on this machine.

    Raises:
        InputError: the location names something else.
    """
    if place.scheme == "checkpoint":
        raise InputError(f"{place.text} is a checkpoint for Transformers, not a GGUF model")
    if place.scheme == "path" and "://" in place.text and not Path(place.text).exists():
        raise InputError(
            f"{place.text}: models are opened from a path, https://…, hf://org/repo/file.gguf"
            " or ollama:name"
        )
    return LocalPlace(str(find_blob(place.name)) if place.scheme == "ollama" else place.name)


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
