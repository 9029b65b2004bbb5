"""ggml's own conversion of tensor data to float32, where llama.cpp is installed.

``to_float`` is reached through ``ggml_get_type_traits``, whose structure is mirrored here
and compared with what ggml says of each type through its functions; where they do not
agree nothing is offered. The library is opened by itself when the first quantized tensor is
read, because ``import llama_cpp`` takes longer.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import EngineMissingError
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ggufnorm.formats.llama_libraries import LlamaLibraries, chosen_libraries

Convert = Callable[[NDArray[np.uint8], NDArray[np.float32]], None]
"""Fills the second array with the values of the first. Other threads run meanwhile."""

Quantize = Callable[[NDArray[np.float32]], NDArray[np.uint8]]
"""Rows of values to their raw blocks. Other threads run meanwhile."""

_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Handles:
    """The shared libraries of one build: a function is looked up in each in turn.

    On POSIX libllama alone is opened, because looking up in it reaches the very ggml that it
    uses. A second copy would have a registry of backends of its own.
    """

    def __init__(self, libraries: LlamaLibraries) -> None:
        paths = [libraries.llama]
        if sys.platform == "win32":  # GetProcAddress does not follow dependencies
            paths += libraries.others()
        try:
            self._libraries = [ctypes.CDLL(str(path)) for path in paths]
        except OSError as error:
            raise EngineMissingError(f"{libraries.llama} does not load: {error}") from None

    def __getattr__(self, name: str) -> Any:
        for library in self._libraries:
            try:
                found = getattr(library, name)
            except AttributeError:
                continue
            self.__dict__[name] = found
            return found
        raise AttributeError(name)


class _TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits`` of ``ggml/include/ggml.h``."""

    _fields_ = (
        ("type_name", ctypes.c_void_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


def type_number(name: str) -> int:
    """Ggml's number of a type.

    Raises:
        KeyError: gguf-py does not know it.
    """
    return int(GGMLQuantizationType[name])


def block_size(name: str) -> int:
    """Values to a block of a type; 1 of one that has none.

    Raises:
        KeyError: gguf-py does not know it.
    """
    return int(GGML_QUANT_SIZES[GGMLQuantizationType[name]][0])


@cache
def converter(ggml_type: int) -> Convert | None:
    """Ggml's conversion of a type to float32; None where there is none to be trusted.

    Args:
        ggml_type: ggml's number of the type, one that gguf-py has, too.

    Returns:
        A function of raw blocks and of the array for their values, both C-contiguous.
    """
    lib = _library()
    if lib is None or not _agrees(lib, ggml_type):
        return None
    traits = _traits(lib, ggml_type)
    if not traits.to_float:
        return None
    to_float = _TO_FLOAT(traits.to_float)
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)]

    def convert(raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        if raw.nbytes * block != out.size * block_bytes:
            raise ValueError(f"{raw.nbytes} bytes do not hold {out.size} values")
        if not (raw.flags.c_contiguous and out.flags.c_contiguous):
            raise ValueError("the arrays must be C-contiguous")
        to_float(raw.ctypes.data, out.ctypes.data, out.size)

    return convert


@cache
def converter_address(ggml_type: int) -> int | None:
    """Where the function behind a :func:`converter` lies, for loops in C."""
    return None if converter(ggml_type) is None else _traits(_library(), ggml_type).to_float


@cache
def half_converter() -> Convert | None:
    """Ggml's conversion of halves by the processor's own instruction; None where it has none.

    Signalling NaNs become quiet ones, in which it differs from NumPy; from the conversion of
    ``to_float``, which is no faster than NumPy's, in nothing.
    """
    try:
        function = _handles().ggml_cpu_fp16_to_fp32  # ggml/include/ggml-cpu.h
    except (OSError, AttributeError):  # in a build that loads its backends, say
        return None
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]

    def convert(raw: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        if raw.nbytes != 2 * out.size or not (raw.flags.c_contiguous and out.flags.c_contiguous):
            raise ValueError(f"{raw.nbytes} bytes for {out.size} values, or not C-contiguous")
        function(raw.ctypes.data, out.ctypes.data, out.size)

    halves = np.arange(1 << 16, dtype=np.uint16)
    found, expected = np.empty(1 << 16, np.float32), halves.view(np.float16).astype(np.float32)
    convert(halves.view(np.uint8), found)
    finite = np.isfinite(expected)
    agrees = np.array_equal(found[finite].view(np.uint32), expected[finite].view(np.uint32))
    return convert if agrees and not np.isfinite(found[~finite]).any() else None


@cache
def quantizer(ggml_type: int) -> Quantize | None:
    """Ggml's own quantization; None where there is none to be trusted.

    Args:
        ggml_type: ggml's number of the type, one that gguf-py has, too.

    Returns:
        A function of rows of finite float32 that gives their raw blocks, ``(rows, bytes)``.
        The importance of all columns is the same (``ggml_quantize_chunk`` in
        ``ggml/src/ggml.c``).
    """
    kind = GGMLQuantizationType(ggml_type)
    if not _can_make(ggml_type) or kind.name not in _QUANTIZABLE:
        return None

    def quantize(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        if not np.isfinite(rows).all():
            raise ValueError("the values must be finite")
        alike = np.ones(rows.shape[1], np.float32) if kind.name in _WEIGHTED else None
        return _blocks(ggml_type, rows, alike)

    return quantize


def can_quantize() -> bool:
    """Whether ggml's quantization can be had here."""
    return _library() is not None and _quantize_chunk() is not None


def version() -> str | None:
    """Which ggml it is, for a report, by its own account; None where there is none."""
    lib = _library()
    libraries = chosen_libraries()
    if lib is None or libraries is None:
        return None
    said = []
    for name in ("ggml_version", "ggml_commit"):
        function = getattr(lib, name)
        function.restype = ctypes.c_char_p
        said.append(function().decode())
    return "ggml {} ({}) of {}".format(*said, libraries.origin.lstrip("-"))


def quantized(
    ggml_type: int, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8] | None:
    """Rows as llama-quantize stores them; None where ggml cannot make the type here.

    Args:
        ggml_type: ggml's number of the type, one that gguf-py has, too.
        rows: ``(n, columns)``, finite.
        importance: a weight for each column, None for none: then types that need one cannot be
            made, as llama-quantize refuses them.

    Returns:
        Raw bytes, ``(n, bytes of a row)``.

    Raises:
        ValueError: rows do not hold whole blocks, or a type needs an importance matrix.
    """
    if not _can_make(ggml_type):
        return None
    kind = GGMLQuantizationType(ggml_type)
    if kind.name in _WEIGHTED and importance is None:
        raise ValueError(f"{kind.name} needs an importance matrix: give the one it was made with")
    return _blocks(ggml_type, rows, importance)


def _can_make(ggml_type: int) -> bool:
    """Whether ggml is here, knows how to make the type, and agrees with gguf-py on it."""
    lib, name = _library(), GGMLQuantizationType(ggml_type).name
    known = name in _QUANTIZABLE | _FLOATS and _quantize_chunk() is not None
    return lib is not None and known and _agrees(lib, ggml_type)


def _blocks(
    ggml_type: int, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """Rows as raw bytes, of a type that :func:`_can_make`.

    Raises:
        ValueError: rows do not hold whole blocks, or there is not a weight for each column.
    """
    chunk = _quantize_chunk()
    assert chunk is not None
    n, columns = rows.shape
    block = GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)][0]
    if columns % block:
        raise ValueError(f"rows of {columns} values do not hold blocks of {block}")
    if importance is not None and importance.shape != (columns,):
        raise ValueError(f"{importance.size} weights for rows of {columns} values")
    values = np.ascontiguousarray(rows, np.float32)
    out = np.empty((n, _library().ggml_row_size(ggml_type, columns)), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    where = None if weights is None else weights.ctypes.data
    chunk(ggml_type, values.ctypes.data, out.ctypes.data, 0, n, columns, where)
    return out


_FLOATS = frozenset(("F32", "F16", "BF16"))
_QUANTIZABLE = frozenset(
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0",
     "TQ2_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL",
     "IQ4_XS", "MXFP4", "NVFP4")
)  # fmt: skip
"""Types that ``ggml_quantize_chunk`` knows: of any other it ends the process."""

_WEIGHTED = frozenset(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"))
"""Types that need an importance of the columns (``ggml_quantize_requires_imatrix``)."""


def _quantize_chunk() -> Callable[..., int] | None:
    """``ggml_quantize_chunk`` of the ggml that is open."""
    try:
        function = _handles().ggml_quantize_chunk
    except (OSError, AttributeError):
        return None
    number, pointer, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    function.restype = ctypes.c_size_t
    function.argtypes = [number, pointer, pointer, count, count, count, pointer]
    found: Callable[..., int] = function
    return found


_LOADED: list[Any] = []


def use_loaded(handles: Any) -> None:
    """Reach ggml through a llama.cpp that this process has loaded.

    Args:
        handles: whose attributes are ggml's functions.
    """
    _LOADED.append(handles)


def _handles() -> Any:
    """Whose attributes are the functions of ggml, of the one copy that a process may hold.

    Raises:
        OSError: there is no llama.cpp, or it does not load.
    """
    if _LOADED:
        return _LOADED[0]
    try:
        libraries = chosen_libraries()
        if libraries is None:
            raise OSError("there is no llama.cpp")
        # Not libggml: libllama may load another file of that name: there would be two copies.
        _LOADED.append(Handles(libraries))
    except EngineMissingError as error:
        raise OSError(str(error)) from None
    return _LOADED[0]


@cache
def _library() -> Any:
    """The chosen llama.cpp's ggml, None where there is none or its layout is unknown."""
    number, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    try:
        lib = _handles()
        for name, result, arguments in (
            ("ggml_get_type_traits", pointer, [number]),
            ("ggml_validate_row_data", ctypes.c_bool, [number, pointer, size]),
            ("ggml_type_name", pointer, [number]),
            ("ggml_blck_size", ctypes.c_int64, [number]),
            ("ggml_type_size", size, [number]),
            ("ggml_row_size", size, [number, ctypes.c_int64]),
            ("ggml_is_quantized", ctypes.c_bool, [number]),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return lib if _layout_holds(lib) else None


def _layout_holds(lib: Any) -> bool:
    """Whether the mirror has the structure's size, and ``to_float`` is where it should be."""
    f16, bf16 = GGMLQuantizationType.F16, GGMLQuantizationType.BF16
    stride = lib.ggml_get_type_traits(1) - lib.ggml_get_type_traits(0)
    known = (GGMLQuantizationType.F32, f16, GGMLQuantizationType.Q4_0, bf16)
    if stride != ctypes.sizeof(_TypeTraits) or not all(_agrees(lib, t) for t in known):
        return False
    # Its neighbour from_float_ref takes the same arguments: run it the safe way round.
    for ggml_type, one in ((f16, 0x3C00), (bf16, 0x3F80)):
        raw, out = np.array([one, 0], np.uint16), np.zeros(1, np.float32)
        to_float = _traits(lib, ggml_type).to_float
        if not to_float:
            return False
        _TO_FLOAT(to_float)(raw.ctypes.data, out.ctypes.data, 1)
        if out[0] != 1.0:
            return False
    return True


def _agrees(lib: Any, ggml_type: int) -> bool:
    """Whether mirror, ggml's functions and gguf-py's table say the same of a type."""
    if not lib.ggml_validate_row_data(ggml_type, None, 0):
        return False  # the one function that checks the number before it uses it
    t = _traits(lib, ggml_type)
    kind = GGMLQuantizationType(ggml_type)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    of_functions = (
        lib.ggml_type_name(ggml_type),
        lib.ggml_blck_size(ggml_type),
        lib.ggml_type_size(ggml_type),
        lib.ggml_is_quantized(ggml_type),
    )
    return (
        (t.type_name, t.blck_size, t.type_size, t.is_quantized) == of_functions
        and ctypes.string_at(t.type_name).decode().upper() == kind.name
        and (t.blck_size, t.type_size) == (block, block_bytes)
        and lib.ggml_row_size(ggml_type, 3 * block) == 3 * block_bytes
    )


def _traits(lib: Any, ggml_type: int) -> _TypeTraits:
    return _TypeTraits.from_address(lib.ggml_get_type_traits(ggml_type))
