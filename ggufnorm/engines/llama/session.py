"""A loaded model and its contexts: load, tokenize, decode a batch, read logits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.engine import Placement
from ggufnorm.engines.base import Batch
from ggufnorm.engines.llama import rpc
from ggufnorm.engines.llama.binding import llama
from ggufnorm.engines.llama.devices import place
from ggufnorm.engines.llama.library import choose_build
from ggufnorm.errors import EngineError

MAX_BATCH = 512
"""Most tokens in one decode where nothing else is asked for: llama.cpp's default of ``-ub``."""


FlashAttention = Literal["auto", "on", "off"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""What llama.cpp takes for ``-ctk`` and ``-ctv`` (``kv_cache_types`` in common/arg.cpp)."""


Setting = bool | int | str
"""What a key of the metadata can be set to for one run (``--override-kv``)."""


@dataclass(frozen=True)
class EngineOptions(Placement):
    """How llama.cpp is to run one model, in its own words.

    Attributes:
        n_ctx: ``-c``: tokens of one chunk.
        n_threads: ``-t``.
        n_gpu_layers: ``-ngl``; -1 for all; 0 for the CPU alone.
        flash_attention: ``-fa``.
        cache_type_k: ``-ctk``: type of the cached keys.
        cache_type_v: ``-ctv``: type of the cached values.
        use_extra_bufts: let llama.cpp repack weights for its fastest CPU kernels. Off,
            the plain kernels run; they are also the only ones that survive on virtual
            machines whose CPU announces AMX without having it.
        unfused_norms: watch norms from inside, so that llama.cpp cannot fuse RMS_NORM
            with the MUL behind it.
        llama_cpp: the build to run, as for ``--llama-cpp``; None for the one that
            :func:`~ggufnorm.formats.llama_libraries.chosen_libraries` finds.
        n_ubatch: ``-ub``: most tokens in one decode; a model that attends to all of its tokens
            at once takes them all.
    """

    n_ctx: int
    n_threads: int
    n_gpu_layers: int = 0
    flash_attention: FlashAttention = "auto"
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    use_extra_bufts: bool = False
    unfused_norms: bool = False
    llama_cpp: str | None = None
    n_ubatch: int = MAX_BATCH


class LlamaModel:
    """The weights of one file in llama.cpp. A context manager.

    Args:
        path: of the file.
        options: how its weights are held.
        vocab_only: load the vocabulary and no weights.
        overrides: keys of the metadata that are set to other values than the file's.

    Raises:
        RefusedError: a device that it is to be put on is not there.
        EngineError: a server of ``--rpc`` does not answer, or llama.cpp does not load the file.
    """

    def __init__(
        self,
        path: str,
        options: EngineOptions,
        *,
        vocab_only: bool = False,
        overrides: Mapping[str, Setting] | None = None,
    ) -> None:
        if options.llama_cpp is not None:
            choose_build(options.llama_cpp)
        lib = llama()
        options = rpc.connect(options, options.n_gpu_layers)
        params = lib.llama_model_default_params()
        # What llama.cpp is pointed to.
        self._held = [*place(params, options.n_gpu_layers, options), rpc.report_progress(params)]
        params.use_extra_bufts = options.use_extra_bufts
        params.vocab_only = vocab_only
        if overrides:
            changed = _overrides(overrides)
            params.kv_overrides = changed
        self.path = path
        with rpc.watched(f"loading {path}"):
            self.handle = lib.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise EngineError(f"llama.cpp cannot load {path}")
        if not vocab_only:
            self._require_kernels()
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
        with rpc.watched("freeing a model"):
            llama().llama_model_free(self.handle)

    def _require_kernels(self) -> None:
        """Refuse what llama.cpp loads and then writes beyond its memory with.

        Raises:
            EngineError: it is such a model.
        """
        arch = self._metadata("general.architecture")
        width = self._metadata(f"{arch}.wkv.head_size")
        if arch in _WKV7 and width.isdecimal() and int(width) % WKV7_STEP:
            llama().llama_model_free(self.handle)
            raise EngineError(
                f"{self.path}: {arch}.wkv.head_size is {width}, and llama.cpp's RWKV 7 kernels"
                f" write beyond their memory unless it is a multiple of {WKV7_STEP}: it cannot"
                " be run"
            )

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder must run before the decoder (T5)."""
        lib = llama()
        return bool(lib.llama_model_has_encoder(self.handle)) and bool(
            lib.llama_model_has_decoder(self.handle)
        )

    @property
    def encodes_only(self) -> bool:
        """Whether it is the encoder of an encoder-decoder alone (``t5encoder``)."""
        lib = llama()
        return bool(lib.llama_model_has_encoder(self.handle)) and not bool(
            lib.llama_model_has_decoder(self.handle)
        )

    @property
    def attends_only(self) -> bool:
        """Whether it is a decoder that remembers by a K/V cache alone, no recurrent state."""
        lib = llama()
        recurrent = lib.llama_model_is_recurrent(self.handle)
        hybrid = lib.llama_model_is_hybrid(self.handle)
        return not (recurrent or hybrid or self.has_encoder or self.is_embedding)

    @property
    def decoder_start(self) -> int:
        """The token that an encoder-decoder's decoder begins with."""
        lib = llama()
        token = int(lib.llama_model_decoder_start_token(self.handle))
        return token if token >= 0 else int(lib.llama_vocab_bos(self._vocab))

    @property
    def is_embedding(self) -> bool:
        """Whether the model gives one pooled vector for a text instead of predictions."""
        arch = self._metadata("general.architecture")
        pooling = self._metadata(f"{arch}.pooling_type")
        causal = self._metadata(f"{arch}.attention.causal")
        return causal == "false" or pooling not in ("", "0")

    def n_result(self, *, scores: bool) -> int:
        """Values of an embedding, or of the scores of a text."""
        lib = llama()
        count = lib.llama_model_n_cls_out if scores else lib.llama_model_n_embd
        return int(count(self.handle))

    def _metadata(self, key: str) -> str:
        """A metadata value as llama.cpp prints it, empty if there is none."""
        buffer = ctypes.create_string_buffer(256)
        n = llama().llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if n >= 0 else ""

    @property
    def bos(self) -> int | None:
        """The token that llama-perplexity puts at the start of each chunk, if it does."""
        lib = llama()
        if not lib.llama_vocab_get_add_bos(self._vocab):
            return None
        return int(lib.llama_vocab_bos(self._vocab))

    def tokenize(self, text: str, *, parse_special: bool = False) -> NDArray[np.int32]:
        """Token ids of a text, special tokens added as the model asks for them.

        Args:
            text: to tokenize.
            parse_special: read special tokens in the text as such.

        Raises:
            EngineError: the model has no tokenizer that llama.cpp can run.
        """
        lib = llama()
        raw = text.encode()
        capacity = len(raw) + 16
        buffer = (ctypes.c_int32 * capacity)()
        n = lib.llama_tokenize(self._vocab, raw, len(raw), buffer, capacity, True, parse_special)
        if n < 0:
            raise EngineError(f"{self.path}: llama.cpp cannot tokenize the text")
        return np.ctypeslib.as_array(buffer)[:n].copy()

    def piece(self, token: int) -> str:
        """The text of a token."""
        buffer = ctypes.create_string_buffer(256)
        n = llama().llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[: max(0, n)].decode(errors="replace")


EvalCallback = Callable[[int, bool], bool]
"""``(tensor address, ask) -> answer``: ggml_backend_sched_eval_callback."""


class LlamaContext:
    """One context of a model. A context manager.

    Args:
        model: whose weights it uses.
        options: how to run.
        on_eval: called at every graph node; None to run unobserved.
        n_seq: how many copies of each batch run side by side, each a sequence of its own.
        pooling: ``enum llama_pooling_type``, with the states of tokens for a result instead of
            predictions; None for what the model is made for.

    Raises:
        EngineError: llama.cpp cannot make the context (usually: not enough memory).
    """

    def __init__(
        self,
        model: LlamaModel,
        options: EngineOptions,
        on_eval: EvalCallback | None,
        n_seq: int = 1,
        pooling: int | None = None,
    ) -> None:
        lib = llama()
        params = lib.llama_context_default_params()
        params.n_ctx = options.n_ctx * n_seq
        params.n_seq_max = n_seq
        # An encoder attends to the whole chunk: it cannot be cut into batches.
        whole = model.is_embedding or model.has_encoder
        self.max_batch = options.n_ctx if whole else min(options.n_ctx, options.n_ubatch)
        params.n_batch = params.n_ubatch = self.max_batch * n_seq
        params.embeddings = model.is_embedding or pooling is not None
        if pooling is not None:
            params.pooling_type = pooling
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
        params.type_k = _cache_type(options.cache_type_k)
        params.type_v = _cache_type(options.cache_type_v)
        params.n_threads = params.n_threads_batch = options.n_threads
        params.no_perf = True
        # Without layers llama.cpp would still offload large products and the K/V cache.
        params.op_offload = options.op_offload and options.n_gpu_layers != 0
        params.offload_kqv = options.kv_offload and options.n_gpu_layers != 0
        if on_eval is not None:
            # Kept on self: ctypes does not keep a callback alive.
            self._callback = lib.ggml_backend_sched_eval_callback(
                lambda tensor, ask, _data: rpc.beat() and on_eval(tensor, ask)
            )
            params.cb_eval = self._callback
        self.model = model
        self.n_seq = n_seq
        with rpc.watched(f"making a context for {model.path}"):
            self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise EngineError(
                f"llama.cpp cannot make a context for {model.path}: it may be too large for"
                " the memory, or the options may not go together (a quantized V cache needs"
                " flash attention)"
            )
        self._check(params)
        self._batch: Any = lib.llama_batch_init(self.max_batch * n_seq, 0, 1)

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
        with rpc.watched("freeing a context"):
            lib.llama_free(self.handle)

    def _check(self, params: Any) -> None:
        """Ask the context for what it was told: a structure that lies otherwise was misread.

        Raises:
            EngineError: it was made with other sizes.
        """
        lib = llama()
        fields = ("n_batch", "n_ubatch", "n_seq_max", "n_threads")
        told = {name: getattr(params, name) for name in fields}
        found = {name: getattr(lib, f"llama_{name}")(self.handle) for name in told}
        if found != told:
            raise EngineError(
                f"llama.cpp made a context of {found} when it was asked for {told}: it lays out"
                " llama_context_params in a way that ggufnorm does not know"
            )

    def clear(self) -> None:
        """Forget all tokens."""
        lib = llama()
        memory = lib.llama_get_memory(self.handle)
        if memory:  # an encoder keeps none
            with rpc.watched("clearing a cache"):
                lib.llama_memory_clear(memory, True)

    def decode(self, batch: Batch) -> None:
        """Run one batch: through the encoder or the decoder, as it says.

        Raises:
            EngineError: llama.cpp reports a failure.
        """
        lib, raw = llama(), self._batch
        n = len(batch.tokens)
        raw.n_tokens = n * self.n_seq
        for sequence in range(self.n_seq):
            for i, token in enumerate(batch.tokens.tolist()):
                at = sequence * n + i
                raw.token[at] = token
                raw.pos[at] = batch.position + i
                raw.n_seq_id[at] = 1
                raw.seq_id[at][0] = sequence
                raw.logits[at] = i >= n - batch.n_outputs
        run = lib.llama_encode if batch.encode else lib.llama_decode
        with rpc.watched("running"):
            status = run(self.handle, raw)
        if status != 0:
            name = "llama_encode" if batch.encode else "llama_decode"
            raise EngineError(f"{self.model.path}: {name} failed with status {status}")

    def decode_texts(self, texts: Sequence[NDArray[np.int32]]) -> None:
        """Run several texts in one batch, each a sequence of its own.

        Raises:
            EngineError: llama.cpp reports a failure.
        """
        raw = self._batch
        raw.n_tokens = sum(map(len, texts))
        at = 0
        for sequence, tokens in enumerate(texts):
            for position, token in enumerate(tokens.tolist()):
                raw.token[at], raw.pos[at] = token, position
                raw.n_seq_id[at], raw.seq_id[at][0] = 1, sequence
                raw.logits[at] = True
                at += 1
        with rpc.watched("running a batch"):
            status = llama().llama_decode(self.handle, raw)
        if status != 0:
            raise EngineError(f"{self.model.path}: llama_decode failed with status {status}")

    def pooled(self, n_values: int, sequence: int = 0) -> NDArray[np.float32] | None:
        """What a sequence of the last batch was pooled to; None where nothing is pooled."""
        with rpc.watched("reading an embedding"):
            return _floats(llama().llama_get_embeddings_seq(self.handle, sequence), (n_values,))

    def embeddings(self, n_outputs: int, width: int) -> NDArray[np.float32] | None:
        """The last batch's states, ``(n_outputs, width)``; None where they are pooled."""
        with rpc.watched("reading states"):
            return _floats(llama().llama_get_embeddings(self.handle), (n_outputs, width))

    def logits(self, n_outputs: int) -> NDArray[np.float32]:
        """The last batch's logits, ``(n_seq · n_outputs, vocabulary)``: a view, good until decode.

        The rows of one sequence stand behind those of the other.
        """
        with rpc.watched("reading logits"):
            pointer = llama().llama_get_logits(self.handle)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if address is None:
            raise EngineError(f"{self.model.path}: llama.cpp gives no logits")
        shape = (self.n_seq * n_outputs, self.model.n_vocab)
        raw = (ctypes.c_float * (shape[0] * shape[1])).from_address(address)
        return np.ctypeslib.as_array(raw).reshape(shape)


def _floats(pointer: Any, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """A copy of llama.cpp's numbers at a pointer; None where it is null."""
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    if address is None:
        return None
    raw = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.ctypeslib.as_array(raw).reshape(shape).copy()


def _overrides(settings: Mapping[str, Setting]) -> Any:
    """An array of ``struct llama_model_kv_override``, closed by an empty key (``llama.h``)."""
    lib = llama()
    array = (lib.llama_model_kv_override * (len(settings) + 1))()
    for entry, (key, value) in zip(array, settings.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, bool):
            entry.tag, entry.value.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, int):
            entry.tag, entry.value.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            entry.tag, entry.value.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    return array


_WKV7 = ("rwkv7", "arwkv7")
WKV7_STEP = 64
"""Values that ``ggml_compute_forward_rwkv_wkv7_f32`` (``ggml/src/ggml-cpu/ops.cpp``) reads and
writes at once with AVX-512 (``GGML_F32_STEP``), whatever is left of a head; CUDA asserts it."""


FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
"""``enum llama_flash_attn_type`` in ``llama.h``."""


def _cache_type(name: CacheType) -> int:
    from ggufnorm.formats.gguf_constants import GGMLQuantizationType

    return int(GGMLQuantizationType[name.upper()])
