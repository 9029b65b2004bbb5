"""Long work unit by unit: progress, checkpoint, cancellation and time budget, once for all.

A unit is a chunk of the text, or a chunk of one phase. Whatever gathers something (a probe, a
table of divergences) is a :class:`Keeps`; its state after each unit goes into the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ggufnorm.core.progress import Progress, duration
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import InputError, OutputError
from ggufnorm.formats.files import read_regular
from ggufnorm.formats.output import write_text
from ggufnorm.runs.identity import Identity

_SCHEMA = "ggufnorm/checkpoint"
_MAX_BYTES = 1 << 30


_DAMAGE = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip
"""What restoring from a state that is none may raise."""


class Keeps(Protocol):
    """Something that gathers, and can go on from what it had gathered."""

    def state(self) -> Any:
        """All that was gathered, as plain data that JSON keeps exactly."""

    def restore(self, state: Any) -> None:
        """Go on from a :meth:`state` of the same job.

        Raises:
            ValueError, TypeError, KeyError, IndexError, AttributeError: it is none.
        """


@dataclass(frozen=True)
class Policy:
    """How long work is done.

    Attributes:
        resume: a file in which progress is kept; if it holds some, the work goes on there.
        save_every: seconds between two saves of that file; after the last unit and after a
            Ctrl-C it is saved in any case.
        budget: seconds after which no further unit begins; None for no limit.
        begun: when the command began, by :func:`time.time`, which all processes share; None
            for when the loop does.
    """

    resume: str | None = None
    save_every: float = 5.0
    budget: float | None = None
    begun: float | None = None

    def clock(self) -> float:
        """Value of :func:`time.monotonic` from which the budget counts, in this process."""
        passed = 0.0 if self.begun is None else max(0.0, time.time() - self.begun)
        return time.monotonic() - passed


INTERRUPTED = "interrupted"
"""Why work ended early by the user's wish."""
ONCE = Policy()
"""From beginning to end."""


class Loop:
    """Work that is done unit by unit.

    Args:
        channel: progress goes out and cancellation comes in here.
        policy: how the work is done.
        job: everything that decides the result.
        keeps: what gathers, by name.
        n_tokens: of a unit, for the speed.
        quiet: whether progress is shown by who works, in finer steps.

    Attributes:
        done: units finished, in all phases.
        total: units planned, in all phases begun.
        begun: of those finished, how many came from the checkpoint.
        seconds: that the others took.
        cut: why the work ended early, None if it did not.
    """

    def __init__(
        self,
        channel: Channel,
        policy: Policy,
        job: Identity,
        keeps: Mapping[str, Keeps],
        n_tokens: int,
        *,
        quiet: bool = False,
    ) -> None:
        self.channel, self.policy, self.keeps = channel, policy, keeps
        self.n_tokens, self._quiet = n_tokens, quiet
        self.done = self.begun = self.total = 0
        self.seconds = 0.0
        self.cut: str | None = None
        self._started = self._saved = time.monotonic()
        self._clock = policy.clock()
        self._phases: dict[str, int] = {}
        self._file = None if policy.resume is None else Checkpoint(policy.resume, job)
        if self._file:
            self._phases = self._file.load(keeps)
            self.done = self.begun = sum(self._phases.values())

    @property
    def speed(self) -> float:
        """Tokens a second, of this run's units."""
        return (self.done - self.begun) * self.n_tokens / max(self.seconds, 1e-9)

    def units(self, n: int, phase: str = "running") -> Iterator[int]:
        """The numbers of a phase's units that are left; each is counted when the next is asked for.

        Args:
            n: units of the phase.
            phase: its name, which progress shows and the checkpoint keeps.
        """
        self.total = max(self.total, sum(self._phases.values()) - self._phases.get(phase, 0) + n)
        for i in range(self._phases.get(phase, 0), n):
            # The first unit of a run is always done.
            if self.cut or (self.done > self.begun and self.ends()):
                return
            yield i
            self._phases[phase] = i + 1
            self._save(last=i + 1 == n)  # what is told to be done has been saved
            self._count(phase)
            ends = self.channel.cancel.is_set()
            if ends and i + 1 < n:
                self._save(last=True)
                self.cut = INTERRUPTED
                return

    def ends(self) -> bool:
        """Whether the work is to end now, in the middle of a unit: cancelled, or out of time."""
        budget = self.policy.budget
        if self.channel.cancel.is_set():
            self.cut = INTERRUPTED
        elif budget is not None and time.monotonic() - self._clock >= budget:
            self.cut = f"the budget of {budget:.0f} s was spent"
        return self.cut is not None

    def _count(self, phase: str) -> None:
        self.done += 1
        self.seconds = time.monotonic() - self._started
        n = self.done - self.begun  # others came from a checkpoint
        left = self.seconds / n * (self.total - self.done)
        if not self._quiet:
            if n == 1 and self.done < self.total:
                self._tell(left)
            self.channel.emit(Progress(phase, self.done, self.total, self.speed, left))

    def _tell(self, left: float) -> None:
        """Say what the rest takes, after the first unit of this run."""
        text = (
            f"{self.total - self.done} more chunks of {self.n_tokens} tokens at"
            f" {self.speed:,.0f} tokens/s: about {duration(left)}"
        )
        if self.policy.budget is not None:
            text += f" (the budget is {duration(self.policy.budget)})"
        self.channel.emit(Progress(text, note=True))

    def _save(self, *, last: bool) -> None:
        if self._file is None:
            return
        if not last and time.monotonic() - self._saved <= self.policy.save_every:
            return
        try:
            self._file.save(self._phases, self.keeps)
        except OutputError as error:
            text = f"no checkpoint is kept: {error}; going on without it"
            self.channel.emit(Progress(text, warning=True))
            self._file = None
        self._saved = time.monotonic()


class Checkpoint:
    """A file that holds what was gathered after some unit, replaced as a whole."""

    def __init__(self, path: str, job: Identity) -> None:
        self.path, self._job = Path(path), job

    def load(self, keeps: Mapping[str, Keeps]) -> dict[str, int]:
        """Restore what was gathered, and return how many units of each phase that covers.

        Raises:
            InputError: the file is not a checkpoint of this job.
        """
        try:
            text = read_regular(self.path, _MAX_BYTES).decode()
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"cannot read the checkpoint {self.path}: {reason}") from None
        head, _, body = text.partition("\n")
        try:
            data = json.loads(head)
            schema, job, checksum = data["schema"], data["job"], data["sha256"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(f"{self.path} is not a checkpoint of ggufnorm") from None
        if schema != _SCHEMA or job != self._job.digest:
            raise InputError(
                f"{self.path} belongs to another run ({self._differences(data)}): give another"
                " file, or remove it"
            )
        try:
            if checksum != _checksum(body):
                raise ValueError("checksum")
            state = json.loads(body)
            for name, kept in keeps.items():
                kept.restore(state["keeps"][name])
            phases = state["phases"]
            if not all(isinstance(n, int) and n >= 0 for n in phases.values()):
                raise ValueError("phases")
            return dict(phases)
        except _DAMAGE:
            raise InputError(f"the checkpoint {self.path} is damaged: remove it") from None

    def _differences(self, head: Mapping[str, Any]) -> str:
        found = self._job.differences(head.get("facts"))
        return "; ".join(found) if "facts" in head else "of another version"

    def save(self, phases: Mapping[str, int], keeps: Mapping[str, Keeps]) -> None:
        """Write what was gathered; the old file stays until the new is whole.

        Raises:
            OutputError: the disk is full or the folder cannot be written.
        """
        state = {"phases": phases, "keeps": {name: kept.state() for name, kept in keeps.items()}}
        body = json.dumps(state)
        job = {"job": self._job.digest, "facts": self._job.facts}
        head = {"schema": _SCHEMA, **job, "sha256": _checksum(body)}
        write_text(f"{json.dumps(head)}\n{body}", self.path)


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
