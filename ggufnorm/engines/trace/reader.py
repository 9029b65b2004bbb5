"""Reads a trace back, one hook point of one chunk at a time."""

from __future__ import annotations

import json
import math
import os
from types import TracebackType
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.plain import from_plain
from ggufnorm.core.rows import Rows
from ggufnorm.core.trace import SCHEMA, VERSION, BatchFacts, TraceFacts, kept
from ggufnorm.engines.base import Graph, HookPoint, Node, NormPlan, OperationRole
from ggufnorm.engines.trace import layout
from ggufnorm.errors import InputError
from ggufnorm.formats.safetensors import SafetensorsReader
from ggufnorm.formats.safetensors_header import quoted

_MOST = 200
"""Characters of what is wrong with a description: it may quote all of it."""


class Trace:
    """A trace on disk, read-only. A context manager.

    Attributes:
        path: as given.
        facts: what it says of itself.
        tokens: ``(chunks × tokens of a chunk,)``: the text's ids, as far as it was run.
        graphs: of each batch of a chunk; they hold the hook points and norms, and no other nodes.

    Raises:
        InputError: the file cannot be opened, is no trace, or does not hold what it says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = SafetensorsReader(path)
        self.path = self._file.path
        try:
            self.facts = self._read_facts()
            self._check_sizes()
            self.graphs = tuple(self._graph(batch) for batch in self.facts.batches)
            self.tokens = self._read_tokens()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _read_facts(self) -> TraceFacts:
        found = self._file.metadata
        if found.get("schema") != SCHEMA:
            raise InputError(f"{self.path} is safetensors, but not a trace of ggufnorm")
        if found.get("version") != VERSION:
            raise InputError(
                f"{self.path} is a trace of version {quoted(found.get('version', ''))}, and"
                f" {VERSION} is known: use the ggufnorm that wrote it"
            )
        try:
            return from_plain(TraceFacts, json.loads(found.get("trace", "")))
        except (ValueError, OverflowError, RecursionError) as error:
            raise self._wrong(str(error)) from None

    def _wrong(self, problem: str) -> InputError:
        return InputError(f"{self.path}: the trace's description is damaged: {problem[:_MOST]}")

    def _check_sizes(self) -> None:
        """Nothing that is read later may lie outside what is there."""
        f = self.facts
        sizes = [f.n_ctx - 1, f.n_chunks - 1, f.stride - 1, f.n_vocab]
        for batch in f.batches:
            # The token after a scored position must be in the chunk.
            ends = [f.n_ctx - 1 - batch.first_scored - batch.n_scored] if batch.n_scored else []
            sizes += [batch.first_scored, batch.n_scored, *ends]
            for s in batch.stops:
                sizes += [s.first, s.n_tokens, s.rows, s.channels, *s.shape]
                sizes.append(f.n_ctx - s.first - s.n_tokens)
        if not f.batches or min(sizes) < 0:
            raise self._wrong("a size is out of range")
        if layout.entries(f) != self._file.entries:
            raise self._wrong("it tells of other arrays than the file holds")

    def _read_tokens(self) -> NDArray[np.int32]:
        parts = [self._file.read(layout.TOKENS, i) for i in range(self.facts.n_chunks)]
        tokens = np.concatenate(parts).astype(np.int32)
        if tokens.min() < 0 or tokens.max() >= self.facts.n_vocab:
            raise self._wrong("a token is not in the vocabulary")
        return tokens

    def _graph(self, batch: BatchFacts) -> Graph:
        try:
            return _graph(batch)
        except (KeyError, ValueError) as error:
            raise self._wrong(str(error)) from None

    def rows(self, batch: int, hook: int, chunk: int, stride: int) -> Rows:
        """The values that one chunk gave at a hook point.

        Args:
            batch: which decode of the chunk.
            hook: its number among that batch's hook points.
            chunk: which chunk.
            stride: of the tokens wanted; a multiple of the trace's own.
        """
        f = self.facts
        s = f.batches[batch].stops[hook]
        have, want = (kept(s.first, s.n_tokens, n) for n in (f.stride, stride))
        values = self._file.read(layout.hook_name(batch, s.key), chunk)
        values = _thin(values, have, want).astype(np.float32)
        first = chunk * f.n_ctx + want.start
        return Rows(values.reshape(-1, s.channels), first, len(want), stride)

    def logits(self, batch: int, chunk: int, stride: int) -> NDArray[np.float32]:
        """Logits of one chunk's scored positions, ``(positions, vocabulary)``."""
        f = self.facts
        have, want = layout.scored(f, batch), layout.scored(f, batch, stride)
        at_hook = layout.logits_hook(f, batch)
        if at_hook is not None:  # which may show one token more, that nothing follows
            return self.rows(batch, at_hook, chunk, stride).values[: len(want)]
        values = self._file.read(layout.logits_name(batch), chunk)
        return np.asarray(_thin(values, have, want), np.float32)

    def piece(self, token: int) -> str:
        """The text of a token, by its number in the run."""
        return self.facts.pieces.get(str(self.tokens[token]), "")


def _thin(values: NDArray[np.float32], have: range, want: range) -> NDArray[np.float32]:
    """Of values by token, those of the wanted tokens."""
    return values[(want.start - have.start) // have.step :: want.step // have.step]


def _graph(batch: BatchFacts) -> Graph:
    """What the comparison asks of a graph."""
    index = {s.key: i for i, s in enumerate(batch.stops)}
    if len(index) < len(batch.stops):
        raise ValueError("two hook points have one name")
    return Graph(
        nodes=tuple(
            Node(i, s.key, s.key, s.op, "F32", s.shape, b"", (), ())
            for i, s in enumerate(batch.stops)
        ),
        norms=tuple(
            NormPlan(
                key=n.key,
                kind=n.kind,
                epsilon=math.inf if n.epsilon is None else n.epsilon,
                groups=n.groups,
                input=index[n.input],
                norm=index[n.output],
                output=index[n.output],
                weight=n.weight,
                weight_shape=(),
                bias=n.bias,
                bias_shape=(),
            )
            for n in batch.norms
        ),
        hooks=tuple(
            HookPoint(i, s.key, s.op, cast(OperationRole, s.role), s.tensor, s.layer, pin=False)
            for i, s in enumerate(batch.stops)
        ),
        skipped=(),
    )
