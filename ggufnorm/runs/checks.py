"""Checks before a run: arguments, memory, and whether two models are one network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from ggufnorm.core.trace import NetworkFacts
from ggufnorm.engines.llama.places import KEPT_BYTES
from ggufnorm.engines.llama.runner import most_outputs
from ggufnorm.engines.llama.session import EngineOptions
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


@dataclass(frozen=True)
class Costs:
    """What one context of a model takes, in bytes.

    Attributes:
        n_layers: of the model.
        cache_of_layer: keys and values of a layer, in F16.
        activations: of one batch.
        logits: of half a chunk.
        sums: on a device that sums: what waits there to be read, and three values of the largest
            hook point (``engines/llama/sums.py``).
    """

    n_layers: int
    cache_of_layer: int
    activations: int
    logits: int
    sums: int


def costs_of(file: ModelFile, options: EngineOptions) -> Costs:
    """Estimated from the metadata."""
    m, arch = file.metadata, file.architecture
    n_embd = m.integer(f"{arch}.embedding_length") or 0
    n_ff = m.integer(f"{arch}.feed_forward_length") or 4 * n_embd
    n_vocab = vocabulary_size(file)
    batch = min(options.n_ctx, options.n_ubatch)
    n_logits = min(batch, most_outputs(options.n_ctx // 2, n_vocab)) * n_vocab
    return Costs(
        n_layers=m.integer(f"{arch}.block_count") or 0,
        cache_of_layer=2 * 2 * n_embd * options.n_ctx,
        activations=4 * batch * (8 * n_embd + 3 * n_ff + n_vocab),
        logits=4 * options.n_ctx // 2 * n_vocab,
        sums=KEPT_BYTES + 3 * 4 * max(batch * n_embd, batch * n_ff, n_logits),
    )


def memory_needed(files: Sequence[ModelFile], n_ctx: int, n_replicas: int) -> int:
    """Bytes of the computer's memory that a run takes: files, and each replica's :class:`Costs`.

    Args:
        files: whose weights are loaded.
        n_ctx: tokens of a chunk.
        n_replicas: contexts.
    """
    c = costs_of(files[0], EngineOptions(n_ctx, 1))
    each = c.n_layers * c.cache_of_layer + c.activations + c.logits
    return sum(f.size for f in files) + n_replicas * each


def free_memory() -> int:
    """Bytes of memory that this machine has free."""
    return int(psutil.virtual_memory().available)


def vocabulary_size(file: ModelFile) -> int:
    """Tokens of a file's vocabulary, 0 if it has none."""
    return file.metadata.n_elements("tokenizer.ggml.tokens") or 0


def require_memory(files: Sequence[ModelFile], n_ctx: int, n_replicas: int) -> None:
    """Refuse to load into the computer's memory what does not fit into what is free.

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
