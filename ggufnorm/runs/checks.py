"""Checks before a run: arguments, memory, and whether two models are one network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import psutil

from ggufnorm.core.progress import OnProgress, Progress, size
from ggufnorm.core.trace import NetworkFacts
from ggufnorm.engines.llama.session import MAX_BATCH
from ggufnorm.errors import MemoryLimitError, MismatchError
from ggufnorm.formats.model_file import ModelFile

MIN_CTX = 8
"""Fewer positions than this leave nothing to score."""


def require_extent(n_ctx: int, chunks: int | None, budget: float | None = None) -> None:
    """Refuse what cannot be run.

    Args:
        n_ctx: tokens of a chunk.
        chunks: how many at most, None for all.
        budget: seconds, None for no limit.

    Raises:
        ValueError: one of them is too small.
    """
    if n_ctx < MIN_CTX:
        raise ValueError(f"n_ctx must be at least {MIN_CTX}, not {n_ctx}")
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks must be at least 1, not {chunks}")
    if budget is not None and not 0 < budget < float("inf"):
        raise ValueError(f"budget must be a number of seconds above 0, not {budget}")


def memory_needed(files: Sequence[ModelFile], n_ctx: int, n_replicas: int) -> int:
    """Bytes that a run takes.

    Counted are the files, and per replica the cache of keys and values (F16), the logits of
    half a chunk, and the activations of one batch.

    Args:
        files: whose weights are loaded.
        n_ctx: tokens of a chunk.
        n_replicas: contexts.
    """
    m, arch = files[0].metadata, files[0].architecture
    n_layer = m.integer(f"{arch}.block_count") or 0
    n_embd = m.integer(f"{arch}.embedding_length") or 0
    n_ff = m.integer(f"{arch}.feed_forward_length") or 4 * n_embd
    n_vocab = vocabulary_size(files[0])
    batch = min(n_ctx, MAX_BATCH)
    cache = 2 * 2 * n_layer * n_embd * n_ctx
    activations = 4 * batch * (8 * n_embd + 3 * n_ff + n_vocab)
    need = sum(f.size for f in files)
    return need + n_replicas * (cache + activations + 4 * n_ctx // 2 * n_vocab)


def tell_memory(
    files: Sequence[ModelFile],
    n_ctx: int,
    n_replicas: int,
    on_progress: OnProgress,
    disk: str = "nothing on disk",
) -> None:
    """Say what a run takes, before it begins; how long it takes its first chunk tells.

    Args:
        files: whose weights are loaded.
        n_ctx: tokens of a chunk.
        n_replicas: contexts.
        on_progress: gets it as a note.
        disk: what is written beside the result.
    """
    need, free = memory_needed(files, n_ctx, n_replicas), free_memory()
    text = f"memory: about {size(need)} of {size(free)} that are free; {disk}"
    on_progress(Progress(text, note=True))


def free_memory() -> int:
    """Bytes of memory that this machine has free."""
    return int(psutil.virtual_memory().available)


def vocabulary_size(file: ModelFile) -> int:
    """Tokens of a file's vocabulary, 0 if it has none."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else 0


def require_memory(files: Sequence[ModelFile], n_ctx: int, n_replicas: int) -> None:
    """Refuse to load what does not fit into the memory that is free.

    Raises:
        MemoryLimitError: :func:`memory_needed` is more than that.
    """
    need, free = memory_needed(files, n_ctx, n_replicas), free_memory()
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
