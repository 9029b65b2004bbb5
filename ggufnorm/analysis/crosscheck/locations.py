"""What the locations of a comparison name, and the checkpoints among them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from ggufnorm.errors import MemoryLimitError
from ggufnorm.formats.location import checkpoint_folder

if TYPE_CHECKING:
    from ggufnorm.engines.hf.model import HFModel

Kind = Literal["hf", "onnx"]

ORDER: tuple[Kind | None, ...] = (None, "hf", "onnx")
"""In which models are run: a GGUF file has a tokenizer for certain, ONNX has none."""


def kind_of(location: str) -> Kind | None:
    """What a location names: ``hf:FOLDER``, a path that ends with ``.onnx``, or neither."""
    if location.startswith("hf:") and not location.startswith("hf://"):
        return "hf"
    return "onnx" if location.lower().endswith(".onnx") else None


def in_order(locations: Iterable[str]) -> list[str]:
    """Each location once, in the order in which they are run."""
    return sorted(dict.fromkeys(locations), key=lambda m: ORDER.index(kind_of(m)))


def open_checkpoint(
    location: str, n_threads: int | None, trust_remote_code: bool, check_memory: bool
) -> HFModel:
    """The model of ``hf:FOLDER`` or ``hf:org/repo`` in Transformers, in float32.

    Raises:
        MemoryLimitError: it does not fit into the memory that is free.
        InputError: Transformers cannot load it.
    """
    from ggufnorm.engines.hf.model import HFModel

    folder = checkpoint_folder(location.partition(":")[2])
    if check_memory:
        _require_room(folder)
    return HFModel(folder, n_threads=n_threads, trust_remote_code=trust_remote_code)


def _require_room(folder: Path) -> None:
    """Refuse a checkpoint that does not fit: most are stored in half of what float32 takes.

    Raises:
        MemoryLimitError: it needs more than is free.
    """
    needed = 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryLimitError(
            f"{folder} needs about {needed / 1e9:,.1f} GB as float32, and {free / 1e9:,.1f} GB are"
            " free: close other programs, or try --no-memory-check"
        )
