"""Values of a run with their tokens first, whichever axis an engine has them on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]


def tokens_first(value: Array, n_tokens: int, *, channels_last: bool = True) -> Array | None:
    """A value with its axis of tokens before the others; None if no axis is as long.

    Args:
        value: of any shape.
        n_tokens: how many were run; the first axis of that length is taken.
        channels_last: whether the last axis is a row's channels, and never the tokens.
    """
    axes = value.shape[:-1] if channels_last else value.shape
    return np.moveaxis(value, axes.index(n_tokens), 0) if n_tokens in axes else None


def halves(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """What an encoder reads of a text and what its decoder writes: as many tokens each.

    With an odd number, where the text allows it: no other axis of an array is as long, most
    likely.

    Args:
        tokens: two at least.
    """
    half = len(tokens) // 2
    half -= half > 2 and half % 2 == 0
    return tokens[:half], tokens[half : 2 * half]


def token_rows(value: Array, n_tokens: int) -> Array:
    """``(rows, channels)`` with the rows of one token side by side.

    Args:
        value: channels last. Without an axis of tokens its rows stay as they lie.
        n_tokens: how many were run.
    """
    if value.size == 0:
        return value.reshape(0, value.shape[-1])
    moved = tokens_first(value, n_tokens)
    return np.ascontiguousarray(value if moved is None else moved).reshape(-1, value.shape[-1])
