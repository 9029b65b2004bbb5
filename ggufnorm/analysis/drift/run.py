"""``drift``: check both files, run them in a child process, return what was found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ggufnorm.analysis.inspection import model_facts
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.core.trace import NetworkFacts
from ggufnorm.engines.child import run_in_child
from ggufnorm.engines.llama.session import MAX_BATCH, CacheType, EngineOptions, FlashAttention
from ggufnorm.engines.llama.tokens import text_of_job
from ggufnorm.errors import EngineError, MemoryLimitError, MismatchError
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.output import refuse_inputs, sweep
from ggufnorm.samples import text_to_run
from ggufnorm.version import __version__

MIN_CTX = 8
"""Fewer positions than this leave nothing to score."""


@dataclass(frozen=True)
class SideOptions:
    """How one side is run; see :class:`~ggufnorm.engines.llama.session.EngineOptions`."""

    flash_attention: FlashAttention = "auto"
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    use_extra_bufts: bool = False
    unfused_norms: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: what is being done, for a person.
        done: chunks finished.
        total: chunks in all, 0 before that is known.
        tokens_per_second: over the chunks finished; 0 before the first.
        seconds_left: estimate; None before the first chunk is finished.
        warning: whether ``phase`` is a warning.
        note: whether ``phase`` is to be told even where no bar is shown.
    """

    phase: str
    done: int = 0
    total: int = 0
    tokens_per_second: float = 0.0
    seconds_left: float | None = None
    warning: bool = False
    note: bool = False

    @property
    def speed(self) -> str:
        """The speed for a person."""
        return f"{self.tokens_per_second:,.0f} tokens/s"


def drift(
    ref: str | os.PathLike[str],
    quant: str | os.PathLike[str],
    *,
    text: str | None = None,
    text_name: str = "given text",
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    options: SideOptions = SideOptions(),
    options_ref: SideOptions = SideOptions(),
    floor: bool = False,
    resume: str | os.PathLike[str] | None = None,
    save_every: float = 5.0,
    check_memory: bool = True,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> DriftReport:
    """Run two versions of a model on one text and measure where they part.

    Args:
        ref: location of the model that is right by definition; it must be on this machine
            (:mod:`ggufnorm.formats.location`).
        quant: location of the model under test; the same network. May be the same file, to
            measure what other options do.
        text: what to run; None for the bundled text.
        text_name: how the report calls it.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers to put on a GPU that llama.cpp was built for.
        options: how the model under test is run.
        options_ref: how the reference is run.
        floor: also run the reference against itself: the engine's own noise.
        resume: a file in which progress is kept; if it holds some, the run goes on there.
        save_every: seconds between two saves of that file; after the last chunk and after a
            Ctrl-C it is saved in any case.
        check_memory: refuse models that do not fit into the memory that is free.
        on_progress: called as the run goes on.

    Raises:
        InputError: a file cannot be opened, is not GGUF or is not on this machine.
        MismatchError: the files are not two versions of one network.
        TextError: the text is empty or shorter than one chunk.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp fails or crashes, or the models do not fit into memory.
        ValueError: ``n_ctx`` or ``chunks`` is out of range.

    A Ctrl-C ends the run after the current chunk and returns what was measured so far.
    """
    require_extent(n_ctx, chunks)
    text, text_name = text_to_run(text, text_name)
    with open_model(local_path(ref)) as a, open_model(local_path(quant)) as b:
        check_same_network(a, b)
        facts = [model_facts(file) for file in (a, b)]
        if resume is not None:
            refuse_inputs(resume, [s.path for file in (a, b) for s in file.shards])
        if check_memory:
            require_memory([a] if a.path == b.path else [a, b], n_ctx, 4 if floor else 3)
    n_threads = n_threads or os.cpu_count() or 1
    sides = [
        EngineOptions(n_ctx, n_threads, n_gpu_layers, **to_plain(side))
        for side in (options_ref, options)
    ]
    job = {
        "version": __version__,
        "reference": to_plain(facts[0]),
        "quant": to_plain(facts[1]),
        **text_of_job(text, [fact.path for fact in facts]),
        "text_name": text_name,
        "chunks": chunks,
        "options_ref": to_plain(sides[0]),
        "options": to_plain(sides[1]),
        "floor": floor,
        "checkpoint": None if resume is None else os.fspath(resume),
        "save_every": save_every,
    }
    from ggufnorm.analysis.drift.measure import measure

    latest = Progress("")

    def show(message: dict[str, Any]) -> None:
        nonlocal latest
        latest = progress_of(message)
        on_progress(latest)

    try:
        result = run_in_child(measure, job, show, heeds_stop=True)
    except EngineError as error:
        raise _with_remains(error, latest, resume) from None
    finally:
        if resume is not None:  # a child that was ended may have been writing it
            sweep(Path(resume).resolve().parent)
    return from_plain(DriftReport, result)


def require_extent(n_ctx: int, chunks: int | None) -> None:
    """Refuse what cannot be run.

    Args:
        n_ctx: tokens of a chunk.
        chunks: how many at most, None for all.

    Raises:
        ValueError: one of them is too small.
    """
    if n_ctx < MIN_CTX:
        raise ValueError(f"n_ctx must be at least {MIN_CTX}, not {n_ctx}")
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks must be at least 1, not {chunks}")


def _with_remains(
    error: EngineError, latest: Progress, resume: str | os.PathLike[str] | None
) -> EngineError:
    """The error of an engine that died on the way, and what is left of its work."""
    if latest.done == 0:
        return error
    remains = f"{error}; {latest.done} of {latest.total} chunks were done"
    if resume is None:
        remains += ": with --resume FILE a run goes on where it ended"
    else:
        remains += f": the same command goes on from {os.fspath(resume)}"
    return type(error)(remains, error.log)


def progress_of(message: dict[str, Any]) -> Progress:
    """What a message from the child says."""
    if message["type"] != "progress":
        kind = message["type"]
        return Progress(message["text"], warning=kind == "warning", note=kind == "note")
    done, total, seconds = message["done"], message["total"], message["seconds"]
    run = message["run"]  # chunks of this run: others came from a checkpoint
    speed = run * message["tokens"] / max(seconds, 1e-9)
    return Progress("running", done, total, speed, seconds / run * (total - done))


def require_memory(files: Sequence[ModelFile], n_ctx: int, n_lanes: int) -> None:
    """Refuse to load what does not fit into the memory that is free.

    Counted are the files, and per lane the cache of keys and values (F16), the logits of
    half a chunk, and the activations of one batch.

    Raises:
        MemoryLimitError: it does not fit.
    """
    m, arch = files[0].metadata, files[0].architecture
    n_layer = m.integer(f"{arch}.block_count") or 0
    n_embd = m.integer(f"{arch}.embedding_length") or 0
    n_ff = m.integer(f"{arch}.feed_forward_length") or 4 * n_embd
    tokens = m.get("tokenizer.ggml.tokens")
    n_vocab = len(tokens) if isinstance(tokens, list) else 0
    batch = min(n_ctx, MAX_BATCH)
    cache = 2 * 2 * n_layer * n_embd * n_ctx
    activations = 4 * batch * (8 * n_embd + 3 * n_ff + n_vocab)
    need = sum(f.size for f in files)
    need += n_lanes * (cache + activations + 4 * n_ctx // 2 * n_vocab)
    free = psutil.virtual_memory().available
    if need > free:
        raise MemoryLimitError(
            f"running {' and '.join(f.path for f in files)} takes about {need / 1e9:.1f} GB of"
            f" memory, and {free / 1e9:.1f} GB are free: use a machine with more, smaller"
            " files, or a smaller -c (--no-memory-check tries all the same)"
        )


def check_same_network(ref: ModelFile, quant: ModelFile) -> None:
    """Refuse two files whose hidden states cannot be compared.

    Raises:
        MismatchError: architecture, layer count, widths or vocabulary differ.
    """
    require_same_network(network_facts(ref), network_facts(quant), ref.path, quant.path)


def network_facts(file: ModelFile) -> NetworkFacts:
    """What another file must share to be a version of the same network."""
    arch = file.architecture
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    return NetworkFacts(
        architecture=arch,
        n_layers=file.metadata.integer(f"{arch}.block_count"),
        n_embd=file.metadata.integer(f"{arch}.embedding_length"),
        n_vocab=len(tokens),
        vocabulary=hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
    )


def require_same_network(ref: NetworkFacts, quant: NetworkFacts, ref_is: str, is_: str) -> None:
    """Refuse what cannot be compared.

    Args:
        ref: of the reference.
        quant: of the other side.
        ref_is: what the message calls the reference.
        is_: what it calls the other side.

    Raises:
        MismatchError: they are not versions of one network.
    """
    start = f"{is_} is not a version of {ref_is}:"
    for what, field in (
        ("the architecture", "architecture"),
        ("the number of layers", "n_layers"),
        ("the width (embedding_length)", "n_embd"),
        ("the size of the vocabulary", "n_vocab"),
    ):
        a, b = getattr(ref, field), getattr(quant, field)
        if a != b:
            raise MismatchError(f"{start} {what} is {b} and not {a}")
    # A model without a tokenizer beside it does not tell.
    if ref.vocabulary and quant.vocabulary and ref.vocabulary != quant.vocabulary:
        raise MismatchError(f"{start} the vocabularies have the same size but different tokens")
