"""Files that appear only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ggufnorm.errors import InputError


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file beside the target to be filled, which then takes the target's place.

    After an error or an interruption it is gone, and the target is as it was.

    Raises:
        InputError: the folder cannot be written.
    """
    path = Path(target)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.open("xb").close()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield unfinished
        try:
            unfinished.replace(path)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)
