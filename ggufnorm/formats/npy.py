"""Arrays that a user's own pipeline wrote down."""

from __future__ import annotations

import math
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.files import open_regular

_MOST_BYTES = 1 << 31


def read_numbers(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array of a ``.npy`` file, of any shape and any type of real number.

    Raises:
        InputError: the file cannot be read, or holds no array of numbers.
    """
    name = os.fspath(path)
    try:
        with open_regular(name, _MOST_BYTES) as file:
            values = _read(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from None
    except (ValueError, EOFError, SyntaxError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{name} is no .npy file: {' '.join(str(error).split())}") from None
    if values is None:
        raise InputError(f"{name}: an array of numbers is needed, as numpy.save writes it")
    return values


def _read(file: BinaryIO, size: int) -> NDArray[Any] | None:
    """The array; None if it is not of numbers. NumPy itself believes whatever shape it reads."""
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"its version is {version}")
    shape, columns_first, dtype = read_header(file)
    if dtype.kind not in "fiu":
        return None
    n_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or n_bytes != size - file.tell():
        raise ValueError(f"it has {size - file.tell():,} bytes of data where {n_bytes:,} belong")
    data = file.read(n_bytes)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if columns_first else "C").copy()
