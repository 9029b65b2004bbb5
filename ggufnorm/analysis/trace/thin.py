"""Chooses tokens of a running model's values as a trace's are chosen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.observe import Rows
from ggufnorm.analysis.trace.layout import scored
from ggufnorm.core.trace import TraceFacts, kept


def thin_rows(rows: Rows, chunk_start: int, stride: int) -> Rows:
    """Of all rows of a stop, those of the tokens that are kept.

    Args:
        rows: of all tokens.
        chunk_start: number of the chunk's first token in the whole run.
        stride: every how manieth is kept.
    """
    first = rows.first_token - chunk_start
    keep = kept(first, rows.n_tokens, stride)
    by_token = rows.values.reshape(rows.n_tokens, -1, rows.values.shape[-1])
    chosen = by_token[keep.start - first :: keep.step]
    values = np.ascontiguousarray(chosen).reshape(-1, rows.values.shape[-1])
    return Rows(values, chunk_start + keep.start, len(keep), keep.step)


def thin_logits(logits: NDArray[np.float32], facts: TraceFacts, batch: int) -> NDArray[np.float32]:
    """Of a batch's logits, those of the positions that are scored and kept.

    Args:
        logits: ``(outputs, vocabulary)``.
        facts: of the trace.
        batch: which decode of the chunk.
    """
    keep, first = scored(facts, batch), facts.batches[batch].first_scored
    return logits[keep.start - first : keep.stop - first : keep.step]
