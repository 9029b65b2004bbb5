"""What Transformers' auto classes make of a folder: nothing is fetched, no code of it is run."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufnorm.errors import InputError, MissingPackageError
from ggufnorm.formats.hf import check_processor


def load_pretrained(auto: str, folder: str | os.PathLike[str], what: str, install: str) -> Any:
    """What an auto class makes of a folder.

    Args:
        auto: the class's name, ``AutoImageProcessor``.
        folder: with ``preprocessor_config.json``.
        what: it makes, in words.
        install: the command that brings Transformers.

    Raises:
        MissingPackageError: Transformers is not installed.
        InputError: there is no folder, or none that the class can load.
    """
    path = os.fspath(folder)
    if not Path(path).is_dir():
        raise InputError(f"{path}: no such folder: give one with preprocessor_config.json")
    check_processor(path)
    with quiet():
        try:
            import transformers

            made = getattr(transformers, auto)
        except ImportError as error:
            raise MissingPackageError(
                f"this needs Transformers, which is not installed: {install}"
            ) from error
        try:
            return made.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a config can make it raise
            raise InputError(
                f"{path}: Transformers cannot load {what}: {first_line(error)}"
            ) from None


def first_line(error: Exception) -> str:
    """An error's first line, as far as it is one."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Transformers warns of while it loads and runs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
