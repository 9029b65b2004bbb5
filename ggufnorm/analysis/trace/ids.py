"""Token ids from a file, to be run in the place of a text."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.trace.reader import Trace
from ggufnorm.errors import InputError
from ggufnorm.formats.files import read_regular

Tokens = NDArray[np.int32]

_MAX_BYTES = 1 << 24
"""Of a list of ids: more than a million of them."""


def read_ids(path: str | os.PathLike[str]) -> Tokens:
    """The ids that a trace ran, or those that a text file holds as numbers with spaces between.

    Raises:
        InputError: the file cannot be opened, is no trace, or holds something else.
    """
    if Path(path).suffix == ".safetensors":
        with Trace(path) as trace:
            return ids_run(trace)
    try:
        words = read_regular(path, _MAX_BYTES).decode().replace(",", " ").split()
        ids = np.array([int(word) for word in words], np.int32)
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from None
    except (ValueError, OverflowError):
        raise InputError(f"{path}: neither a trace (.safetensors) nor a list of ids") from None
    if ids.size == 0 or ids.min() < 0:
        raise InputError(f"{path}: it holds {'an id below 0' if ids.size else 'no ids'}")
    return ids


def ids_run(trace: Trace) -> Tokens:
    """The ids of a trace, as the model was given them."""
    ids = trace.tokens.copy()
    if trace.facts.start is not None:
        ids[:: trace.facts.n_ctx] = trace.facts.start
    return ids
