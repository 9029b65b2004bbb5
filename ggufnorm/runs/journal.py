"""Work in steps, each of which is done once, however often the work is begun again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ggufnorm.core.progress import OnProgress, Progress
from ggufnorm.errors import OutputError
from ggufnorm.runs.identity import Identity
from ggufnorm.runs.loop import Checkpoint

T = TypeVar("T")


class Journal:
    """What finished steps gave, kept in a file after each.

    Args:
        path: of the file; None keeps nothing.
        job: everything that decides the results.
        on_progress: is warned if the file cannot be written.

    Raises:
        InputError: the file belongs to other work, or is damaged.
    """

    def __init__(self, path: str | None, job: Identity, on_progress: OnProgress) -> None:
        self._done: dict[str, Any] = {}
        self._on_progress = on_progress
        self._file = None if path is None else Checkpoint(path, job)
        if self._file:
            self._file.load({"steps": self})

    def step(self, name: str, make: Callable[[], T]) -> T:
        """What a step gave, now or before.

        Args:
            name: of the step, one of its kind.
            make: does it; what it gives is plain data that JSON keeps exactly.
        """
        if name not in self._done:
            self._done[name] = make()
            self._save()
        found: T = self._done[name]
        return found

    def _save(self) -> None:
        if self._file is None:
            return
        try:
            self._file.save({}, {"steps": self})
        except OutputError as error:
            text = f"no checkpoint is kept: {error}; going on without it"
            self._on_progress(Progress(text, warning=True))
            self._file = None

    def state(self) -> Any:
        """See :class:`~ggufnorm.runs.loop.Keeps`."""
        return self._done

    def restore(self, state: Any) -> None:
        """See :class:`~ggufnorm.runs.loop.Keeps`."""
        self._done = dict(state)
