"""Where in a trace's file the values of each hook point lie, and how much room they take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from ggufnorm.core.plain import to_plain
from ggufnorm.core.trace import SCHEMA, VERSION, TraceFacts, every, kept
from ggufnorm.errors import InputError
from ggufnorm.formats.safetensors_header import Entry, pack_header

TOKENS = "tokens"
LOGITS = "result_output"
"""llama.cpp's label of the logits, behind which a bias's or a scale's part may stand."""


def hook_name(batch: int, key: str) -> str:
    """Name of the array that holds a hook point's values."""
    return f"{batch}/{key}"


def logits_name(batch: int) -> str:
    """Name of the array that holds the logits of a chunk's batch."""
    return f"logits/{batch}"


def metadata(facts: TraceFacts) -> dict[str, str]:
    """What goes into the file beside the values."""
    text = json.dumps(to_plain(facts), separators=(",", ":"), ensure_ascii=False)
    return {"schema": SCHEMA, "version": VERSION, "trace": text}


def entries(facts: TraceFacts) -> dict[str, Entry]:
    """All arrays of a trace.

    - ``tokens``: ``(chunks, tokens)``;
    - ``{batch}/{key}`` for each hook point: ``(chunks, tokens kept, rows of a token, channels)``;
    - ``logits/{batch}``: ``(chunks, positions kept, vocabulary)``, unless a hook point holds them.
    """
    n, dtype = facts.n_chunks, facts.dtype.upper()
    found = {TOKENS: Entry("I32", (n, facts.n_ctx))}
    for i, batch in enumerate(facts.batches):
        at_hook = logits_hook(facts, i)
        for k, s in enumerate(batch.stops):
            tokens = len(kept(s.first, s.n_tokens, facts.stride))
            shape = (n, tokens, s.rows, s.channels)
            found[hook_name(i, s.key)] = Entry("F32" if k == at_hook else dtype, shape)
        if batch.n_scored and at_hook is None:
            found[logits_name(i)] = Entry("F32", (n, len(scored(facts, i)), facts.n_vocab))
    return found


def logits_hook(facts: TraceFacts, batch: int) -> int | None:
    """Number of the hook point whose values are the logits, None if none is."""
    for i, s in enumerate(facts.batches[batch].stops):
        if (s.key, s.rows, s.channels) == (LOGITS, 1, facts.n_vocab):
            return i
    return None


def scored(facts: TraceFacts, batch: int, stride: int | None = None) -> range:
    """Positions of a chunk whose logits are kept, counted from 0 in the chunk.

    Args:
        facts: of the trace.
        batch: which decode of the chunk.
        stride: to be used for the trace's own.
    """
    b = facts.batches[batch]
    return every(b.first_scored, b.n_scored, stride or facts.stride)


def file_size(facts: TraceFacts) -> int:
    """Bytes of the whole file."""
    found = entries(facts)
    return len(pack_header(found, metadata(facts))) + sum(e.n_bytes for e in found.values())


def thinned(facts: TraceFacts, budget: int) -> TraceFacts:
    """The same with as many tokens kept as fit into so many bytes.

    At least one scored position of each chunk stays.

    Raises:
        InputError: not even so few fit.
    """
    for candidate in _candidates(facts):
        # The header is made only where the values alone would fit.
        if _values_size(candidate) <= budget and file_size(candidate) <= budget:
            return candidate
    raise InputError(
        f"a trace of this run takes at least {file_size(candidate):,} bytes, and {budget:,} are"
        " allowed: give a larger --budget, or fewer --chunks"
    )


def _candidates(facts: TraceFacts) -> Iterator[TraceFacts]:
    for stride in range(1, max(2, facts.n_ctx // 2)):
        yield replace(facts, stride=stride)


def _values_size(facts: TraceFacts) -> int:
    return sum(e.n_bytes for e in entries(facts).values())
