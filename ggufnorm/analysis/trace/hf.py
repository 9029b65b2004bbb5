"""``trace`` of a checkpoint: Transformers runs it, and what its norms show is written down."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.run import Progress, require_extent
from ggufnorm.analysis.trace.observed import Observed, Plan, files_facts, write_trace
from ggufnorm.core.trace import TraceFacts, TraceType
from ggufnorm.engines.hf.model import HFModel
from ggufnorm.errors import InputError
from ggufnorm.formats.location import checkpoint_folder
from ggufnorm.samples import text_to_run

Tokens = NDArray[np.int32]


def trace_checkpoint(
    folder: str,
    out: str | os.PathLike[str],
    *,
    text: str | None = None,
    text_name: str = "given text",
    ids: Tokens | None = None,
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    logits: bool = True,
    dtype: TraceType = "f32",
    budget: int | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> TraceFacts:
    """Run a checkpoint in Transformers and write down its norms, residual stream and logits.

    Args:
        folder: with config.json, safetensors and a tokenizer, or ``org/repo`` for one in
            huggingface_hub's cache.
        out: the trace to write; it appears only when it is complete.
        text: what to run; None for the bundled text.
        text_name: how a report calls it, or the ids.
        ids: token ids to run in the place of a text; no tokenizer is needed.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text.
        n_threads: CPU threads; None for all.
        logits: whether to store the logits of the scored positions.
        dtype: how to store all other values.
        budget: bytes that the file may take; evenly spaced tokens are chosen to keep it.
        trust_remote_code: run Python that the checkpoint brings.
        on_progress: called as the run goes on.

    Returns:
        What the trace says of itself.

    Raises:
        EngineMissingError: torch or transformers is not installed.
        InputError: the checkpoint has no tokenizer or cannot be run, or the trace cannot be
            written.
        TextError: the text is empty or shorter than one chunk.
        ValueError: ``n_ctx`` or ``chunks`` is out of range.
    """
    require_extent(n_ctx, chunks)
    plan = Plan(n_ctx, chunks, logits, dtype, budget)
    path = checkpoint_folder(folder)
    model = HFModel(path, n_threads=n_threads, trust_remote_code=trust_remote_code)
    if ids is None:
        text, text_name = text_to_run(text, text_name)
        if model.tokenizer is None:
            raise InputError(f"{path}: no tokenizer that loads: a trace needs one, or --ids")
        ids = model.tokenizer.ids(text)
    files = [*sorted(path.glob("*.safetensors")), path / "config.json"]
    observed = Observed(
        path=path,
        model=files_facts(path, files, model.kind),
        architecture=f"transformers {model.kind}",
        n_vocab=lambda: model.n_vocab,
        n_threads=model.n_threads,
        tokenizer=model.tokenizer,
        run=model.run,
    )
    return write_trace(observed, ids, text_name, out, plan, on_progress)
