"""Rows of activations in a temporary file, so that those of one norm at a time are in memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass
from io import FileIO

import numpy as np

from ggufnorm.core.observed import Array
from ggufnorm.errors import MemoryLimitError

_BINARY = os.O_RDWR | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Place:
    """Where an array lies in a :class:`RowFile`; crosses to another process.

    Attributes:
        offset: in bytes.
        shape: of the array.
    """

    offset: int
    shape: tuple[int, ...]


class RowFile:
    """Arrays of float32 in a file without a name, which a child process may write and read, too.

    What was written lies in the system's cache of files, which gives way where memory is needed,
    and on the disk of the folder for temporary files (``TMPDIR``). The system frees it with the
    last process that has the file open. Processes take turns: two that wrote at a time would
    write over each other.

    Args:
        name: of another process's file; None to make one.

    Attributes:
        name: for the other process.
        descriptors: what the other process must inherit.

    Raises:
        MemoryLimitError: there is no folder for temporary files.
    """

    def __init__(self, name: str | None = None) -> None:
        self.descriptors: tuple[int, ...] = ()
        if name is not None:
            kind, _, rest = name.partition(":")
            self._file = _open(os.dup(int(rest)) if kind == "fd" else os.open(rest, _BINARY))
            self.name = name
        else:
            self._make()
        weakref.finalize(self, self._file.close)

    def _make(self) -> None:
        try:
            if os.name == "posix":
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (the finalizer closes it)
                self.descriptors = (self._file.fileno(),)
                self.name = f"fd:{self._file.fileno()}"
                return
            descriptor, path = tempfile.mkstemp(prefix="ggufnorm-")
        except OSError as error:
            raise _no_room(error) from None
        # Finalizers run in the reverse order: the file is closed first.
        weakref.finalize(self, os.unlink, path)
        self._file, self.name = _open(descriptor), f"file:{path}"

    def put(self, values: Array) -> Place:
        """Write an array behind all others.

        Raises:
            MemoryLimitError: the disk is full.
        """
        array = np.ascontiguousarray(values, np.float32)
        offset = self._file.seek(0, os.SEEK_END)
        left = array.reshape(-1).view(np.uint8).data
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _no_room(error) from None
        return Place(offset, np.shape(values))

    def get(self, place: Place) -> Array:
        """Read an array."""
        values = np.empty(place.shape, np.float32)
        left = values.reshape(-1).view(np.uint8).data
        self._file.seek(place.offset)
        while left:
            n = self._file.readinto(left)
            if not n:
                raise EOFError(f"{place} is not in the file")
            left = left[n:]
        return values

    def keep(self, values: Array) -> Rows:
        """Write an array, and have it read whenever it is asked for."""
        return Rows(self, self.put(values))


@dataclass(frozen=True)
class Rows:
    """An array in a file, read anew at each call."""

    file: RowFile
    place: Place

    def __call__(self) -> Array:
        """The array."""
        return self.file.get(self.place)


def _open(descriptor: int) -> FileIO:
    return FileIO(descriptor, "r+")


def _no_room(error: OSError) -> MemoryLimitError:
    return MemoryLimitError(
        f"the rows of norms cannot be written to a temporary file ({error.strerror or error}):"
        " set TMPDIR to a folder with more room, or take a shorter text"
    )
