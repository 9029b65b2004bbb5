"""Opens the files that users name, and nothing but files.

A named pipe waits for its writer for ever, ``/dev/zero`` has no end, and to open a device
may already do something: what is no regular file is refused before it is opened.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ggufnorm.errors import TextError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_PART = 1 << 20

_MAX_TEXT = 1 << 28
"""Bytes of a text at most: more than fifty million tokens."""

# Without O_NONBLOCK a pipe that took the file's place after the check would block.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_descriptor(path: str | os.PathLike[str], limit: int | None = None) -> int:
    """A descriptor of a regular file, open for reading.

    Args:
        path: of the file; links are followed.
        limit: most bytes that it may have; None for any number.

    Raises:
        OSError: it cannot be opened, is no regular file or is too large; ``strerror`` says
            which, in words for a message.
    """
    name = os.fspath(path)
    try:
        _require_regular(Path(name).stat(), name, limit)
        descriptor = os.open(name, _FLAGS | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), name) from None
    try:
        _require_regular(os.fstat(descriptor), name, limit)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> BinaryIO:
    """A regular file, open for reading; see :func:`open_descriptor`.

    Raises:
        OSError: see there.
    """
    return os.fdopen(open_descriptor(path, limit), "rb")


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """All bytes of a regular file, which may have ``limit`` of them; see :func:`open_descriptor`.

    Raises:
        OSError: see there.
    """
    data = bytearray()
    with open_regular(path, limit) as file:
        while part := file.read(_PART):
            data += part
            if len(data) > limit:  # it has grown
                raise _too_large(len(data), limit, os.fspath(path))
    return bytes(data)


def require_regular(path: str | os.PathLike[str], limit: int | None = None) -> None:
    """Check a file that a library is to open by its name.

    Raises:
        OSError: see :func:`open_descriptor`.
    """
    os.close(open_descriptor(path, limit))


def _too_large(n: int, limit: int, path: str) -> OSError:
    """The error of a file of ``n`` bytes where ``limit`` are allowed."""
    return OSError(errno.EFBIG, f"its {n:,} bytes are more than the {limit:,} that are read", path)


def _require_regular(found: os.stat_result, path: str, limit: int | None) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "something else")
        raise OSError(errno.EINVAL, f"it is {what}: give a regular file", path)
    if limit is not None and found.st_size > limit:
        raise _too_large(found.st_size, limit, path)


def no_such_file(path: str | os.PathLike[str]) -> str:
    """Words for a path that leads nowhere, with the file beside it that may have been meant."""
    from difflib import get_close_matches

    name = os.fspath(path)
    folder, last = Path(name).parent, Path(name).name
    try:
        others = [other.name for other in folder.iterdir()]
    except (OSError, ValueError):
        others = []
    near = get_close_matches(last, others, 1, _NEAR)
    hint = f": did you mean {folder / near[0]}?" if near else ""
    return f"cannot open {name}: {os.strerror(errno.ENOENT)}{hint}"


_NEAR = 0.75
"""How alike two names are, of which one was meant by the other."""


def read_text(path: str | os.PathLike[str]) -> str:
    """The text to run.

    Raises:
        TextError: it cannot be read, is not UTF-8 or is empty.
    """
    try:
        text = read_regular(path, _MAX_TEXT).decode()
    except OSError as error:
        raise TextError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TextError(f"the text {path} is not UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise TextError(f"the text {path} is empty")
    return text
