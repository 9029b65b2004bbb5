"""Arrays that a user's own pipeline wrote down."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError


def read_numbers(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array of a ``.npy`` file, of any shape and any type of real number.

    Raises:
        InputError: the file cannot be read, or holds no array of numbers.
    """
    name = os.fspath(path)
    try:
        values = np.load(name, allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{name} is no .npy file: {' '.join(str(error).split())}") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise InputError(f"{name}: an array of numbers is needed, as numpy.save writes it")
    return values
