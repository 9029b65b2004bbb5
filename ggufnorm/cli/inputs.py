"""Which files a command reads, so that it does not write over them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from ggufnorm.errors import InputError
from ggufnorm.formats.location import checkpoint_folder, local_path
from ggufnorm.formats.split import all_shards

_OF_MODELS = (
    "*.safetensors", "*.index.json", "*.gguf", "*.bin", "*.pt", "*.onnx", "*.onnx_data*", "*.data",
    "*.py", "*.model", "*.jinja", "*config.json", "config_*.json", "*tokenizer*.json", "vocab*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "modules.json",
)  # fmt: skip
"""Files of a model's folder that somebody may read; a report in it may be written again."""


def files_of(locations: Iterable[str | os.PathLike[str] | None]) -> Iterator[Path]:
    """The files on this machine that are read for locations.

    Args:
        locations: of models, folders and plain files; None and remote ones have no file, and
            one that cannot be found is left to whoever reads it.
    """
    for location in locations:
        if location is not None:
            with suppress(InputError, OSError, ValueError):
                yield from _files(os.fspath(location))


def _files(location: str) -> Iterator[Path]:
    kind, _, rest = location.partition(":")
    path = Path(location)
    if kind == "hf" and not rest.startswith("//"):
        path = checkpoint_folder(rest)
    if path.is_dir():
        yield from _of_models(path)
    elif path.suffix.lower() == ".onnx":
        yield path
        yield from _of_models(path.parent)
    elif path.exists():
        yield from map(Path, all_shards(location))
    elif "://" in location or kind == "ollama":
        yield from map(Path, all_shards(str(local_path(location))))


def _of_models(folder: Path) -> Iterator[Path]:
    for parent, _folders, names in os.walk(folder):
        for name in names:
            if any(fnmatch(name, pattern) for pattern in _OF_MODELS):
                yield Path(parent, name)
