"""Many models, in order, as soon as each is done."""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock

from ggufnorm.analysis.audit.fleet.kept import Kept
from ggufnorm.analysis.audit.fleet.work import Options, Outcome, outcome_of
from ggufnorm.analysis.audit.fleet.workers import Children, Cluster, Threads, Workers
from ggufnorm.analysis.audit.run import AuditOptions, AuditProgress, Location, choose_rules
from ggufnorm.core.audit import AuditReport
from ggufnorm.errors import InputError
from ggufnorm.formats.llama_libraries import cache_folder
from ggufnorm.formats.location import current_identity, is_remote, share_connection

_FEW = 4
"""Models at once where somebody waits for a handful of them."""

_AT_ONCE = 16
"""Models behind HTTP at once: nearly all of the time is spent waiting for their bytes."""

_MANY = 64
"""Models on this machine for which starting child processes pays: a child takes some 0.3 s."""

_AHEAD = 8
"""Models for each worker that are submitted before the first of them is done."""


@dataclass(frozen=True)
class Fleet:
    """How many models are audited.

    Attributes:
        jobs: models at once; None for what suits them.
        is_kept: whether outcomes of remote models are kept for the next run, and those kept used.
        dask: address of a dask.distributed scheduler whose workers do it; None for this machine.
    """

    jobs: int | None = None
    is_kept: bool = True
    dask: str | None = None


def audit_all(
    locations: Sequence[Location],
    options: AuditOptions,
    on_progress: Callable[[AuditProgress], None] = lambda _: None,
    fleet: Fleet | None = None,
) -> Generator[AuditReport | InputError, None, None]:
    """Check several models, some of them at once.

    Args:
        locations: of the models.
        options: for all of them.
        on_progress: called after each rule or each model, from one thread at a time.
        fleet: how.

    Yields:
        In the order given, each as soon as it and those before it are done: what was
        found, or why the model could not be read.

    Raises:
        ConfigError: a selector is the beginning of no rule's id, or there is no scheduler.
        MissingPackageError: a cluster is asked for and dask.distributed is not installed.
    """
    fleet = fleet or Fleet()
    n_rules = len(choose_rules(options.select, options.ignore))
    count = Counter(n_rules, len(locations), on_progress)
    if options.run:  # which has all processors to itself, and ends with a Ctrl-C
        alone = len(locations) == 1
        for location in locations:
            yield outcome_of(location, options, count.step, count.tell, alone=alone).result()
        return
    with ExitStack() as stack:
        yield from _audited(stack, locations, options, count, fleet)


def _audited(
    stack: ExitStack,
    locations: Sequence[Location],
    options: AuditOptions,
    count: Counter,
    fleet: Fleet,
) -> Iterator[AuditReport | InputError]:
    plain = _plain(options)
    kept = _kept(stack, locations, plain, count, fleet)
    workers, n = _workers(stack, locations, options, plain, count, fleet, kept)
    stack.callback(count.stop)  # before the workers end
    waiting: deque[tuple[Location, Callable[[], Outcome]]] = deque()
    counts_models = not isinstance(workers, Threads)

    def first() -> AuditReport | InputError:
        location, result = waiting.popleft()
        outcome = result()
        if counts_models:
            count.model()
            if kept is not None:
                kept.keep(location, outcome)
        return outcome.result()

    for location in locations:
        known = kept.find(location) if kept is not None else None
        if known is not None and known.holds:
            if not counts_models:
                count.model()
            waiting.append((location, known.result))
        else:
            waiting.append((location, workers.submit(location).result))
        if len(waiting) >= _AHEAD * n:
            yield first()
    while waiting:
        yield first()


def _workers(
    stack: ExitStack,
    locations: Sequence[Location],
    options: AuditOptions,
    plain: Options,
    count: Counter,
    fleet: Fleet,
    kept: Kept | None,
) -> tuple[Workers, int]:
    workers: Workers
    if fleet.dask is not None:
        workers = cluster = Cluster(fleet.dask, plain)
        n = cluster.n
    elif len(locations) >= _MANY and not any(map(is_remote, locations)):
        n = fleet.jobs or os.cpu_count() or 1
        workers = Children(n, plain)
    else:
        usual = _AT_ONCE if len(locations) > _FEW and all(map(is_remote, locations)) else _FEW
        n = max(1, min(fleet.jobs or usual, len(locations)))
        if n > _FEW:
            stack.enter_context(share_connection(n))
        workers = Threads(n, lambda location: _one(location, options, count, kept))
    stack.callback(workers.end)
    return workers, n


def _one(location: Location, options: AuditOptions, count: Counter, kept: Kept | None) -> Outcome:
    """One model: what is kept of it, if the server says that it is the same."""
    known = kept.find(location) if kept is not None else None
    if kept is not None and known is not None and known.outcome.identity is not None:
        try:
            is_same = current_identity(location) == known.outcome.identity
        except InputError as error:
            return Outcome(None, str(error), is_lasting=False)
        if is_same:
            kept.keep(location, known.outcome)  # of this commit from now on
            count.model()
            return known.outcome
    outcome = outcome_of(location, options, count.step, count.tell, alone=count.n_models == 1)
    if kept is not None:
        kept.keep(location, outcome)
    return outcome


def _kept(
    stack: ExitStack, locations: Sequence[Location], options: Options, count: Counter, fleet: Fleet
) -> Kept | None:
    """Where outcomes are kept; a source or a manifest may change unseen, so with one nothing is."""
    is_alone = options.source is None and options.manifest is None
    usable = fleet.is_kept and len(locations) > 1 and is_alone
    if not usable or not any(map(is_remote, locations)):
        return None
    try:
        kept = Kept(cache_folder(), options)
    except (OSError, sqlite3.Error) as error:
        count.warn(f"results are not kept for the next run: {cache_folder()}: {error}")
        return None
    stack.callback(kept.close)
    return kept


def _plain(options: AuditOptions) -> Options:
    return Options(
        _text(options.source),
        options.run,
        options.full,
        tuple(options.select),
        tuple(options.ignore),
        tuple(options.accepted),
        dict(options.severities),
        _text(options.manifest),
        options.how,
    )


def _text(location: Location | None) -> str | None:
    return None if location is None else os.fspath(location)


class Counter:
    """Counts the rules that several threads have checked.

    Attributes:
        n_models: in all.

    Args:
        n_rules: of each model.
        n_models: in all.
        show: is told how far it is.
    """

    def __init__(self, n_rules: int, n_models: int, show: Callable[[AuditProgress], None]) -> None:
        self.n_models = n_models
        self._n_rules = n_rules
        self._total = n_rules * n_models
        self._done = 0
        self._show = show
        self._lock = Lock()
        self._stopped = False
        self._percent = -1

    def stop(self) -> None:
        """Nobody waits any more: who is still at work ends after its rule."""
        self._stopped = True

    def warn(self, text: str) -> None:
        """Tell of something that the results depend on."""
        self._show(AuditProgress(text, self._done, self._total, warning=True))

    def tell(self, phase: str, done: int, total: int) -> None:
        """How far a long comparison is, within one rule."""
        if self._stopped:
            raise CancelledError
        percent = 100 * done // total if total else 0
        with self._lock:
            if percent != self._percent:
                self._percent = percent
                text = f"{phase} ({percent} %)" if total else phase
                self._show(AuditProgress(text, self._done, self._total))

    def step(self) -> None:
        """A rule is done."""
        if self._stopped:
            raise CancelledError
        self._add(1)

    def model(self) -> None:
        """All rules of a model are done."""
        self._add(self._n_rules)

    def _add(self, n: int) -> None:
        with self._lock:
            self._done += n
            self._show(AuditProgress("checking rules", self._done, self._total))
