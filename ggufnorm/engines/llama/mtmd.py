"""What mtmd feeds an encoder of pictures or of sounds, captured before it is run.

mtmd prepares the input, and the encoder's graph begins with the leaf ``inp_raw``
(``clip_graph::build_inp_raw`` in ``tools/mtmd/clip.cpp``). It is read before the graph's
first node is computed, and the graph is left there: the encoder does not run.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.child import Task, run_in_child
from ggufnorm.engines.llama.binding import NodeView, llama, read_node
from ggufnorm.errors import EngineError, EngineMissingError

Input = NDArray[np.float32]
MakeBitmap = Callable[[Any, Any], int]
"""``(mtmd, context) -> bitmap``; raises InputError if the context's encoder takes none such."""

_LEAF = "inp_raw"


def inputs_in_child(
    task: Task, mmproj: str | os.PathLike[str], given: NDArray[Any], **more: Any
) -> list[Input]:
    """Run a task that calls :func:`save_inputs`, and give the arrays that it saved.

    Args:
        task: its job is the file ``mmproj`` and a ``folder`` that holds ``given.npy``.
        mmproj: the encoder's file, on this machine.
        given: a picture or a sound.
        more: is in the task's job, too.

    Raises:
        GgufnormError: whatever the task raised.
    """
    with tempfile.TemporaryDirectory(prefix="ggufnorm-") as name:
        folder = Path(name)
        np.save(folder / "given.npy", given)
        job = {"mmproj": os.fspath(mmproj), "folder": name, **more}
        found = run_in_child(task, job, lambda _message: None)["runs"]
        return [np.load(folder / file) for file in found]


def save_inputs(job: dict[str, Any], make_bitmap: MakeBitmap) -> dict[str, Any]:
    """The child's part of :func:`inputs_in_child`; the result names the arrays it saved.

    Each is of one run of the encoder, ``(batch, channels, height, width)``; of a sound the
    height is mel bins and the width frames.

    Raises:
        EngineMissingError: llama-cpp-python lacks mtmd.
        EngineError: llama.cpp does not load the file, or fails with it.
    """
    folder = Path(job["folder"])
    names = []
    for i, values in enumerate(_run(job["mmproj"], make_bitmap, folder)):
        names.append(f"run-{i}.npy")
        np.save(folder / names[-1], values)
    return {"runs": names}


class _Capture:
    """Keeps the input of every graph, and stops each at its first node."""

    def __init__(self) -> None:
        self.runs: list[Input] = []
        self.error: BaseException | None = None
        # Kept here: ctypes does not keep a callback alive.
        self.callback = llama().ggml_backend_sched_eval_callback(
            lambda tensor, ask, _data: self.on_eval(tensor, ask)
        )

    def on_eval(self, tensor: int, ask: bool) -> bool:
        """See ``ggml_backend_sched_eval_callback``: False after a node ends the graph."""
        if not ask:
            return False
        try:
            return self._look(tensor)
        except BaseException as error:  # ctypes would swallow it
            self.error = error
            return True

    def _look(self, tensor: int) -> bool:
        for source in NodeView.at(tensor).sources:
            if NodeView.at(source).name == _LEAF:
                self.runs.append(read_node(source))
                return True
        return False


def _run(mmproj: str, make_bitmap: MakeBitmap, folder: Path) -> list[Input]:
    lib, mtmd = llama(), _mtmd()
    capture = _Capture()
    with ExitStack() as stack:
        params = lib.llama_model_default_params()
        params.vocab_only = True
        model = lib.llama_model_load_from_file(os.fsencode(_vocabulary(folder)), params)
        stack.callback(lib.llama_model_free, model)
        context = _context(mmproj, model, capture)
        stack.callback(mtmd.mtmd_free, context)
        bitmap = make_bitmap(mtmd, context)
        stack.callback(mtmd.mtmd_bitmap_free, bitmap)
        chunks = mtmd.mtmd_input_chunks_init()
        stack.callback(mtmd.mtmd_input_chunks_free, chunks)
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(marker, len(marker), False, True)
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        status = mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1)
        if status != 0:
            raise EngineError(f"{mmproj}: mtmd_tokenize failed with status {status}")
        for chunk in _encoded(mtmd, chunks):
            mtmd.mtmd_encode_chunk(context, chunk)  # fails: its graph was left
            if capture.error is not None:
                raise capture.error
    if not capture.runs:
        raise EngineError(f"{mmproj}: no graph of llama.cpp's reads {_LEAF}")
    return capture.runs


def _encoded(mtmd: Any, chunks: Any) -> Iterator[Any]:
    """The chunks that are for an encoder."""
    for i in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, i)
        if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            yield chunk


def _mtmd() -> Any:
    try:
        from llama_cpp import mtmd_cpp
    except (ImportError, OSError, RuntimeError, FileNotFoundError) as error:
        raise EngineMissingError(
            f"llama-cpp-python is installed without mtmd ({error}): install it again"
        ) from error
    return mtmd_cpp


def _context(mmproj: str, model: int, capture: _Capture) -> Any:
    mtmd = _mtmd()
    params = mtmd.mtmd_context_params_default()
    params.use_gpu = params.warmup = params.print_timings = False
    params.n_threads = os.cpu_count() or 1
    params.cb_eval = capture.callback
    context = mtmd.mtmd_init_from_file(os.fsencode(mmproj), model, params)
    if not context:
        raise EngineError(f"llama.cpp cannot load {mmproj} as an image encoder or an audio encoder")
    return context


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
