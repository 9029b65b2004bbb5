"""Cuts a job's text into tokens, a long one where its memory is given back."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.child import Emit, run_in_child
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.errors import InputError

_SHORT = 1 << 16
"""Characters that may be cut in the process that runs the models."""


def text_of_job(text: str, paths: Sequence[str]) -> dict[str, Any]:
    """What a job says of its text: the text, or the tokens of a long one.

    llama.cpp's tokenizers take a text as a whole and need some 57 bytes for each of its
    bytes (``llm_tokenizer_spm_session`` in ``src/llama-vocab.cpp``, measured). So a child
    that loads vocabularies alone cuts a long one, and the one that runs the models needs
    no more memory for it.

    Args:
        text: what is going to be run.
        paths: of the models that are.

    Returns:
        To be put into the job, for :func:`tokens_of_job`.

    Raises:
        InputError: the models cut the text into different tokens.
        EngineError: a model has no tokenizer that llama.cpp can run.
        KeyboardInterrupt: after a Ctrl-C.
    """
    if len(text) <= _SHORT:
        return {"text": text}
    job = {"text": text, "paths": list(dict.fromkeys(paths))}
    return run_in_child(cut, job, lambda _message: None)


def cut(job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    """The child's part of :func:`text_of_job`."""
    options = EngineOptions(n_ctx=1, n_threads=1)
    with ExitStack() as stack:
        models = [
            stack.enter_context(LlamaModel(path, options, vocab_only=True)) for path in job["paths"]
        ]
        tokens = tokens_of_job(job, *models)
    return {"tokens": base64.b64encode(tokens.tobytes()).decode()}


def tokens_of_job(job: dict[str, Any], *models: LlamaModel) -> NDArray[np.int32]:
    """Token ids of a job's text, special tokens added as its models ask for them.

    Raises:
        InputError: the models cut the text into different tokens.
        EngineError: a model has no tokenizer that llama.cpp can run.
    """
    if "tokens" in job:
        return np.frombuffer(base64.b64decode(job["tokens"]), np.int32)
    tokens, *others = (model.tokenize(job["text"]) for model in dict.fromkeys(models))
    if not all(np.array_equal(tokens, other) for other in others):
        raise InputError("the two models cut the text into different tokens")
    return tokens
