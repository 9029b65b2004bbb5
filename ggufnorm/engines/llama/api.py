"""llama.h's functions of any build of llama.cpp, by ctypes alone.

It stands in for the module ``llama_cpp``, and has those of its names that are used here. A
function that a build lacks fails when it is called, so that an older build does all else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ggufnorm.engines.llama.layouts import Layout, find_header, verified_layout
from ggufnorm.errors import EngineMissingError, NoQuantizerError
from ggufnorm.formats.ggml import Handles
from ggufnorm.formats.llama_libraries import LlamaLibraries

_P, _T = ctypes.c_void_p, ctypes.c_char_p
_I, _U, _B, _S = ctypes.c_int32, ctypes.c_uint32, ctypes.c_bool, ctypes.c_size_t
_FLOATS = ctypes.POINTER(ctypes.c_float)


class Batch(ctypes.Structure):
    """``struct llama_batch`` of ``llama.h``."""

    _fields_ = (
        ("n_tokens", _I),
        ("token", ctypes.POINTER(_I)),
        ("embd", _FLOATS),
        ("pos", ctypes.POINTER(_I)),
        ("n_seq_id", ctypes.POINTER(_I)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_I))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class _Value(ctypes.Union):
    _fields_ = (
        ("val_i64", ctypes.c_int64),
        ("val_f64", ctypes.c_double),
        ("val_bool", _B),
        ("val_str", ctypes.c_char * 128),
    )


class KvOverride(ctypes.Structure):
    """``struct llama_model_kv_override`` of ``llama.h``."""

    _fields_ = (("tag", ctypes.c_int), ("key", ctypes.c_char * 128), ("value", _Value))


class TensorOverride(ctypes.Structure):
    """``struct llama_model_tensor_override`` of ``llama.h``."""

    _fields_ = (("pattern", _T), ("type", ctypes.c_int))


class ImatrixData(ctypes.Structure):
    """``struct llama_model_imatrix_data`` of ``llama.h``."""

    _fields_ = (("name", _T), ("data", _FLOATS), ("size", _S))


# Name, result, arguments, as llama.h declares them.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_P, _P]),
    "llama_model_free": (None, [_P]),
    "llama_free": (None, [_P]),
    "llama_model_get_vocab": (_P, [_P]),
    "llama_vocab_n_tokens": (_I, [_P]),
    "llama_vocab_bos": (_I, [_P]),
    "llama_vocab_get_add_bos": (_B, [_P]),
    "llama_model_has_encoder": (_B, [_P]),
    "llama_model_has_decoder": (_B, [_P]),
    "llama_model_is_recurrent": (_B, [_P]),
    "llama_model_is_hybrid": (_B, [_P]),
    "llama_model_decoder_start_token": (_I, [_P]),
    "llama_model_n_cls_out": (_U, [_P]),
    "llama_model_n_embd": (_I, [_P]),
    "llama_model_meta_val_str": (_I, [_P, _T, _P, _S]),
    "llama_tokenize": (_I, [_P, _T, _I, _P, _I, _B, _B]),
    "llama_token_to_piece": (_I, [_P, _I, _P, _I, _I, _B]),
    "llama_batch_init": (Batch, [_I, _I, _I]),
    "llama_batch_free": (None, [Batch]),
    "llama_get_memory": (_P, [_P]),
    "llama_memory_clear": (None, [_P, _B]),
    "llama_decode": (_I, [_P, Batch]),
    "llama_encode": (_I, [_P, Batch]),
    "llama_get_logits": (_FLOATS, [_P]),
    "llama_get_embeddings": (_FLOATS, [_P]),
    "llama_get_embeddings_seq": (_FLOATS, [_P, _I]),
    "llama_n_ctx": (_U, [_P]),
    "llama_n_batch": (_U, [_P]),
    "llama_n_ubatch": (_U, [_P]),
    "llama_n_seq_max": (_U, [_P]),
    "llama_n_threads": (_I, [_P]),
    "llama_max_devices": (_S, []),
    "llama_supports_gpu_offload": (_B, []),
    "llama_version": (_T, []),
}

_BEFORE: dict[str, Callable[..., Any]] = {
    # No build without this function has a hybrid model.
    "llama_model_is_hybrid": lambda _model: False,
}
"""What takes the place of functions that older builds lack."""


class Api:
    """A build of llama.cpp under the names of the module ``llama_cpp``.

    Args:
        libraries: of the build.

    Attributes:
        layouts: the verified structures by name.

    Raises:
        EngineMissingError: it does not load, or lays out its parameters in an unknown way.
    """

    ggml_backend_sched_eval_callback = ctypes.CFUNCTYPE(_B, _P, _B, _P)
    llama_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, _T, _P)
    llama_model_kv_override = KvOverride
    llama_model_tensor_override = TensorOverride
    llama_model_imatrix_data = ImatrixData
    LLAMA_KV_OVERRIDE_TYPE_INT, LLAMA_KV_OVERRIDE_TYPE_FLOAT = 0, 1
    LLAMA_KV_OVERRIDE_TYPE_BOOL, LLAMA_KV_OVERRIDE_TYPE_STR = 2, 3

    def __init__(self, libraries: LlamaLibraries) -> None:
        self.libraries = libraries
        self.handles = Handles(libraries)
        self._load_backends(libraries.folder)
        header = find_header(libraries.llama)
        self.layouts = {
            name: self._layout(name, header)
            for name in ("llama_model_params", "llama_context_params")
        }
        model, context = (layout.struct for layout in self.layouts.values())
        self.llama_model_default_params = self._function("llama_model_default_params", model, [])
        self.llama_context_default_params = self._function(
            "llama_context_default_params", context, []
        )
        self.llama_model_load_from_file = self._function(
            "llama_model_load_from_file", _P, [_T, model]
        )
        self.llama_init_from_model = self._function("llama_init_from_model", _P, [_P, context])

    def __getattr__(self, name: str) -> Any:
        if name not in _FUNCTIONS:
            raise AttributeError(name)
        found = self._function(name, *_FUNCTIONS[name])
        self.__dict__[name] = found
        return found

    def llama_model_quantize_default_params(self) -> Any:
        """As llama.h has it.

        Raises:
            NoQuantizerError: this build does not quantize.
            EngineMissingError: it does in an unknown way.
        """
        struct = self._quantize_layout().struct
        return self._function("llama_model_quantize_default_params", struct, [])()

    def llama_model_quantize(self, source: bytes, target: bytes, params: Any) -> int:
        """As llama.h has it; the parameters themselves, or a pointer to them."""
        call = self._function("llama_model_quantize", _U, [_T, _T, _P])
        pointer = ctypes.byref(params) if isinstance(params, ctypes.Structure) else params
        return int(call(source, target, pointer))

    def _quantize_layout(self) -> Layout:
        name = "llama_model_quantize_params"
        if not hasattr(self.handles, "llama_model_quantize"):
            raise NoQuantizerError(
                f"the llama.cpp of {self.libraries.llama.name} ({self.libraries.origin}) does not"
                " quantize: use llama-cpp-python or another build (ggufnorm engine get cpu)"
            )
        if name not in self.layouts:
            layout = self._layout(name, None)  # the known one alone: the imatrix's meaning changed
            self.layouts[name] = layout
        return self.layouts[name]

    def _layout(self, name: str, header: Path | None) -> Layout:
        function = name.removesuffix("_params") + "_default_params"

        def default(struct: type[ctypes.Structure]) -> Any:
            return self._function(function, struct, [])()

        return verified_layout(name, header, default)

    def _function(self, name: str, result: Any, arguments: Sequence[Any]) -> Callable[..., Any]:
        return function_of(self.handles, name, result, arguments)

    def _load_backends(self, folder: Path) -> None:
        """Load backends that are plugins (``GGML_BACKEND_DL``): they lie beside libllama."""
        count = self._function("ggml_backend_dev_count", _S, [])
        if count() == 0:
            load = self._function("ggml_backend_load_all_from_path", None, [_T])
            load(str(folder).encode())
        if count() == 0:
            raise EngineMissingError(
                f"the llama.cpp in {folder} has no backend that runs on this machine"
            )


def function_of(
    handles: Any, name: str, result: Any, arguments: Sequence[Any]
) -> Callable[..., Any]:
    """A function of a shared library; where it lacks it, one that fails when it is called.

    Args:
        handles: whose attributes are the library's functions.
        name: of the function.
        result: its type.
        arguments: theirs.
    """
    try:
        address = ctypes.cast(getattr(handles, name), _P).value
    except AttributeError:
        return _BEFORE.get(name) or partial(_fail, name)
    assert address is not None
    # A prototype of its own: the same function may be called with several structures.
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def _fail(name: str, *_arguments: Any) -> Any:
    raise EngineMissingError(
        f"this llama.cpp lacks {name}: use another release (ggufnorm doctor shows which one runs)"
    )
