"""Reads the front part of a GGUF file, as far as its header goes.

Every count and length is checked against the file's size before it is used.
"""

from __future__ import annotations

import struct
from typing import Literal

from ggufnorm.errors import GGUFError
from ggufnorm.formats.storage import Scratch, Storage, checked

ByteOrder = Literal["<", ">"]
"""Little or big endian, as the struct module and NumPy write it."""

_MAX_NAME = 65_535  # longest key that the format allows
_MAX_QUOTED = 64
_STEP = 1 << 18
"""Bytes of a further read on this machine: small enough for the processor's cache."""
_SPARE = 1 << 17
"""Bytes that a further request may take too many, beyond a fifth of what is surely needed."""

_SCRATCH = Scratch()


class Front:
    """The front part of a file, which grows as more of it is asked for.

    Args:
        storage: of the file.
        first: bytes to read at once.
        limit: most bytes to read at all.
        near: whether small reads are cheap, as they are on this machine.

    Attributes:
        path: what messages call the file.
        size: of the whole file.
        buffer: the bytes that were read.
        order: byte order of the numbers.
    """

    def __init__(self, storage: Storage, first: int, limit: int, *, near: bool) -> None:
        self.path, self.size = storage.name, storage.size
        self.buffer = bytearray()
        self.order: ByteOrder = "<"
        self._storage, self._limit, self._near = storage, limit, near
        self._read(min(self.size, first))

    def require(self, end: int) -> None:
        """Have all bytes before ``end``, which lies in the file.

        Raises:
            GGUFError: those are more than a header has.
            InputError: they cannot be read.
        """
        have = len(self.buffer)
        if end <= have:
            return
        if end > self._limit:
            raise GGUFError(
                self.path,
                end,
                "header",
                f"it goes on after {self._limit >> 20} MiB, more than is fetched"
                " (is it damaged? if not, download the file first)",
            )
        wanted = have + _STEP if self._near else min(4 * have, end + end // 5 + _SPARE, self._limit)
        self._read(min(self.size, max(end, wanted)))

    def _read(self, end: int) -> None:
        have = len(self.buffer)
        found = self._storage.read(have, end - have, _SCRATCH.of(end - have))
        self.buffer += checked(found, self._storage, have, end - have)


class Cursor:
    """A place in a header, which moves on with everything that is read.

    Each step is checked against the size of the file, then what lacks of it is read.
    """

    def __init__(self, front: Front, pos: int) -> None:
        self.front = front
        self.pos = pos

    def fail(self, field: str, problem: str, at: int | None = None) -> GGUFError:
        """The error of a field, at the cursor's place or another."""
        return GGUFError(self.front.path, self.pos if at is None else at, field, problem)

    def need(self, n: int, field: str) -> None:
        """Check that ``n`` more bytes lie in the file."""
        left = self.front.size - self.pos
        if n > left:
            raise self.fail(field, f"needs {n} bytes, but the file ends {left} bytes on")

    def fetched(self, n: int) -> None:
        """Have the next ``n`` bytes, which lie in the file."""
        if self.pos + n > len(self.front.buffer):
            self.front.require(self.pos + n)

    def numbers(self, codes: str, field: str) -> tuple[int, ...]:
        """Integers of the struct module's ``codes``."""
        layout = self.front.order + codes
        n = struct.calcsize(layout)
        self.need(n, field)
        self.fetched(n)
        found = struct.unpack_from(layout, self.front.buffer, self.pos)
        self.pos += n
        return found

    def integer(self, code: str, field: str) -> int:
        """One integer of the struct module's ``code``."""
        return self.numbers(code, field)[0]

    def count(self, field: str, smallest: int) -> int:
        """A u64 that counts things of at least ``smallest`` bytes each."""
        n = self.integer("Q", field)
        self.check_count(n, smallest, field, self.pos - 8)
        return n

    def check_count(self, n: int, smallest: int, field: str, at: int) -> None:
        """Check that ``n`` things of at least ``smallest`` bytes each fit behind the cursor."""
        left = self.front.size - self.pos
        if n * smallest > left:
            raise self.fail(field, f"{n} cannot fit in the {left} bytes to the file's end", at)

    def text(self, n: int, field: str) -> str:
        """The next ``n`` bytes, which lie in the file."""
        self.fetched(n)
        try:
            text = str(self.front.buffer[self.pos : self.pos + n], "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(field, "is not valid UTF-8", self.pos + error.start) from None
        self.pos += n
        return text

    def name(self, field: str, longest: int = _MAX_NAME) -> str:
        """A metadata key or a tensor's name."""
        at = self.pos
        n = self.count(f"length of {field}", smallest=1)
        if n > longest:
            raise self.fail(f"length of {field}", f"{n} is more than {longest}", at)
        name = self.text(n, field)
        if "\0" in name:
            raise self.fail(field, f"{quoted(name)} holds a NUL character", at)
        return name


def value_of(key: str) -> str:
    """What messages call the value of a metadata key."""
    return f"value of {quoted(key)}"


def quoted(name: str) -> str:
    """A name on one line of a message, whatever stands in it."""
    return repr(name if len(name) <= _MAX_QUOTED else name[: _MAX_QUOTED - 1] + "…")
