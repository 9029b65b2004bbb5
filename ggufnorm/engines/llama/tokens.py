"""Cuts texts into tokens, long ones where their memory is given back."""

from __future__ import annotations

import base64
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.child import Emit, run_in_child
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel

_SHORT = 1 << 16
"""Characters that may be cut in the process that runs the model."""


def tokenize(model: LlamaModel, text: str) -> NDArray[np.int32]:
    """Token ids of a text, special tokens added as the model asks for them.

    llama.cpp's tokenizers take a text as a whole and need some 57 bytes for each of its
    bytes (``llm_tokenizer_spm_session`` in ``src/llama-vocab.cpp``, measured). A child
    that loads the vocabulary alone takes them for a long one, so that the process which
    runs the model needs no more memory for it.

    Raises:
        EngineError: the model has no tokenizer that llama.cpp can run.
    """
    if len(text) <= _SHORT:
        return model.tokenize(text)
    found = run_in_child(cut, {"path": model.path, "text": text}, lambda _message: None)
    return np.frombuffer(base64.b64decode(found["tokens"]), np.int32)


def cut(job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    """The child's part of :func:`tokenize`."""
    with LlamaModel(job["path"], EngineOptions(n_ctx=1, n_threads=1), vocab_only=True) as model:
        return {"tokens": base64.b64encode(model.tokenize(job["text"]).tobytes()).decode()}
