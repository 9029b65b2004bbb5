"""What llama.cpp's own parser makes of GGUF files, told in JSON.

Run as a child process, since the C parser may abort: it reads one path per line from its
standard input and answers each with one line: null where ``gguf_init_from_file`` refuses
the file.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import numpy as np
from gguf import GGUFReader
from llama_cpp._ggml import libggml

STRING, ARRAY = 8, 9
WIDTHS = {int(k): np.dtype(scalar).itemsize for k, scalar in GGUFReader.gguf_scalar_to_np.items()}


class InitParams(ctypes.Structure):
    """``struct gguf_init_params`` in ``ggml/include/gguf.h``."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def function(name: str, result: Any, *arguments: Any) -> Any:
    found = getattr(libggml, name)
    found.restype, found.argtypes = result, arguments
    return found


CONTEXT, INDEX = ctypes.c_void_p, ctypes.c_int64
init = function("gguf_init_from_file", CONTEXT, ctypes.c_char_p, InitParams)
free = function("gguf_free", None, CONTEXT)
version = function("gguf_get_version", ctypes.c_uint32, CONTEXT)
alignment = function("gguf_get_alignment", ctypes.c_size_t, CONTEXT)
data_offset = function("gguf_get_data_offset", ctypes.c_size_t, CONTEXT)
n_kv = function("gguf_get_n_kv", ctypes.c_int64, CONTEXT)
key = function("gguf_get_key", ctypes.c_char_p, CONTEXT, INDEX)
kv_type = function("gguf_get_kv_type", ctypes.c_int, CONTEXT, INDEX)
array_type = function("gguf_get_arr_type", ctypes.c_int, CONTEXT, INDEX)
array_length = function("gguf_get_arr_n", ctypes.c_size_t, CONTEXT, INDEX)
array_data = function("gguf_get_arr_data", ctypes.c_void_p, CONTEXT, INDEX)
array_string = function("gguf_get_arr_str", ctypes.c_char_p, CONTEXT, INDEX, ctypes.c_size_t)
value_data = function("gguf_get_val_data", ctypes.c_void_p, CONTEXT, INDEX)
value_string = function("gguf_get_val_str", ctypes.c_char_p, CONTEXT, INDEX)
n_tensors = function("gguf_get_n_tensors", ctypes.c_int64, CONTEXT)
tensor_name = function("gguf_get_tensor_name", ctypes.c_char_p, CONTEXT, INDEX)
tensor_ne = function("gguf_get_tensor_ne", ctypes.POINTER(ctypes.c_int64 * 4), CONTEXT, INDEX)
tensor_type = function("gguf_get_tensor_type", ctypes.c_int, CONTEXT, INDEX)
tensor_offset = function("gguf_get_tensor_offset", ctypes.c_size_t, CONTEXT, INDEX)
tensor_size = function("gguf_get_tensor_size", ctypes.c_size_t, CONTEXT, INDEX)


def parse(path: str) -> dict[str, Any] | None:
    """All that the header holds; strings and values as the hexadecimal of their bytes."""
    context = init(path.encode(), InitParams(no_alloc=True, ctx=None))
    if not context:
        return None
    try:
        return {
            "version": version(context),
            "alignment": alignment(context),
            "data_offset": data_offset(context),
            "metadata": [[key(context, i).hex(), *value(context, i)] for i in range(n_kv(context))],
            "tensors": [tensor(context, i) for i in range(n_tensors(context))],
        }
    finally:
        free(context)


def value(context: int, i: int) -> tuple[int, int, list[str]]:
    """Type, type of the elements, and elements; one for a scalar."""
    kind = kv_type(context, i)
    if kind == ARRAY:
        element, n = array_type(context, i), array_length(context, i)
        if element == STRING:
            return kind, element, [array_string(context, i, j).hex() for j in range(n)]
        width = WIDTHS[element]
        raw = ctypes.string_at(array_data(context, i), n * width) if n else b""
        return kind, element, [raw[j : j + width].hex() for j in range(0, len(raw), width)]
    if kind == STRING:
        return kind, kind, [value_string(context, i).hex()]
    return kind, kind, [ctypes.string_at(value_data(context, i), WIDTHS[kind]).hex()]


def tensor(context: int, i: int) -> dict[str, Any]:
    return {
        "name": tensor_name(context, i).hex(),
        "ne": list(tensor_ne(context, i).contents),
        "type": tensor_type(context, i),
        "offset": tensor_offset(context, i),
        "n_bytes": tensor_size(context, i),
    }


def main() -> None:
    for line in sys.stdin:
        sys.stdout.write(json.dumps(parse(line.rstrip("\n"))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
