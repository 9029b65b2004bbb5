"""A file's own tokenizer: texts to ids, as it is and as it would be with other keys."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ggufnorm.engines import worker
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel, Setting
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import EngineError

Ids = tuple[int, ...]

_PATIENCE = 30.0
"""Seconds after which no further settings are tried: a vocabulary of 250,000 takes about one."""


@dataclass(frozen=True)
class Change:
    """Keys of the metadata and what they are set to for one run; none for the file as it is.

    Attributes:
        flags: those that hold true or false.
        names: those that hold a text.
        numbers: those that hold an id.
    """

    flags: dict[str, bool] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Setting]:
        """All of them."""
        return {**self.flags, **self.names, **self.numbers}

    def without(self, key: str) -> Change:
        """All but one of the keys."""
        return Change(
            {k: v for k, v in self.flags.items() if k != key},
            {k: v for k, v in self.names.items() if k != key},
            {k: v for k, v in self.numbers.items() if k != key},
        )

    def __or__(self, other: Change) -> Change:
        return Change(
            self.flags | other.flags, self.names | other.names, self.numbers | other.numbers
        )


@dataclass(frozen=True)
class VocabularyJob:
    """Texts to tokenize, once with each of some changes to the metadata.

    Attributes:
        model: path of the file.
        texts: to tokenize.
        changes: to make, each alone.
    """

    model: str
    texts: tuple[str, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Vocabularies:
    """What a file's tokenizer makes of texts.

    Attributes:
        ids: of each change, of each text; empty where llama.cpp refuses the change or there
            was no time left.
    """

    ids: tuple[tuple[Ids, ...], ...]


def tokenize(
    model: str | os.PathLike[str],
    texts: Sequence[str],
    changes: Sequence[Change] = (Change(),),
) -> tuple[tuple[Ids, ...], ...]:
    """Ids of texts by a file's tokenizer; no weights are loaded.

    Special tokens in a text are read as such, as Transformers does, and BOS and EOS are added
    as the file asks for (``llama_tokenize`` in ``src/llama-vocab.cpp``).

    Args:
        model: a GGUF file on this machine.
        texts: to tokenize.
        changes: keys set to other values for a run (``--override-kv``), each alone.

    Returns:
        For each change the ids of each text; an empty tuple where llama.cpp refuses the
        change, or there was no time left for it.

    Raises:
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp crashes, or does not load the file as it is.
    """
    job = VocabularyJob(os.fspath(model), tuple(texts), tuple(changes))
    return worker.call(tokenize_texts, job).ids


def tokenize_texts(job: VocabularyJob, _channel: Channel) -> Vocabularies:
    """The child's part of :func:`tokenize`."""
    start = time.monotonic()
    found: list[tuple[Ids, ...]] = []
    for change in job.changes:
        if found and time.monotonic() - start > _PATIENCE:
            found.append(())
            continue
        try:
            found.append(_ids(job, change))
        except EngineError:
            if not change.settings:
                raise
            found.append(())
    return Vocabularies(tuple(found))


def _ids(job: VocabularyJob, change: Change) -> tuple[Ids, ...]:
    options = EngineOptions(n_ctx=1, n_threads=1)
    with LlamaModel(job.model, options, vocab_only=True, overrides=change.settings) as model:
        return tuple(
            tuple(int(i) for i in model.tokenize(text, parse_special=True)) for text in job.texts
        )
