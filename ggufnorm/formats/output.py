"""Files that are written: complete or not at all, and where they were meant to be.

A target that is a regular file, or not there yet, gets its content from a hidden file beside
it, by one rename. Symbolic links are followed and kept, and so is the mode. What is no
regular file (``/dev/null``, a FIFO, ``/dev/stdout``) is written to, never replaced.

Hidden files have random names, since process ids repeat in containers. Whoever writes one
holds a lock on it (``flock``), which the system lets go when the process dies: one without a
lock is left from a process that was killed, and is removed when the next file is written in
that folder. Where the file system knows no locks, none is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ggufnorm.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]

_PREFIX, _SUFFIX = ".ggufnorm-", ".unfinished"
_MOST_LINKS = 40
"""As Linux follows in a path."""
_ANYONE_WRITES = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def replacing(target: StrPath) -> Iterator[Path]:
    """An empty file to be filled, whose content then becomes the target's.

    After an error or an interruption it is gone, and the target is as it was.

    Raises:
        OutputError: the target is read-only or a folder, or its folder cannot be written.
    """
    with ExitStack() as stack:
        with reported(target):
            folder = work_folder(target) or _temporary()
            unfinished = stack.enter_context(_hidden_file(folder, target))
        yield unfinished
        move_to(unfinished, target)


def write_text(text: str, target: StrPath) -> None:
    """Write a text as UTF-8; what is none of it, half of a surrogate pair, as its escape.

    Raises:
        OutputError: as :func:`replacing`, or the disk is full.
    """
    with replacing(target) as unfinished, reported(target):
        unfinished.write_bytes(text.encode("utf-8", "backslashreplace"))


def move_to(finished: Path, target: StrPath) -> None:
    """Let a complete file be the target's content.

    Args:
        finished: the file, in :func:`work_folder` of the target if there is one; it is gone
            afterwards, or is to be removed.
        target: to be replaced, or written to if it is no regular file.

    Raises:
        OutputError: the target cannot be written.
    """
    with reported(target):
        there = _kind(target)
        if _is_written_to(target, there):
            from shutil import copyfileobj

            with finished.open("rb") as source, _opened(target) as sink:
                copyfileobj(source, sink, 1 << 20)
            return
        with finished.open("rb+") as file:  # a full disk may show only now
            os.fsync(file.fileno())
        if there is not None and fcntl is not None:
            with suppress(OSError):  # only root can give a file to somebody
                os.chown(finished, there.st_uid, there.st_gid)
            finished.chmod(stat.S_IMODE(there.st_mode))
        finished.replace(Path(target).resolve())


def require_writable(target: StrPath, inputs: Iterable[StrPath] = ()) -> None:
    """Find out, before the work whose result it is for, that a target cannot be written.

    Args:
        target: a file to be written; nothing is changed.
        inputs: files that are read, none of which the target may be.

    Raises:
        OutputError: it is an input, is read-only, is a folder, or a byte cannot be written
            in its folder.
    """
    refuse_inputs(target, inputs)
    with reported(target):
        folder = work_folder(target)
        if folder is None:
            return
        with _hidden_file(folder, target) as probe:
            probe.write_bytes(b"\0")


def refuse_inputs(target: StrPath, inputs: Iterable[StrPath]) -> None:
    """Refuse to write over what is read.

    Raises:
        OutputError: the target is one of the inputs, by whatever name.
    """
    with reported(target):
        for path in inputs:
            if _same(target, path):
                raise OutputError(f"{target} is an input: give another file to write to")


def work_folder(target: StrPath) -> Path | None:
    """The folder from which a file can take the target's place by a rename.

    Returns:
        None if the target is written to, being no regular file.

    Raises:
        OutputError: the target is read-only, a folder or a disk.
        OSError: it cannot be looked at.
    """
    number = _own_descriptor(target)
    if number is not None:
        os.write(number, b"")  # fails if it is not open, or only for reading
        return None
    there = _kind(target)
    if there is None:
        return Path(target).resolve().parent
    if stat.S_ISDIR(there.st_mode):
        raise OutputError(f"cannot write {target}: it is a folder")
    if stat.S_ISBLK(there.st_mode) or stat.S_ISSOCK(there.st_mode):
        raise OutputError(f"cannot write {target}: it is a disk or a socket")
    # root may write anything: what a mode says is looked at too
    if not there.st_mode & _ANYONE_WRITES or not os.access(target, os.W_OK):
        raise OutputError(f"cannot write {target}: it is read-only")
    return None if _is_written_to(target, there) else Path(target).resolve().parent


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """A folder that is removed afterwards, and by the next run if this one is killed.

    Args:
        beside: where it is to be; None for the system's folder of temporary files.

    Raises:
        OSError: it cannot be made.
    """
    parent = beside or _temporary()
    sweep(parent)
    while True:
        folder = parent / _name()
        folder.mkdir(0o700)
        descriptor = _open_folder(folder)
        if descriptor is None or _holds(descriptor, folder):
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        _remove(folder)
        if descriptor is not None:
            os.close(descriptor)


def _temporary() -> Path:
    """The system's folder of temporary files."""
    from tempfile import gettempdir  # which commands that write no file do without

    return Path(gettempdir())


def _remove(folder: Path) -> None:
    from shutil import rmtree

    rmtree(folder, ignore_errors=True)


@contextmanager
def reported(target: StrPath) -> Iterator[None]:
    """Turn an error of the system's into one that names the target.

    Raises:
        OutputError: the system refused something.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name
        raise OutputError(f"cannot write {target}: {error}") from None


def sweep(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX):
                _remove_if_left(Path(entry.path))


# -- hidden files ------------------------------------------------------------------------


def _name() -> str:
    return f"{_PREFIX}{os.urandom(8).hex()}{_SUFFIX}"


@contextmanager
def _hidden_file(folder: Path, target: StrPath) -> Iterator[Path]:
    """An empty file that nobody may read who may not read the target, locked while it is."""
    sweep(folder)
    there = _kind(target)
    mode = 0o600 if there is not None and stat.S_ISREG(there.st_mode) else 0o666
    while True:
        path = folder / _name()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        if _holds(descriptor, path):
            break
        os.close(descriptor)  # another process took it for one that was left
    if fcntl is None:  # Windows renames no open file
        os.close(descriptor)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        if fcntl is not None:
            os.close(descriptor)


def _open_folder(folder: Path) -> int | None:
    return None if fcntl is None else os.open(folder, os.O_RDONLY)


def _holds(descriptor: int, path: Path) -> bool:
    """Whether a file that was just made is ours: locked, and still at its path."""
    if _lock(descriptor) is False:
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool | None:
    """Lock an open file; False if another process has it locked, None if there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_if_left(path: Path) -> None:
    if fcntl is None:
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.geteuid() or _lock(descriptor) is not True:
                return
            if stat.S_ISDIR(found.st_mode):
                _remove(path)
            elif stat.S_ISREG(found.st_mode):
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


# -- targets -----------------------------------------------------------------------------


def _kind(path: StrPath) -> os.stat_result | None:
    """What is there, links followed; None if nothing is."""
    try:
        return Path(path).stat()
    except FileNotFoundError:
        return None


def _is_written_to(target: StrPath, there: os.stat_result | None) -> bool:
    """Whether a target is no regular file, or an open one."""
    if _own_descriptor(target) is not None:
        return True
    return there is not None and not stat.S_ISREG(there.st_mode)


def _own_descriptor(target: StrPath) -> int | None:
    """The number of this process's open file that a path stands for: 1 for ``/dev/stdout``.

    To open such a path again would begin at the start of a file that a shell appends to.
    """
    path, own = Path(target), {"/dev/fd", f"/proc/{os.getpid()}/fd"}
    for _ in range(_MOST_LINKS):
        folder = Path(os.path.realpath(path.parent))
        if str(folder) in own and path.name.isdecimal():
            return int(path.name)
        try:
            path = folder / (folder / path.name).readlink()
        except OSError:
            return None
    return None


def _opened(target: StrPath) -> BinaryIO:
    """What is no regular file, open for writing."""
    number = _own_descriptor(target)
    return open(target if number is None else os.dup(number), "wb")  # noqa: PTH123


def _same(a: StrPath, b: StrPath) -> bool:
    """Whether two paths mean one regular file, which need not be there yet."""
    there = _kind(a), _kind(b)
    if there[0] is None or there[1] is None:
        return there == (None, None) and os.path.realpath(a) == os.path.realpath(b)
    return stat.S_ISREG(there[0].st_mode) and os.path.samestat(there[0], there[1])
