"""Where the files of a checkpoint are.

What lies in a folder is someone else's: no name leads out of it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol

from ggufnorm.errors import InputError
from ggufnorm.formats.safetensors_header import quoted
from ggufnorm.formats.storage import LocalStorage, Storage


class Folder(Protocol):
    """Where a checkpoint's files are.

    Attributes:
        name: as messages call it.
    """

    name: str

    def names(self) -> list[str]:
        """The files in it, sorted."""

    def storage(self, name: str) -> Storage | None:
        """One of the files; None if there is none of that name.

        Raises:
            InputError: it cannot be opened, or leads out of the folder.
        """


class LocalFolder:
    """A folder on this machine; see :class:`Folder`. Files are memory-mapped read-only.

    Raises:
        InputError: it is not a folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._path = Path(path)
        if not self._path.is_dir():
            what = "not a folder" if self._path.exists() else "no such folder"
            raise InputError(
                f"{self.name}: {what}: give one with config.json and model.safetensors"
            )

    def names(self) -> list[str]:
        """See :class:`Folder`."""
        return sorted(p.name for p in self._path.iterdir())

    def storage(self, name: str) -> LocalStorage | None:
        """See :class:`Folder`."""
        parts = name.split("/")
        if "\\" in name or len(parts) > 2 or {"", ".", ".."} & set(parts):
            raise InputError(f"{self.name}: {quoted(name)} leads out of the folder")
        path = self._path / name
        try:
            mode = path.stat().st_mode
            target = path.resolve()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{self.name}: cannot open {quoted(name)}: {reason}") from None
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: not a file")
        if not any(target.is_relative_to(root) for root in self._roots()):
            raise InputError(f"{path}: a link that leads out of the folder")
        return LocalStorage(path)

    def _roots(self) -> list[Path]:
        # huggingface_hub's cache keeps a snapshot's files beside it, under their digests.
        folder = self._path.resolve()
        repository = folder.parent.parent
        in_cache = folder.parent.name == "snapshots"
        return [folder, repository / "blobs"] if in_cache else [folder]
