"""The text that models run: cut into tokens where its memory is given back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from ggufnorm.engines import worker
from ggufnorm.engines.base import Tokens
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import InputError

_SHORT = 1 << 16
"""Characters that may be tokenized in the process that runs the models."""


@dataclass(frozen=True)
class Corpus:
    """A text, or its token ids.

    Attributes:
        name: what reports call it.
        text: None where there are ids.
        tokens: ``(tokens,)``, None where there is a text.
    """

    name: str
    text: str | None
    tokens: Tokens | None = None

    def encode(self, *models: LlamaModel) -> Tokens:
        """Token ids, special tokens added as the models ask for them.

        Raises:
            InputError: the models cut the text into different tokens.
            EngineError: a model has no tokenizer that llama.cpp can run.
        """
        if self.tokens is not None:
            return self.tokens
        assert self.text is not None
        tokens, *others = (model.tokenize(self.text) for model in dict.fromkeys(models))
        if not all(np.array_equal(tokens, other) for other in others):
            raise InputError("the two models cut the text into different tokens")
        return tokens


@dataclass(frozen=True)
class TokenizeJob:
    """A text and the models whose vocabularies cut it."""

    corpus: Corpus
    paths: tuple[str, ...]


def make_corpus(text: str, name: str, paths: Sequence[str]) -> Corpus:
    """A text for a job; a long one as token ids.

    llama.cpp's tokenizers take a text as a whole and need some 57 bytes for each of its
    bytes (``llm_tokenizer_spm_session`` in ``src/llama-vocab.cpp``, measured). So a child
    that loads vocabularies alone cuts a long one, and the one that runs the models needs
    no more memory for it.

    Args:
        text: what is going to be run.
        name: what reports call it.
        paths: of the models that are going to run it.

    Raises:
        InputError: the models cut the text into different tokens.
        EngineError: a model has no tokenizer that llama.cpp can run.
        KeyboardInterrupt: after a Ctrl-C.
    """
    corpus = Corpus(name, text)
    if len(text) <= _SHORT:
        return corpus
    return worker.call(tokenize, TokenizeJob(corpus, tuple(dict.fromkeys(paths))))


def tokenize(job: TokenizeJob, _channel: Channel) -> Corpus:
    """The child's part of :func:`make_corpus`."""
    options = EngineOptions(n_ctx=1, n_threads=1)
    with ExitStack() as stack:
        models = [
            stack.enter_context(LlamaModel(path, options, vocab_only=True)) for path in job.paths
        ]
        return Corpus(job.corpus.name, None, job.corpus.encode(*models))
