"""``trace`` of a checkpoint: Transformers runs it, and what its norms show is written down."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from ggufnorm.analysis.trace.record import Recording, Source, plan_chunks, record
from ggufnorm.analysis.trace.run import unfinished_trace
from ggufnorm.core.drift import ModelFacts
from ggufnorm.core.progress import OnProgress, no_progress
from ggufnorm.core.trace import TraceFacts, TraceType
from ggufnorm.engines.base import Tokens
from ggufnorm.engines.hf.model import HFModel
from ggufnorm.engines.observed import ObservedRunner, require_vocabulary
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import InputError
from ggufnorm.formats.files import open_regular
from ggufnorm.formats.location import checkpoint_folder
from ggufnorm.formats.output import require_writable
from ggufnorm.runs.checks import require_extent
from ggufnorm.runs.loop import Policy
from ggufnorm.samples import text_to_run


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
    ask_above: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    on_progress: OnProgress = no_progress,
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
        ask_above: refuse a file of more bytes, if there is no budget; None for any size.
        resume: a file in which progress is kept; if it holds some, the run goes on there.
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
    path = checkpoint_folder(folder)
    model = HFModel(path, n_threads=n_threads, trust_remote_code=trust_remote_code)
    if model.is_encoder_decoder:
        raise InputError(f"{path}: encoder-decoders are traced from a GGUF file alone")
    if ids is None:
        text, text_name = text_to_run(text, text_name)
        if model.tokenizer is None:
            raise InputError(f"{path}: no tokenizer that loads: a trace needs one, or --ids")
        ids = model.tokenizer.ids(text)
    runner = ObservedRunner(
        os.fspath(path),
        model.run,
        architecture=f"transformers {model.kind}",
        n_threads=model.n_threads,
        tokenizer=model.tokenizer,
        n_vocab=lambda: model.n_vocab,
    )
    files = [*sorted(path.glob("*.safetensors")), path / "config.json"]
    source = Source(files_facts(path, files, model.kind), ids, text_name)
    return write_trace(
        runner, source, out, n_ctx, chunks, logits, dtype, budget, ask_above, resume, on_progress
    )


def write_trace(
    runner: ObservedRunner,
    source: Source,
    out: str | os.PathLike[str],
    n_ctx: int,
    chunks: int | None,
    logits: bool,
    dtype: TraceType,
    budget: int | None,
    ask_above: int | None,
    resume: str | os.PathLike[str] | None,
    on_progress: OnProgress,
) -> TraceFacts:
    """Run a model in this process and write its trace; see :func:`trace_checkpoint`."""
    require_writable(out, [runner.path])
    policy = Policy(None if resume is None else os.fspath(resume))
    with unfinished_trace(out, policy.resume) as unfinished:
        what = Recording(
            out=os.fspath(out),
            unfinished=os.fspath(unfinished),
            n_ctx=n_ctx,
            chunks=chunks,
            logits=logits,
            dtype=dtype,
            budget=budget,
            ask_above=ask_above,
            policy=policy,
        )
        n_chunks = plan_chunks(runner, source, what)
        require_vocabulary(runner, source.tokens[: n_chunks * n_ctx])
        network = runner.network()
        facts = record(runner, network, source, what, n_chunks, Channel(on_progress))
        assert facts is not None  # a Ctrl-C raises here
        return facts


_SAMPLE = 1 << 16


def files_facts(path: Path, files: Iterable[Path], architecture: str) -> ModelFacts:
    """A model of several files by their sizes and a sample of their bytes."""
    digest, size = hashlib.sha256(), 0
    for file in files:
        n = file.stat().st_size
        size += n
        digest.update(f"{file.name} {n}".encode())
        with open_regular(file) as stream:
            digest.update(stream.read(_SAMPLE))
            stream.seek(max(0, n - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
    return ModelFacts(os.fspath(path), architecture, path.name, None, size, digest.hexdigest())
