"""What a long run has gathered, on disk, so that it can go on after its death."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ggufnorm.analysis.drift.observe import Comparison
from ggufnorm.core.logits import LogitSum
from ggufnorm.errors import InputError
from ggufnorm.formats.files import read_regular

_SCHEMA = "ggufnorm/checkpoint"
_MAX_BYTES = 1 << 30


def job_digest(job: dict[str, Any]) -> str:
    """A digest of everything that decides a run's result."""
    decisive = {k: v for k, v in job.items() if k not in ("checkpoint", "save_every")}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


class Checkpoint:
    """A file that holds the sums after some chunk, replaced as a whole.

    Args:
        path: the file; it need not exist.
        job: digest of the job, without which the sums mean nothing.
    """

    def __init__(self, path: str, job: str) -> None:
        self.path, self.job = Path(path), job

    def load(self, comparison: Comparison, logits: list[LogitSum]) -> int:
        """Restore the sums and return how many chunks they cover; 0 if there is no file.

        Raises:
            InputError: the file is not a checkpoint of this job.
        """
        try:
            text = read_regular(self.path, _MAX_BYTES).decode()
        except FileNotFoundError:
            return 0
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the checkpoint {self.path}: {_reason(error)}") from None
        try:
            data = json.loads(text)
            schema, job = data["schema"], data["job"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(f"{self.path} is not a checkpoint of ggufnorm") from None
        if schema != _SCHEMA or job != self.job:
            raise InputError(
                f"{self.path} belongs to another run (other models, text, options or version):"
                " give another file, or remove it"
            )
        try:
            comparison.restore(data["comparison"])
            states = zip(logits, data["logits"], strict=True)
            logits[:] = [LogitSum.from_state(state) for _total, state in states]
            done = data["done"]
            if not isinstance(done, int) or done < 0:
                raise ValueError(f"{done} chunks are done")
            return done
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            raise InputError(f"the checkpoint {self.path} is damaged: remove it") from None

    def save(self, done: int, comparison: Comparison, logits: list[LogitSum]) -> None:
        """Write the sums after ``done`` chunks; the old file stays until the new is whole.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        data = {
            "schema": _SCHEMA,
            "job": self.job,
            "done": done,
            "comparison": comparison.state(),
            "logits": [total.state() for total in logits],
        }
        unfinished = self.path.with_name(self.path.name + ".unfinished")
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                json.dump(data, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
