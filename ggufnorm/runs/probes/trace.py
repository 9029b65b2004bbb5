"""Writes down every value of a run, in a file that can be compared elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ggufnorm.core.trace import TraceFacts
from ggufnorm.engines.base import Activation, Array, Batch, HookPoint, Runner
from ggufnorm.engines.trace import layout
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.errors import InputError
from ggufnorm.formats.safetensors import SafetensorsWriter
from ggufnorm.runs.session import Probe


class TraceWriter(Probe):
    """Writes the first replica's values. A context manager.

    Args:
        path: the file to fill.
        facts: what the trace says of itself.

    Methods raise OSError where the file cannot be written.
    """

    def __init__(self, path: Path, facts: TraceFacts) -> None:
        self._path, self._facts = path, facts
        self._keys = [{s.key for s in batch.stops} for batch in facts.batches]
        self._file: SafetensorsWriter | None = None
        self._k = 0

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._file is not None:
            self._file.__exit__(None, None, None)

    def _open(self, *, again: bool = False) -> SafetensorsWriter:
        if self._file is None:
            entries, metadata = layout.entries(self._facts), layout.metadata(self._facts)
            self._file = SafetensorsWriter(self._path, entries, metadata, again=again)
        return self._file

    def begin_batch(self, k: int, batch: Batch) -> None:
        """Values that follow are of the chunk's k-th batch."""
        self._k = k

    def write_tokens(self, chunk: int, tokens: Any) -> None:
        """Write a chunk's ids."""
        self._open().write(layout.TOKENS, chunk, tokens)

    def copy(self, part: Trace, chunk: int) -> None:
        """Write what a trace of earlier layers has of a chunk."""
        for k, batch in enumerate(part.facts.batches):
            for i, stop in enumerate(batch.stops):
                values = part.rows(k, i, chunk, 1).values
                self._open().write(layout.hook_name(k, stop.key), chunk, values)

    def observe(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        """Write a value's rows, of the tokens that are kept."""
        if hook.key not in self._keys[self._k]:
            return
        rows = values[0].rows(self._facts.stride).values
        self._check_range(hook.key, rows)
        self._open().write(layout.hook_name(self._k, hook.key), self._chunk(batch), rows)

    def end_batch(self, k: int, batch: Batch, runners: Sequence[Runner]) -> None:
        """Write the logits, unless a hook point shows them."""
        f = self._facts
        if f.batches[k].n_scored and layout.logits_hook(f, k) is None:
            logits = runners[0].logits(k, batch, batch.scored(f.stride))
            self._open().write(layout.logits_name(k), self._chunk(batch), logits)

    def _chunk(self, batch: Batch) -> int:
        return batch.chunk_start // self._facts.n_ctx

    def _check_range(self, key: str, values: Array) -> None:
        if self._facts.dtype == "f16" and values.size and not key.startswith(layout.LOGITS):
            finite = np.abs(values, where=np.isfinite(values), out=np.zeros_like(values))
            if finite.max() > np.finfo(np.float16).max:
                raise InputError(
                    f"{key} reaches {finite.max():.3g}, more than half precision holds: use"
                    " --dtype f32"
                )

    def finish(self) -> None:
        """Wait until the disk has it all."""
        self._open().finish()

    def state(self) -> Any:
        """What was written is in the file, once the disk has it."""
        self.finish()
        return {"bytes": layout.file_size(self._facts)}

    def restore(self, state: Any) -> None:
        """Go on writing to the file that is there.

        Raises:
            ValueError: it is not the one.
        """
        if not self._path.is_file() or self._path.stat().st_size != state["bytes"]:
            raise ValueError(f"{self._path} is not what was being written")
        self._open(again=True)
