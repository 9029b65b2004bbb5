"""All ctypes: llama.cpp's functions, and a mirror of ``struct ggml_tensor``.

llama-cpp-python binds ``llama.h`` but not the tensor structure, through which alone a
graph node's operation, sources, parameters and data can be seen. So it is mirrored here,
and :func:`check_layout` compares the mirror with what ggml itself says of a tensor built
for the purpose. A layout that does not agree is refused: a wrong offset would give wrong
numbers without a word.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.engine import Build
from ggufnorm.engines.llama.api import Api, function_of
from ggufnorm.engines.llama.library import digest_of, mark_loaded
from ggufnorm.errors import EngineMissingError
from ggufnorm.formats.ggml import use_loaded
from ggufnorm.formats.llama_libraries import (
    MISSING,
    chosen_libraries,
)
from ggufnorm.formats.storage import in_parallel

INSTALL_HINT = 'pip install "ggufnorm[llama]" (it compiles llama.cpp: a C++ compiler is needed)'

# GGML_MAX_SRC, GGML_MAX_NAME and GGML_MAX_OP_PARAMS in ggml/include/ggml.h.
_MAX_SRC, _MAX_NAME, _MAX_OP_PARAMS = 10, 64, 64


class TensorStruct(ctypes.Structure):
    """``struct ggml_tensor`` of ``ggml/include/ggml.h``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_uint8 * _MAX_OP_PARAMS),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _MAX_SRC),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _MAX_NAME),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class _InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


@cache
def llama() -> Any:
    """llama.h's functions: the module ``llama_cpp``, or the same of another build.

    Which build that is, :func:`ggufnorm.formats.llama_libraries.chosen_libraries` says. One
    process has one; its layout is checked and its backends are started.

    Raises:
        EngineMissingError: there is none, it does not load, or its layout is not known.
    """
    libraries = chosen_libraries()
    if libraries is None:
        raise EngineMissingError(MISSING)
    mark_loaded(libraries)
    module = _binding() if libraries.origin == "llama-cpp-python" else Api(libraries)
    _ggml(module)
    check_layout()
    module.llama_backend_init()
    return module


def _binding() -> ModuleType:
    try:
        import llama_cpp
    except ImportError as error:
        raise EngineMissingError(f"llama-cpp-python cannot be imported: {error}") from error
    except (OSError, RuntimeError) as error:
        raise EngineMissingError(
            f"llama-cpp-python is installed but its library does not load ({error});"
            f" reinstall it: {INSTALL_HINT}"
        ) from error
    module: ModuleType = llama_cpp
    return module


def engine_version() -> str:
    """For reports: which release of llama-cpp-python or of llama.cpp runs."""
    return build().name


@cache
def build() -> Build:
    """The llama.cpp of this process."""
    module = llama()
    libraries = chosen_libraries()
    assert libraries is not None
    if not isinstance(module, Api):
        name, layout = f"llama-cpp-python {module.__version__}", "llama-cpp-python"
    else:
        layout = "; ".join(dict.fromkeys(x.source for x in module.layouts.values()))
        name = _release(module)
    return Build(
        name=name,
        library=str(libraries.llama),
        origin=libraries.origin,
        ggml=ggml_version(),
        digest=digest_of(libraries),
        layout=layout,
    )


def _release(module: Api) -> str:
    try:
        version = module.llama_version().decode()
    except EngineMissingError:
        # Before llama_version() there were build numbers, which no function tells.
        return f"llama.cpp ({module.libraries.llama.name}, {ggml_version()})"
    return f"llama.cpp {version} ({module.libraries.llama.name}, {ggml_version()})"


def ggml_version() -> str:
    """The version and commit that ggml was built from."""
    return f"ggml {ggml_text('ggml_version')} ({ggml_text('ggml_commit')})"


def ggml_text(function: str) -> str:
    """What a function without arguments says; a question mark where a build lacks it."""
    try:
        return str(getattr(ggml(), function)().decode())
    except EngineMissingError:
        return "?"


def devices() -> list[str]:
    """What this build of llama.cpp can compute on."""
    return [f"{name} ({description})" for name, description in _devices()]


def _devices() -> Iterator[tuple[str, str]]:
    lib = ggml()
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        name, description = (
            describe(device).decode()
            for describe in (lib.ggml_backend_dev_name, lib.ggml_backend_dev_description)
        )
        yield name, description


def ggml() -> Any:
    """The functions of ggml that are used here, of the ggml that libllama uses."""
    return _ggml(llama()) if not _LOADED else _LOADED[0]


_LOADED: list[Any] = []


def _ggml(module: Any) -> Any:
    # Not llama_cpp._ggml: a wheel holds libggml.so and libggml.so.0 as two files, so that one
    # would be a second copy, with a registry of backends that libllama does not see.
    handles = module.handles if isinstance(module, Api) else module.llama_cpp._lib
    if not _LOADED:
        _LOADED.append(_Ggml(handles))
        use_loaded(handles)
    return _LOADED[0]


_TENSOR, _SIZE, _TEXT, _ANY = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p
_GGML: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_load": (_ANY, [_TEXT]),
    "ggml_backend_register": (None, [_ANY]),
    "ggml_backend_reg_by_name": (_ANY, [_TEXT]),
    "ggml_backend_reg_get_proc_address": (_ANY, [_ANY, _TEXT]),
    "ggml_op_name": (_TEXT, [ctypes.c_int]),
    "ggml_type_name": (_TEXT, [ctypes.c_int]),
    "ggml_get_name": (_TEXT, [_TENSOR]),
    "ggml_nbytes": (_SIZE, [_TENSOR]),
    "ggml_init": (_ANY, [_InitParams]),
    "ggml_free": (None, [_ANY]),
    "ggml_new_tensor_4d": (_TENSOR, [_ANY, ctypes.c_int] + [ctypes.c_int64] * 4),
    "ggml_set_name": (_TENSOR, [_TENSOR, _TEXT]),
    "ggml_rms_norm": (_TENSOR, [_ANY, _TENSOR, ctypes.c_float]),
    "ggml_mul": (_TENSOR, [_ANY, _TENSOR, _TENSOR]),
    "ggml_view_1d": (_TENSOR, [_ANY, _TENSOR, ctypes.c_int64, _SIZE]),
    "ggml_tensor_overhead": (_SIZE, []),
    "ggml_get_data": (_ANY, [_TENSOR]),
    "ggml_backend_buffer_is_host": (ctypes.c_bool, [_ANY]),
    "ggml_backend_buffer_name": (_TEXT, [_ANY]),
    "ggml_backend_tensor_get": (None, [_TENSOR, _ANY, _SIZE, _SIZE]),
    "ggml_backend_tensor_set": (None, [_TENSOR, _ANY, _SIZE, _SIZE]),
    "ggml_version": (_TEXT, []),
    "ggml_commit": (_TEXT, []),
    "ggml_backend_dev_count": (_SIZE, []),
    "ggml_backend_dev_get": (_ANY, [_SIZE]),
    "ggml_backend_dev_by_name": (_ANY, [_TEXT]),
    "ggml_backend_dev_name": (_TEXT, [_ANY]),
    "ggml_backend_dev_description": (_TEXT, [_ANY]),
    "ggml_backend_dev_type": (ctypes.c_int, [_ANY]),
    "ggml_backend_dev_memory": (None, [_ANY, _ANY, _ANY]),
    "ggml_backend_dev_init": (_ANY, [_ANY, _TEXT]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [_ANY, _TENSOR]),
    "ggml_backend_dev_backend_reg": (_ANY, [_ANY]),
    "ggml_backend_free": (None, [_ANY]),
    "ggml_backend_graph_compute": (ctypes.c_int, [_ANY, _ANY]),
    "ggml_backend_buffer_get_type": (_ANY, [_ANY]),
    "ggml_backend_buffer_get_base": (_ANY, [_ANY]),
    "ggml_backend_buffer_free": (None, [_ANY]),
    "ggml_backend_buft_get_device": (_ANY, [_ANY]),
    "ggml_backend_buft_alloc_buffer": (_ANY, [_ANY, _SIZE]),
    "ggml_backend_buft_get_alignment": (_SIZE, [_ANY]),
    "ggml_backend_tensor_alloc": (ctypes.c_int, [_ANY, _TENSOR, _ANY]),
    "ggml_backend_tensor_copy": (None, [_TENSOR, _TENSOR]),
    "ggml_backend_view_init": (ctypes.c_int, [_TENSOR]),
    "ggml_graph_overhead_custom": (_SIZE, [_SIZE, ctypes.c_bool]),
    "ggml_new_graph_custom": (_ANY, [_ANY, _SIZE, ctypes.c_bool]),
    "ggml_build_forward_expand": (None, [_ANY, _TENSOR]),
    "ggml_sub": (_TENSOR, [_ANY, _TENSOR, _TENSOR]),
    "ggml_sqr": (_TENSOR, [_ANY, _TENSOR]),
    "ggml_abs": (_TENSOR, [_ANY, _TENSOR]),
    "ggml_sum_rows": (_TENSOR, [_ANY, _TENSOR]),
    "ggml_argmax": (_TENSOR, [_ANY, _TENSOR]),
    "ggml_get_rows": (_TENSOR, [_ANY, _TENSOR, _TENSOR]),
    "ggml_reshape_2d": (_TENSOR, [_ANY, _TENSOR, ctypes.c_int64, ctypes.c_int64]),
    "ggml_transpose": (_TENSOR, [_ANY, _TENSOR]),
    "ggml_cont": (_TENSOR, [_ANY, _TENSOR]),
    "ggml_cpy": (_TENSOR, [_ANY, _TENSOR, _TENSOR]),
    "ggml_backend_dev_buffer_type": (_ANY, [_ANY]),
    "ggml_backend_buft_name": (_TEXT, [_ANY]),
    "ggml_row_size": (_SIZE, [ctypes.c_int, ctypes.c_int64]),
    "ggml_quantize_chunk": (_SIZE, [ctypes.c_int, _ANY, _ANY] + [ctypes.c_int64] * 3 + [_ANY]),
}


class _Ggml:
    """Functions of ggml with their prototypes; one that a build lacks fails when called."""

    def __init__(self, handles: Any) -> None:
        self._handles = handles

    def __getattr__(self, name: str) -> Any:
        if name not in _GGML:
            raise AttributeError(name)
        found = function_of(self._handles, name, *_GGML[name])
        self.__dict__[name] = found
        return found


def check_layout() -> None:
    """Compare the mirror with ggml's own account of a few tensors.

    Raises:
        EngineMissingError: they disagree.
    """
    lib = ggml()
    dims, epsilon, name = (8, 3, 5, 2), 0.0009765625, b"ggufnorm layout check"
    ctx = lib.ggml_init(_InitParams(1 << 20, None, False))
    try:
        x = lib.ggml_new_tensor_4d(ctx, 0, *dims)
        lib.ggml_set_name(x, name)
        norm = lib.ggml_rms_norm(ctx, x, epsilon)
        product = lib.ggml_mul(ctx, norm, x)
        view = lib.ggml_view_1d(ctx, x, 4, 16)
        a, b, c, d = (TensorStruct.from_address(t) for t in (x, norm, product, view))
        facts = {
            "ne": tuple(a.ne) == dims,
            "nb": tuple(a.nb) == (4, 32, 96, 480),
            "name": a.name == name == lib.ggml_get_name(x),
            "data": a.data == lib.ggml_get_data(x),
            "size": lib.ggml_nbytes(x) == 480 * 2,
            "type": lib.ggml_type_name(a.type) == b"f32",
            "op": [lib.ggml_op_name(t.op) for t in (a, b, c, d)]
            == [b"NONE", b"RMS_NORM", b"MUL", b"VIEW"],
            "op_params": struct.unpack_from("f", bytes(b.op_params))[0] == epsilon,
            "src": list(c.src[:3]) == [norm, x, None],
            "view_src": (d.view_src, d.view_offs) == (x, 16),
            "overhead": ctypes.sizeof(TensorStruct)
            <= lib.ggml_tensor_overhead()
            <= ctypes.sizeof(TensorStruct) + 64,
        }
    finally:
        lib.ggml_free(ctx)
    wrong = [fact for fact, holds in facts.items() if not holds]
    if wrong:
        raise EngineMissingError(
            "this llama.cpp lays out ggml_tensor in a way that ggufnorm does not know"
            f" ({', '.join(wrong)} differ): {INSTALL_HINT}"
        )


@cache
def op_name(op: int) -> str:
    """Ggml's name of an operation, for example ``RMS_NORM``."""
    return str(ggml().ggml_op_name(op).decode())


@cache
def type_name(ggml_type: int) -> str:
    """Ggml's name of a type in upper case, for example ``F32`` or ``Q4_K``."""
    return str(ggml().ggml_type_name(ggml_type).decode()).upper()


@dataclass(frozen=True)
class NodeView:
    """What can be told of a graph node before it is computed.

    Attributes:
        address: of the structure; good within one graph.
        name: as llama.cpp labelled it, a scheduler's ``BACKEND#name#n`` taken off.
        op: ggml's name of the operation.
        dtype: ggml's name of its type.
        shape: ``ne`` without trailing ones.
        params: the raw bytes of ``op_params``.
        sources: addresses of its sources.
        flags: ``enum ggml_tensor_flag``.
        target: address of the tensor whose memory it writes to or shows, 0 for its own.
        number: ggml's of the operation.
    """

    address: int
    name: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    params: bytes
    sources: tuple[int, ...]
    flags: int
    target: int
    number: int

    @classmethod
    def at(cls, address: int) -> NodeView:
        """Read the structure at ``address``."""
        t = TensorStruct.from_address(address)
        name, _ = _own_name(t.name.decode(errors="replace"))
        shape = list(t.ne)
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        return cls(
            address=address,
            name=name,
            op=op_name(t.op),
            dtype=type_name(t.type),
            shape=tuple(shape),
            params=bytes(t.op_params),
            sources=tuple(s for s in t.src if s),
            flags=t.flags,
            target=t.view_src or 0,
            number=t.op,
        )


def set_op(address: int, number: int) -> None:
    """Have a node that was not computed yet do another operation: 0, ``NONE``, for none."""
    TensorStruct.from_address(address).op = number


_READABLE: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}


def is_readable(dtype: str) -> bool:
    """Whether :func:`read_node` takes values of that ggml type."""
    return dtype in _READABLE


def read_node(address: int) -> NDArray[np.float32]:
    """A copy of a just-computed node's values.

    Returns:
        float32 in NumPy's order, ``(ne[3], ne[2], ne[1], ne[0])``.
    """
    return _read(address, _READABLE[type_name(TensorStruct.from_address(address).type)], np.float32)


def view_node(address: int) -> NDArray[np.float32]:
    """A just-computed node's values where they lie, good until the graph goes on.

    Returns:
        As :func:`read_node`, read-only; a copy where they are not F32 in this computer's memory.
    """
    t = TensorStruct.from_address(address)
    if type_name(t.type) != "F32" or 0 in t.ne or not _is_host(t):
        return read_node(address)
    values = _strided(t, np.dtype(np.float32), (ctypes.c_uint8 * _span(t, 4)).from_address(t.data))
    values.flags.writeable = False
    return values


def read_integers(address: int) -> NDArray[np.int32]:
    """A copy of an I32 node's values, in the order of :func:`read_node`."""
    return _read(address, np.dtype(np.int32), np.int32)


def _read(address: int, dtype: np.dtype[Any], target: type[Any]) -> NDArray[Any]:
    t = TensorStruct.from_address(address)
    if 0 in t.ne:
        return np.empty(tuple(t.ne)[::-1], target)
    span = _span(t, dtype.itemsize)
    raw: Any
    if _is_host(t):
        raw = (ctypes.c_uint8 * span).from_address(t.data)
    else:
        raw = np.empty(span, np.uint8)
        ggml().ggml_backend_tensor_get(address, raw.ctypes.data, 0, span)
    return np.array(_strided(t, dtype, raw), dtype=target, order="C")


def shape_of(address: int) -> tuple[int, ...]:
    """A node's shape, ``(ne[3], ne[2], ne[1], ne[0])``."""
    return tuple(int(n) for n in TensorStruct.from_address(address).ne)[::-1]


def copy_node(source: int, target: int) -> None:
    """Copy a just-computed node's values over those of another, contiguous one of its size."""
    a, b = (TensorStruct.from_address(address) for address in (source, target))
    if a.type == b.type and tuple(a.ne) == tuple(b.ne) and is_contiguous(source):
        ggml().ggml_backend_tensor_copy(source, target)
    else:
        write_node(target, read_node(source))


def _span(t: TensorStruct, item_size: int) -> int:
    """Bytes from the first element to the end of the last."""
    return item_size + sum((int(n) - 1) * int(s) for n, s in zip(t.ne, t.nb, strict=True))


def _strided(t: TensorStruct, dtype: np.dtype[Any], raw: Any) -> NDArray[Any]:
    return np.ndarray(tuple(t.ne)[::-1], dtype, raw, strides=tuple(t.nb)[::-1])


def write_node(
    address: int, values: NDArray[np.float32], sequence: int = 0, n_seq: int = 1
) -> None:
    """Replace a just-computed F32 node's values: every later node reads the new ones.

    Args:
        address: of a contiguous F32 node.
        values: what :func:`read_node` gave for the same node of another context.
        sequence: where several sequences run side by side, the one whose values these are.
        n_seq: how many run; the tokens of one lie behind those of the other.
    """
    t, data, start = _part_of(address, values, sequence, n_seq)
    if _is_host(t):
        ctypes.memmove(t.data + start, data.ctypes.data, data.nbytes)
    else:
        ggml().ggml_backend_tensor_set(address, data.ctypes.data, start, data.nbytes)


def write_with_gaps(address: int, values: NDArray[np.float32]) -> None:
    """Replace the values of an F32 node that has gaps in memory, as the view of a part has.

    Args:
        address: of a node; on another device than the CPU it stays as it is.
        values: what :func:`read_node` gave for the same node of another context.
    """
    t = TensorStruct.from_address(address)
    if type_name(t.type) == "F32" and 0 not in t.ne and _is_host(t):
        raw = (ctypes.c_uint8 * _span(t, 4)).from_address(t.data)
        _strided(t, np.dtype(np.float32), raw)[...] = values.reshape(tuple(t.ne)[::-1])


def add_to_node(
    address: int, values: NDArray[np.float32], sequence: int = 0, n_seq: int = 1
) -> None:
    """Add to a just-computed F32 node's values; the arguments are those of :func:`write_node`."""
    t, data, start = _part_of(address, values, sequence, n_seq)
    if _is_host(t):
        raw: Any = (ctypes.c_uint8 * data.nbytes).from_address(t.data + start)
        there: NDArray[np.float32] = np.ndarray(data.shape, np.float32, raw)
        there += data
    else:
        held = np.empty_like(data)
        ggml().ggml_backend_tensor_get(address, held.ctypes.data, start, held.nbytes)
        held += data
        ggml().ggml_backend_tensor_set(address, held.ctypes.data, start, held.nbytes)


def _part_of(
    address: int, values: NDArray[np.float32], sequence: int, n_seq: int
) -> tuple[TensorStruct, NDArray[np.float32], int]:
    """A node, the values as ggml lays them out, and where in the node they begin."""
    data = np.ascontiguousarray(values, dtype=np.float32)
    if data.nbytes * n_seq != ggml().ggml_nbytes(address):
        raise ValueError("a node is changed by values of its own size only")
    return TensorStruct.from_address(address), data, sequence * data.nbytes


def tensor_context(n_bytes: int) -> int:
    """A context of ggml's for structures alone; their data is allocated by whoever makes them."""
    context: int = ggml().ggml_init(_InitParams(n_bytes, None, True))
    return context


def is_host(address: int) -> bool:
    """Whether a node's values lie in memory that this process reads."""
    return _is_host(TensorStruct.from_address(address))


def _is_host(t: TensorStruct) -> bool:
    buffer = buffer_of(t)
    return buffer is None or bool(ggml().ggml_backend_buffer_is_host(buffer))


def buffer_of(t: TensorStruct) -> int | None:
    """The buffer that holds a tensor's data, or that of the tensor it shows."""
    view = TensorStruct.from_address(t.view_src) if t.view_src else None
    return t.buffer or (view.buffer if view else None)


def buffer_names(addresses: Iterable[int]) -> tuple[str, ...]:
    """Names of the buffers that tensors lie in, in order of appearance: ``CPU``, ``Vulkan0``."""
    tensors = (TensorStruct.from_address(address) for address in addresses)
    buffers = dict.fromkeys(b for b in map(buffer_of, tensors) if b is not None)
    return tuple(dict.fromkeys(ggml().ggml_backend_buffer_name(b).decode() for b in buffers))


def weights_by_buffer(addresses: Iterable[int], names: Container[str]) -> dict[str, int]:
    """Names of the buffers that weights are read from, and the bytes of them in each.

    A weight that the scheduler copies to another device for each batch counts there, as
    ``Vulkan0 (copied)``.

    Args:
        addresses: of nodes of a graph that still exists.
        names: of the file's tensors; each counts once.
    """
    lib, found, seen = ggml(), Counter[str](), set()
    for source in {s for a in addresses for s in TensorStruct.from_address(a).src if s}:
        t = TensorStruct.from_address(source)
        name, is_copy = _own_name(t.name.decode(errors="replace"))
        if name in names and name not in seen and t.buffer:
            seen.add(name)
            where = lib.ggml_backend_buffer_name(t.buffer).decode()
            found[f"{where} (copied)" if is_copy else where] += lib.ggml_nbytes(source)
    return dict(found)


def _own_name(name: str) -> tuple[str, bool]:
    """A tensor's name without what the scheduler puts around it, and whether it does.

    ``ggml_backend_sched_split_graph`` in ggml/src/ggml-backend.cpp names its copies
    ``BACKEND#name#n``.
    """
    parts = name.split("#")
    is_copy = len(parts) == 3 and parts[2].isdigit()
    return (parts[1], True) if is_copy else (name, False)


def is_contiguous(address: int) -> bool:
    """Whether a node's values lie without gaps in ggml's order."""
    t = TensorStruct.from_address(address)
    expected = _READABLE[type_name(t.type)].itemsize
    for n, stride in zip(t.ne, t.nb, strict=True):
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True


_QUANTIZED_AT_ONCE = 1 << 15
"""Values that one thread quantizes in one call, which takes it a few milliseconds."""


def quantize_rows(rows: NDArray[np.float32], ggml_type: int) -> NDArray[np.uint8]:
    """Quantize rows as llama-quantize does without an importance matrix, on all cores.

    Args:
        rows: ``(rows, columns)``; the columns divide into blocks of the type.
        ggml_type: ggml's number of the type.

    Returns:
        ``(rows, bytes of a row)``.

    Source: ``ggml_quantize_chunk`` in ``ggml/src/ggml.c``.
    """
    data = np.ascontiguousarray(rows, dtype=np.float32)
    n_rows, n_columns = data.shape
    out = np.empty((n_rows, ggml().ggml_row_size(ggml_type, n_columns)), np.uint8)
    # Some types insist on an importance matrix: an even one changes nothing.
    even = np.ones(n_columns, np.float32)

    def quantize(some: slice) -> None:
        ggml().ggml_quantize_chunk(
            ggml_type,
            data[some].ctypes.data,
            out[some].ctypes.data,
            0,
            len(data[some]),
            n_columns,
            even.ctypes.data,
        )

    step = max(1, _QUANTIZED_AT_ONCE // n_columns)
    parts = [slice(i, i + step) for i in range(0, n_rows, step)]
    in_parallel(quantize, parts, os.cpu_count() or 1)
    return out
