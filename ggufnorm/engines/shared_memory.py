"""Memory that a process and its child both map."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np

from ggufnorm.engines.base import Array


class SharedMemory:
    """Values of float32 that two processes see.

    On Linux it has no name in any file system, and is gone with the last of both. Elsewhere it
    is a temporary file, which its maker removes.

    Args:
        name: of the one to map, None to make one.

    Attributes:
        name: for the other process's command line.
        size: bytes that are mapped.
        descriptors: what the other process must inherit.
    """

    def __init__(self, name: str | None = None) -> None:
        self._own_file: str | None = None
        self.size = 0
        self._map: mmap.mmap | None = None
        if name is None:
            self._descriptor, self.name = self._make()
        else:
            kind, _, rest = name.partition(":")
            self._descriptor = int(rest) if kind == "fd" else os.open(rest, os.O_RDWR)
            self.name = name
        self.descriptors = (self._descriptor,) if self.name.startswith("fd:") else ()

    def _make(self) -> tuple[int, str]:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("ggufnorm")
            return descriptor, f"fd:{descriptor}"
        descriptor, path = tempfile.mkstemp(prefix="ggufnorm-")
        self._own_file = path
        return descriptor, f"file:{path}"

    def grow(self, n_bytes: int) -> None:
        """Map at least that much. Arrays of before stay good."""
        if n_bytes <= self.size:
            return
        if os.fstat(self._descriptor).st_size < n_bytes:
            os.ftruncate(self._descriptor, n_bytes)
        # The former map is left to its arrays.
        self._map, self.size = mmap.mmap(self._descriptor, n_bytes), n_bytes

    def array(self, shape: tuple[int, ...]) -> Array:
        """The values from the start on, to be read and written."""
        count = int(np.prod(shape))
        self.grow(max(4 * count, mmap.PAGESIZE))
        assert self._map is not None
        return np.frombuffer(self._map, np.float32, count).reshape(shape)

    def close(self) -> None:
        """Give up the descriptor; what arrays still show goes with them."""
        self._map = None
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        if self._own_file is not None:
            with contextlib.suppress(OSError):
                Path(self._own_file).unlink()
