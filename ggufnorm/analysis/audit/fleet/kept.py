"""Outcomes that are kept, so that the next run fetches only what has changed."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock

import ggufnorm
from ggufnorm.analysis.audit.fleet.work import Options, Outcome
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.formats.forms import AnyLocation, Location, parse
from ggufnorm.formats.location import commit_of

FILE = "audits.sqlite"
"""In the cache folder (:func:`ggufnorm.formats.llama_libraries.cache_folder`)."""

_TABLE = """
CREATE TABLE IF NOT EXISTS audits (
    key TEXT PRIMARY KEY, version TEXT, at_commit TEXT, identity TEXT, outcome BLOB
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Known:
    """What is kept of a model.

    Attributes:
        outcome: of its audit.
        holds: whether that still holds, as the commit is the same. Else the server has to be
            asked for its content's identity.
    """

    outcome: Outcome
    holds: bool

    def result(self) -> Outcome:
        """The outcome."""
        return self.outcome


@lru_cache(maxsize=1)
def _code() -> str:
    """Digest of all that decides an outcome: this package and gguf-py."""
    found = hashlib.sha256(version("gguf").encode())
    for file in sorted(Path(ggufnorm.__file__).parent.rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


class Kept:
    """Outcomes by location and options, in an SQLite file that several threads may use.

    An outcome holds for the commit that its location names, or as long as the server says that
    the content is the same (``ETag`` and size). Those of other code are dropped: it may have
    other rules, also between two releases.

    Args:
        folder: where the file is, made if it is not there.
        options: of all audits.

    Raises:
        OSError, sqlite3.Error: it cannot be used.
    """

    def __init__(self, folder: Path, options: Options) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._options = to_plain(options)
        self._lock = Lock()
        self._database = sqlite3.connect(folder / FILE, check_same_thread=False)
        with self._lock, self._database as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(_TABLE)
            database.execute("DELETE FROM audits WHERE version != ?", [_code()])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def find(self, location: AnyLocation) -> Known | None:
        """What is kept of a model."""
        place = parse(location)
        with self._lock:
            row = self._database.execute(
                "SELECT at_commit, outcome FROM audits WHERE key = ?", [self._key(place)]
            ).fetchone()
        if row is None:
            return None
        outcome = from_plain(Outcome, json.loads(zlib.decompress(row[1])))
        commit = commit_of(place)
        return Known(outcome, commit is not None and commit == row[0])

    def keep(self, location: AnyLocation, outcome: Outcome) -> None:
        """Keep an outcome, if there is something that tells for how long it holds."""
        place = parse(location)
        commit = commit_of(place)
        if not outcome.is_lasting or (commit is None and outcome.identity is None):
            return
        data = zlib.compress(json.dumps(to_plain(outcome)).encode())
        with self._lock, self._database as database:
            database.execute(
                "INSERT OR REPLACE INTO audits VALUES (?, ?, ?, ?, ?)",
                [self._key(place), _code(), commit, outcome.identity, data],
            )

    def _key(self, place: Location) -> str:
        commit = commit_of(place)
        name = place.text.replace(f"@{commit}", "", 1) if commit else place.text
        text = json.dumps([name, self._options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
