"""A loaded model and its contexts: load, tokenize, decode a batch, read logits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.llama.binding import llama
from ggufnorm.errors import EngineError

MAX_BATCH = 512
"""Most tokens in one decode: llama.cpp's own default for ``-ub``."""


@dataclass(frozen=True)
class EngineOptions:
    """How llama.cpp is to run, in its own words.

    Attributes:
        n_ctx: ``-c``: tokens of one chunk.
        n_threads: ``-t``.
        n_gpu_layers: ``-ngl``.
        use_extra_bufts: let llama.cpp repack weights for its fastest CPU kernels. Off,
            the plain kernels run; they are also the only ones that survive on virtual
            machines whose CPU announces AMX without having it.
    """

    n_ctx: int
    n_threads: int
    n_gpu_layers: int = 0
    use_extra_bufts: bool = False


class LlamaModel:
    """The weights of one file in llama.cpp. A context manager.

    Raises:
        EngineError: llama.cpp does not load the file.
    """

    def __init__(self, path: str, options: EngineOptions) -> None:
        lib = llama()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers
        params.use_extra_bufts = options.use_extra_bufts
        self.path = path
        self.handle = lib.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise EngineError(f"llama.cpp cannot load {path}")
        self._vocab = lib.llama_model_get_vocab(self.handle)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        llama().llama_model_free(self.handle)

    @property
    def is_decoder_only(self) -> bool:
        """Whether one decode of a token sequence gives next-token logits."""
        lib = llama()
        return bool(lib.llama_model_has_decoder(self.handle)) and not bool(
            lib.llama_model_has_encoder(self.handle)
        )

    @property
    def bos(self) -> int | None:
        """The token that llama-perplexity puts at the start of each chunk, if it does."""
        lib = llama()
        if not lib.llama_vocab_get_add_bos(self._vocab):
            return None
        return int(lib.llama_vocab_bos(self._vocab))

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Token ids of a text, special tokens added as the model asks for them.

        Raises:
            EngineError: the model has no tokenizer that llama.cpp can run.
        """
        lib = llama()
        raw = text.encode()
        capacity = len(raw) + 16
        buffer = (ctypes.c_int32 * capacity)()
        n = lib.llama_tokenize(self._vocab, raw, len(raw), buffer, capacity, True, False)
        if n < 0:
            raise EngineError(f"{self.path}: llama.cpp cannot tokenize the text")
        return np.array(buffer[:n], dtype=np.int32)


EvalCallback = Callable[[int, bool], bool]
"""``(tensor address, ask) -> answer``: ggml_backend_sched_eval_callback."""


class LlamaContext:
    """One context of a model. A context manager.

    Args:
        model: whose weights it uses.
        options: how to run.
        on_eval: called at every graph node; None to run unobserved.

    Raises:
        EngineError: llama.cpp cannot make the context (usually: not enough memory).
    """

    def __init__(
        self, model: LlamaModel, options: EngineOptions, on_eval: EvalCallback | None
    ) -> None:
        lib = llama()
        params = lib.llama_context_default_params()
        params.n_ctx = options.n_ctx
        params.n_batch = params.n_ubatch = min(options.n_ctx, MAX_BATCH)
        params.n_threads = params.n_threads_batch = options.n_threads
        params.no_perf = True
        if on_eval is not None:
            # Kept on self: ctypes does not keep a callback alive.
            self._callback = lib.ggml_backend_sched_eval_callback(
                lambda tensor, ask, _data: on_eval(tensor, ask)
            )
            params.cb_eval = self._callback
        self.model = model
        self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise EngineError(f"llama.cpp cannot make a context for {model.path}")
        self._batch: Any = lib.llama_batch_init(min(options.n_ctx, MAX_BATCH), 0, 1)

    def __enter__(self) -> LlamaContext:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        lib = llama()
        lib.llama_batch_free(self._batch)
        lib.llama_free(self.handle)

    def clear(self) -> None:
        """Forget all tokens."""
        lib = llama()
        lib.llama_memory_clear(lib.llama_get_memory(self.handle), True)

    def decode(self, tokens: NDArray[np.int32], position: int, n_outputs: int) -> None:
        """Decode one batch of a sequence.

        Args:
            tokens: at most :data:`MAX_BATCH` ids.
            position: of the first one in its sequence.
            n_outputs: for how many tokens at the end logits are wanted.

        Raises:
            EngineError: llama.cpp reports a failure.
        """
        lib, batch = llama(), self._batch
        n = len(tokens)
        batch.n_tokens = n
        for i, token in enumerate(tokens.tolist()):
            batch.token[i] = token
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= n - n_outputs
        status = lib.llama_decode(self.handle, batch)
        if status != 0:
            raise EngineError(f"{self.model.path}: llama_decode failed with status {status}")

    def logits(self, n_outputs: int) -> NDArray[np.float32]:
        """The last batch's logits, ``(n_outputs, vocabulary)``: a view, good until decode."""
        pointer = llama().llama_get_logits(self.handle)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if address is None:
            raise EngineError(f"{self.model.path}: llama.cpp gives no logits")
        n = n_outputs * self.model.n_vocab
        raw = (ctypes.c_float * n).from_address(address)
        return np.ctypeslib.as_array(raw).reshape(n_outputs, self.model.n_vocab)
