"""Who audits: threads, child processes, or the workers of a cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from ggufnorm.analysis.audit.fleet.work import (
    Options,
    Outcome,
    outcome_from,
    plain_outcome_of,
    serve,
)
from ggufnorm.analysis.audit.run import Location
from ggufnorm.core.plain import to_plain
from ggufnorm.engines.peer import Peer
from ggufnorm.errors import ConfigError, EngineError, MissingPackageError
from ggufnorm.formats.storage import pool_of_readers


class Pending(Protocol):
    """An outcome that is on its way."""

    def result(self) -> Outcome:
        """Wait for it."""


class Workers(Protocol):
    """Audits models at once."""

    def submit(self, location: Location) -> Pending:
        """Have a model audited."""

    def end(self) -> None:
        """Wait for nothing any more."""


class Threads:
    """Threads of this process: for models whose bytes have to be waited for.

    Args:
        n: of them.
        audit: a model; may be called by all of them at once.
    """

    def __init__(self, n: int, audit: Callable[[Location], Outcome]) -> None:
        self._pool, self._stopped = pool_of_readers(n)
        self._audit = audit

    def submit(self, location: Location) -> Future[Outcome]:
        """See :class:`Workers`."""
        return self._pool.submit(self._audit, location)

    def end(self) -> None:
        """See :class:`Workers`."""
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


class Children:
    """Child processes, each of which audits one model after the other.

    Args:
        n: of them.
        options: what to check.
    """

    def __init__(self, n: int, options: Options) -> None:
        self._options = to_plain(options)
        self._own = threading.local()
        self._all: list[Peer] = []
        self._is_over = False
        self._pool = ThreadPoolExecutor(n)

    def submit(self, location: Location) -> Future[Outcome]:
        """See :class:`Workers`."""
        return self._pool.submit(self._ask, location)

    def end(self) -> None:
        """See :class:`Workers`."""
        self._is_over = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for peer in self._all:
            peer.end()
        self._pool.shutdown(wait=True)

    def _ask(self, location: Location) -> Outcome:
        if getattr(self._own, "peer", None) is None:
            self._own.peer = Peer(serve, "", {})
            self._all.append(self._own.peer)
        try:
            answer = self._own.peer.ask({"location": os.fspath(location), "options": self._options})
        except EngineError as error:  # the child died: whatever this file did, another goes on
            peer, self._own.peer = self._own.peer, None
            peer.end()
            return Outcome(None, f"{os.fspath(location)}: {error}", is_lasting=False)
        return outcome_from(answer)


class Cluster:
    """The workers of a dask.distributed scheduler; a model whose worker dies goes to another.

    Args:
        address: of the scheduler.
        options: what to check.

    Raises:
        MissingPackageError: dask.distributed is not installed.
        ConfigError: there is no scheduler.
    """

    def __init__(self, address: str, options: Options) -> None:
        try:
            import distributed
        except ImportError:
            raise MissingPackageError(
                "--dask needs dask.distributed: pip install 'ggufnorm[fleet]'"
            ) from None
        self._options = to_plain(options)
        try:
            self._client = distributed.Client(address, timeout=_CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"there is no dask scheduler at {address}: {' '.join(str(error).split())}"
            ) from None

    @property
    def n(self) -> int:
        """Threads of all workers."""
        found: int = sum(self._client.nthreads().values())
        return max(1, found)

    def submit(self, location: Location) -> Pending:
        """See :class:`Workers`."""
        return _Remote(
            self._client.submit(plain_outcome_of, os.fspath(location), self._options, pure=False)
        )

    def end(self) -> None:
        """See :class:`Workers`."""
        self._client.close()


class _Remote:
    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self) -> Outcome:
        return outcome_from(self._future.result())


_CONNECT = 10
"""Seconds to wait for a scheduler."""
