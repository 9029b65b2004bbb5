"""Rows of padding tokens that Transformers sets to zero as it loads a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import Array
from ggufnorm.errors import InputError
from ggufnorm.formats.hf import open_source


def restore_padding(model: Any, folder: str) -> Iterator[Skipped]:
    """Give padding tokens the rows of the embedding that the checkpoint holds.

    Some classes set the row to zero after it was read (``YoutuPreTrainedModel._init_weights``
    in Transformers). An output matrix tied to the embedding predicts with that row, so a file
    that holds the checkpoint's values would differ from the source.

    Args:
        model: loaded; its rows are changed in place.
        folder: of the checkpoint.

    Yields:
        Each row that was restored.
    """
    for name, module in model.named_modules():
        row = getattr(module, "padding_idx", None)
        if not isinstance(module, torch.nn.Embedding) or row is None or module.weight[row].any():
            continue
        stored = _stored_row(folder, f"{name}.weight", model.base_model_prefix, row)
        if stored is None or not stored.any() or stored.size != module.weight.shape[1]:
            continue
        with torch.no_grad():
            module.weight[row] = torch.from_numpy(stored)
        why = "Transformers sets it to zero as it loads: the checkpoint's values were run"
        yield Skipped(f"row {row} of {name}.weight", why)


def _stored_row(folder: str, name: str, prefix: str, row: int) -> Array | None:
    """A row of a checkpoint's tensor; None if it cannot be read."""
    try:
        with open_source(Path(folder)) as source:
            names = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
            found = next((n for n in names if n in source.tensors), None)
            rows = None if found is None else source.read(found, row + 1)
    except InputError:  # what Transformers alone can read is run as it is
        return None
    return None if rows is None or len(rows) <= row else rows[row].astype("float32")
