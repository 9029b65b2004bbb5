"""Digests of a model file: made, written and read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from ggufnorm.core.manifest import SCHEMA, VERSION, Manifest, TensorDigest, digest_of_all
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.errors import ConfigError, InputError
from ggufnorm.formats.files import read_regular
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.output import write_text
from ggufnorm.formats.storage import readers

_PART = 1 << 22
_MOST_BYTES = 1 << 28
_VALUE_PARTS = 1 << 12


def make_manifest(
    file: ModelFile, tell: Callable[[str, int, int], None] = lambda _phase, _done, _total: None
) -> Manifest:
    """Read all of a model, on all cores.

    Args:
        file: opened.
        tell: is called with what is done, and the bytes read and to read.

    Raises:
        InputError: its bytes cannot be had.
    """
    total = sum(t.n_bytes for t in file.tensors.values())
    done = 0

    def one(name: str) -> TensorDigest:
        tensor = file.tensors[name]
        found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for start in range(0, tensor.n_bytes, _PART):
            found.update(file.read_part(name, start, min(_PART, tensor.n_bytes - start)))
        return TensorDigest(name, str(tensor.dtype), tuple(tensor.shape), found.hexdigest())

    tensors: list[TensorDigest] = []
    with readers(os.cpu_count() or 1) as pool:
        for made in pool.map(one, file.tensors):
            tensors.append(made)
            done += file.tensors[made.name].n_bytes
            tell("digesting tensors", done, total)
    keys = {key: _digest_of_value(file.metadata[key]) for key in file.metadata}
    return Manifest(file.path, digest_of_all(tuple(tensors)), tuple(tensors), keys)


def save_manifest(location: str | os.PathLike[str], target: Path) -> Manifest:
    """Write the manifest of a model.

    Raises:
        InputError: the model cannot be opened or read.
        OutputError: the manifest cannot be written.
    """
    with open_model(location) as file:
        manifest = make_manifest(file)
    write_text(json.dumps(to_plain(manifest), indent=1, ensure_ascii=False) + "\n", target)
    return manifest


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read what :func:`save_manifest` wrote.

    Raises:
        ConfigError: it is no manifest, or that of a later version.
        InputError: it cannot be read.
    """
    try:
        data = json.loads(read_regular(path, _MOST_BYTES))
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: no manifest: write one with `ggufnorm audit --save-manifest`")
    if data.get("version") != VERSION:
        raise ConfigError(f"{path}: a manifest of another version: upgrade ggufnorm")
    try:
        return from_plain(Manifest, data)
    except ValueError as error:
        raise ConfigError(f"{path}: damaged manifest: {error}") from None


def _digest_of_value(value: object) -> str:
    found = hashlib.sha256(type(value).__name__.encode())
    if isinstance(value, list):
        for start in range(0, len(value), _VALUE_PARTS):
            found.update(repr(value[start : start + _VALUE_PARTS]).encode())
    else:
        found.update(repr(value).encode())
    return found.hexdigest()
