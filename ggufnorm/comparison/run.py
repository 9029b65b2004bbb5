"""``drift``: check both files, run them in a child process, return what was found."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ggufnorm.core.drift import DriftReport, ModelFacts
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.engines.child import run_in_child
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.errors import MismatchError, TextError
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.inspection import file_type
from ggufnorm.samples import default_text

MIN_CTX = 8
"""Fewer positions than this leave nothing to score."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: what is being done, for a person.
        done: chunks finished.
        total: chunks in all, 0 before that is known.
        tokens_per_second: over the chunks finished; 0 before the first.
        seconds_left: estimate; None before the first chunk is finished.
    """

    phase: str
    done: int = 0
    total: int = 0
    tokens_per_second: float = 0.0
    seconds_left: float | None = None


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
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> DriftReport:
    """Run two versions of a model on one text and measure where they part.

    Args:
        ref: location of the model that is right by definition; it must be on this machine
            (:mod:`ggufnorm.formats.location`).
        quant: location of the model under test; the same network.
        text: what to run; None for the bundled text.
        text_name: how the report calls it.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers to put on a GPU that llama.cpp was built for.
        on_progress: called as the run goes on.

    Raises:
        InputError: a file cannot be opened, is not GGUF or is not on this machine.
        MismatchError: the files are not two versions of one network.
        TextError: the text is empty or shorter than one chunk.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp fails or crashes.
        ValueError: ``n_ctx`` or ``chunks`` is out of range.

    A Ctrl-C ends the run after the current chunk and returns what was measured so far.
    """
    if n_ctx < MIN_CTX:
        raise ValueError(f"n_ctx must be at least {MIN_CTX}, not {n_ctx}")
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks must be at least 1, not {chunks}")
    if text is None:
        text, text_name = default_text(), "bundled: State of the Union addresses"
    if not text.strip():
        raise TextError(f"{text_name}: the text is empty")
    with open_model(local_path(ref)) as a, open_model(local_path(quant)) as b:
        check_same_network(a, b)
        facts = [model_facts(file) for file in (a, b)]
    options = EngineOptions(
        n_ctx=n_ctx, n_threads=n_threads or os.cpu_count() or 1, n_gpu_layers=n_gpu_layers
    )
    job = {
        "reference": to_plain(facts[0]),
        "quant": to_plain(facts[1]),
        "text": text,
        "text_name": text_name,
        "chunks": chunks,
        "options": to_plain(options),
    }
    from ggufnorm.comparison.measure import measure

    result = run_in_child(measure, job, lambda message: on_progress(_progress(message)))
    return from_plain(DriftReport, result)


def _progress(message: dict[str, Any]) -> Progress:
    if message["type"] == "phase":
        return Progress(message["text"])
    done, total, seconds = message["done"], message["total"], message["seconds"]
    return Progress(
        "running",
        done,
        total,
        message["tokens"] / max(seconds, 1e-9),
        seconds / done * (total - done),
    )


def model_facts(file: ModelFile) -> ModelFacts:
    """What a report says of a model file."""
    return ModelFacts(
        path=file.path,
        architecture=file.architecture,
        name=file.metadata.string("general.name"),
        file_type=file_type(file),
        n_bytes=file.size,
    )


def check_same_network(ref: ModelFile, quant: ModelFile) -> None:
    """Refuse two files whose hidden states cannot be compared.

    Raises:
        MismatchError: architecture, layer count, widths or vocabulary differ.
    """

    def compare(what: str, a: object, b: object) -> None:
        if a != b:
            raise MismatchError(
                f"{quant.path} is not a version of {ref.path}: {what} is {b} and not {a}"
            )

    compare("the architecture", ref.architecture, quant.architecture)
    arch = ref.architecture
    for what, key in (
        ("the number of layers", f"{arch}.block_count"),
        ("the width (embedding_length)", f"{arch}.embedding_length"),
    ):
        compare(what, ref.metadata.get(key), quant.metadata.get(key))
    tokens = [f.metadata.get("tokenizer.ggml.tokens") for f in (ref, quant)]
    counts = [len(t) if isinstance(t, list) else 0 for t in tokens]
    compare("the size of the vocabulary", *counts)
    if tokens[0] != tokens[1]:
        raise MismatchError(
            f"{quant.path} is not a version of {ref.path}: the vocabularies have the same size"
            " but different tokens"
        )
