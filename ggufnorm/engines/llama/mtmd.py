"""Encoders of pictures and of sounds in mtmd, and what it feeds them.

mtmd prepares the input, and the encoder's graph begins with the leaf ``inp_raw``
(``clip_graph::build_inp_raw`` in ``tools/mtmd/clip.cpp``). It can be read before the graph's
first node is computed, and the graph left there: then the encoder does not run.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.llama.api import Api
from ggufnorm.engines.llama.binding import NodeView, build, llama, read_node
from ggufnorm.engines.llama.session import FLASH_ATTENTION, EvalCallback
from ggufnorm.errors import EngineError, EngineMissingError

Input = NDArray[np.float32]
MakeBitmap = Callable[[Any, Any], int]
"""``(mtmd, context) -> bitmap``; raises InputError if the context's encoder takes none such."""

_LEAF = "inp_raw"


@dataclass(frozen=True)
class InputJob:
    """A picture or a sound, and the encoder whose input is wanted.

    Attributes:
        mmproj: the encoder's file, on this machine.
        given: levels ``(height, width, 3)``, or samples.
        rate: of a sound's samples, in Hz.
    """

    mmproj: str
    given: NDArray[Any]
    rate: int = 0


@dataclass(frozen=True)
class Inputs:
    """What the encoder is fed.

    Attributes:
        runs: one array per run of the encoder, ``(batch, channels, height, width)``; of a
            sound the height is mel bins and the width frames.
    """

    runs: tuple[Input, ...]


def capture_inputs(mmproj: str, make_bitmap: MakeBitmap) -> Inputs:
    """What mtmd makes of a picture or a sound.

    Raises:
        EngineMissingError: llama-cpp-python lacks mtmd.
        EngineError: llama.cpp does not load the file, or fails with it.
    """
    capture = _Capture()
    with Encoder(mmproj, capture.on_eval) as encoder:
        for chunk in encoder.cut(make_bitmap):
            encoder.encode(chunk)  # fails: its graph was left
            if capture.error is not None:
                raise capture.error
    if not capture.runs:
        raise EngineError(f"{mmproj}: no graph of llama.cpp's reads {_LEAF}")
    return Inputs(tuple(capture.runs))


class _Capture:
    """Keeps the input of every graph, and stops each at its first node."""

    def __init__(self) -> None:
        self.runs: list[Input] = []
        self.error: BaseException | None = None

    def on_eval(self, tensor: int, ask: bool) -> bool:
        """See ``ggml_backend_sched_eval_callback``: False after a node ends the graph."""
        if not ask:
            return False
        try:
            leaf = input_leaf(tensor)
            if leaf is not None:
                self.runs.append(read_node(leaf))
            return leaf is not None
        except BaseException as error:  # ctypes would swallow it
            self.error = error
            return True


def input_leaf(node: int) -> int | None:
    """Address of the leaf with the encoder's input, if the node at that address reads it."""
    sources = NodeView.at(node).sources
    return next((s for s in sources if NodeView.at(s).name == _LEAF), None)


class Encoder:
    """An encoder in mtmd on the CPU, without flash attention. A context manager.

    No language model is needed: a vocabulary of bytes stands in for it.

    Args:
        mmproj: the encoder's file.
        on_eval: called at every node of its graphs.
        n_threads: CPU threads; None for all.

    Raises:
        EngineMissingError: llama-cpp-python is not installed, or lacks mtmd.
        EngineError: llama.cpp does not load the file.
    """

    def __init__(self, mmproj: str, on_eval: EvalCallback, n_threads: int | None = None) -> None:
        lib = llama()
        self._path = mmproj
        self._mtmd = _mtmd()
        # Kept here: ctypes does not keep a callback alive.
        self._callback = lib.ggml_backend_sched_eval_callback(
            lambda tensor, ask, _data: on_eval(tensor, ask)
        )
        with ExitStack() as stack:
            params = lib.llama_model_default_params()
            params.vocab_only = True
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ggufnorm-")))
            model = lib.llama_model_load_from_file(os.fsencode(_vocabulary(folder)), params)
            stack.callback(lib.llama_model_free, model)
            self._context = self._open(model, n_threads or os.cpu_count() or 1)
            stack.callback(self._mtmd.mtmd_free, self._context)
            self._stack = stack.pop_all()

    def _open(self, model: int, n_threads: int) -> Any:
        params = self._mtmd.mtmd_context_params_default()
        params.use_gpu = params.warmup = params.print_timings = False
        params.n_threads = n_threads
        params.flash_attn_type = FLASH_ATTENTION["off"]  # it would round keys and values to F16
        params.cb_eval = self._callback
        context = self._mtmd.mtmd_init_from_file(os.fsencode(self._path), model, params)
        if not context:
            raise EngineError(
                f"llama.cpp cannot load {self._path} as an image encoder or an audio encoder"
            )
        return context

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def cut(self, make_bitmap: MakeBitmap) -> list[int]:
        """Make of a picture or a sound what the encoder takes.

        Returns:
            Handles for :meth:`encode`, good until the encoder is closed: more than one where
            mtmd cuts a picture into tiles, or a long sound.

        Raises:
            InputError: the encoder takes none such.
            EngineError: mtmd fails.
        """
        mtmd, keep = self._mtmd, self._stack.callback
        bitmap = make_bitmap(mtmd, self._context)
        keep(mtmd.mtmd_bitmap_free, bitmap)
        chunks = mtmd.mtmd_input_chunks_init()
        keep(mtmd.mtmd_input_chunks_free, chunks)
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(marker, len(marker), False, True)
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        status = mtmd.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1)
        if status != 0:
            raise EngineError(f"{self._path}: mtmd_tokenize failed with status {status}")
        every = (
            mtmd.mtmd_input_chunks_get(chunks, i)
            for i in range(mtmd.mtmd_input_chunks_size(chunks))
        )
        text_type = mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT
        return [chunk for chunk in every if mtmd.mtmd_input_chunk_get_type(chunk) != text_type]

    def encode(self, chunk: int) -> bool:
        """Run the encoder; False if its graph failed or was left."""
        return bool(self._mtmd.mtmd_encode_chunk(self._context, chunk) == 0)


def _mtmd() -> Any:
    if isinstance(llama(), Api):
        raise EngineMissingError(
            f"encoders of images and sounds run in llama-cpp-python alone, and {build().name} was"
            " chosen: leave --llama-cpp, GGUFNORM_LLAMA_CPP and LLAMA_CPP_LIB_PATH out"
        )
    try:
        from llama_cpp import mtmd_cpp
    except (ImportError, OSError, RuntimeError, FileNotFoundError) as error:
        raise EngineMissingError(
            f"llama-cpp-python is installed without mtmd ({error}): install it again"
        ) from error
    return mtmd_cpp


def _vocabulary(folder: Path) -> Path:
    """A model of nothing but the vocabulary that mtmd cuts its markers into tokens with."""
    path = folder / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    special = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": gguf.TokenType.CONTROL,
               "</s>": gguf.TokenType.CONTROL}  # fmt: skip
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([*special.values(), *[gguf.TokenType.BYTE] * 256])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
