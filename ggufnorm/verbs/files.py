"""``inspect`` and ``audit``: of one model, or of a set of models, folders and patterns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar, overload

from ggufnorm.core.model import NOT_CHECKED, Inspection, InspectionSet, Skipped
from ggufnorm.errors import InputError
from ggufnorm.formats.forms import AnyLocation
from ggufnorm.formats.location import expand
from ggufnorm.verbs.kinds import require_kinds, require_source, wrong_turn

if TYPE_CHECKING:
    from ggufnorm.analysis.audit.fleet.run import Fleet
    from ggufnorm.analysis.audit.ignores import Ignore
    from ggufnorm.analysis.audit.run import AuditOptions, AuditProgress
    from ggufnorm.core.audit import AuditReport, AuditSet, Severity

L = TypeVar("L", bound=AnyLocation)


@overload
def inspect(location: AnyLocation, *, tensors: bool = False) -> Inspection: ...


@overload
def inspect(location: list[L] | tuple[L, ...], *, tensors: bool = False) -> InspectionSet: ...


def inspect(
    location: AnyLocation | Sequence[AnyLocation], *, tensors: bool = False
) -> Inspection | InspectionSet:
    """List every norm of a GGUF or ONNX model, without running it.

    Args:
        location: a model; of a remote one only the header and the norms are fetched. Or a
            list or tuple of models, folders (all ``*.gguf`` in and below them) and shell
            patterns.
        tensors: whether to list all tensors too.

    Returns:
        One :class:`~ggufnorm.core.model.NormSite` per norm, in execution order. A norm
        without weight and bias leaves no trace in a file: those of the architectures that
        are known for one are listed with ``tensor`` None; any other is found only by
        running the model (``drift``). Of a list or tuple, the inspections of the models
        that could be read, and why the others could not.

    Raises:
        InputError: the model cannot be found or opened, or a folder holds none.
        GGUFError: it is not well-formed GGUF.
        EngineMissingError: it is ONNX, and onnx is not installed.
    """
    from ggufnorm.analysis import inspection

    if isinstance(location, (str, os.PathLike)):
        require_kinds("inspect", location)
        return inspection.inspect(location, tensors=tensors)
    models: list[Inspection] = []
    failed: list[Skipped] = []
    for model in _models("inspect", location):
        try:
            require_kinds("inspect", model)
            models.append(inspection.inspect(model, tensors=tensors))
        except InputError as error:
            failed.append(Skipped(model, str(error)))
    return InspectionSet(tuple(models), tuple(failed))


@overload
def audit(
    location: AnyLocation,
    *,
    source: AnyLocation | None = None,
    run: bool = False,
    full: bool = False,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    accepted: Sequence[Ignore] = (),
    severities: Mapping[str, Severity] | None = None,
    manifest: AnyLocation | None = None,
) -> AuditReport: ...


@overload
def audit(
    location: list[L] | tuple[L, ...],
    *,
    source: AnyLocation | None = None,
    run: bool = False,
    full: bool = False,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    accepted: Sequence[Ignore] = (),
    severities: Mapping[str, Severity] | None = None,
    on_progress: Callable[[AuditProgress], None] = ...,
    jobs: int | None = None,
    cache: bool = True,
    dask: str | None = None,
    manifest: AnyLocation | None = None,
) -> AuditSet: ...


def audit(
    location: AnyLocation | Sequence[AnyLocation],
    *,
    source: AnyLocation | None = None,
    run: bool = False,
    full: bool = False,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    accepted: Sequence[Ignore] = (),
    severities: Mapping[str, Severity] | None = None,
    on_progress: Callable[[AuditProgress], None] = lambda _progress: None,
    jobs: int | None = None,
    cache: bool = True,
    dask: str | None = None,
    manifest: AnyLocation | None = None,
) -> AuditReport | AuditSet:
    """Check the normalization of converted models.

    Args:
        location: a model; of a remote one only the header and the norms are fetched, unless
            ``full``. Or a list or tuple of models, folders (all ``*.gguf`` in and below
            them), organisations on the Hub (``hf://org``) and patterns, of which some are
            checked at once.
        source: the checkpoint that they were converted from: a folder with ``config.json``
            and safetensors, or ``hf://org/repo[@revision]``.
        run: whether to run each in llama.cpp too; then it must be on this machine.
        full: whether to read all tensors, not just the norms.
        select: the rules to check: beginnings of ids (``N``, ``N3``, ``E104``) or names
            (``norm-duplicated``); empty for all.
        ignore: the rules not to check, named in the same way.
        accepted: findings that are known and accepted
            (:func:`ggufnorm.analysis.audit.ignores.read_ignores`).
        severities: of rules, by the beginning of their ids, where they are not their own.
        on_progress: called after each rule, of a list or tuple.
        jobs: of a list or tuple, how many are checked at once; None for what suits them.
        cache: of a list or tuple, whether results of remote models are kept for the next run,
            and those kept used where the file has not changed.
        dask: of a list or tuple, address of a dask.distributed scheduler whose workers check.
        manifest: of one model, file with what it should hold
            (:func:`ggufnorm.analysis.audit.manifest.save_manifest`).

    Returns:
        What the rules found; each rule selected either ran or says why it did not. Of a
        list or tuple, the reports of the models that could be read, and why the others
        could not. A Ctrl-C ends it early; the models that were not checked are among
        ``failed`` (:attr:`~ggufnorm.core.audit.AuditSet.interrupted`).

    Raises:
        InputError: the model or the source cannot be found, opened or read.
        GGUFError: the model is not well-formed GGUF.
        ConfigError: a selector names no rule.
        KeyboardInterrupt: a Ctrl-C before the first model was checked.
    """
    from ggufnorm.analysis.audit import run as audits
    from ggufnorm.analysis.audit.fleet.run import Fleet
    from ggufnorm.core.audit import AuditReport, AuditSet, PassedOver

    options = audits.AuditOptions(
        source, run, full, select, ignore, accepted, severities or {}, manifest
    )
    if isinstance(location, (str, os.PathLike)):
        require_kinds("audit", location)
        require_source("audit", location, source)
        return audits.audit(location, **vars(options))
    reports: list[AuditReport] = []
    others: list[Skipped] = []
    models, each = _each(location, options, on_progress, Fleet(jobs, cache, dask))
    try:
        for found in each:
            if isinstance(found, AuditReport):
                reports.append(found)
            else:
                others.append(found)
    except KeyboardInterrupt:
        if not reports and not others:
            raise
    failed = [skipped for skipped in others if not isinstance(skipped, PassedOver)]
    failed += [Skipped(model, NOT_CHECKED) for model in models[len(reports) + len(others) :]]
    passed_over = [Skipped(s.what, s.reason) for s in others if isinstance(s, PassedOver)]
    return AuditSet(tuple(reports), tuple(failed), tuple(passed_over))


def audit_each(
    locations: Sequence[AnyLocation],
    *,
    run: bool = False,
    full: bool = False,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    accepted: Sequence[Ignore] = (),
    severities: Mapping[str, Severity] | None = None,
    on_progress: Callable[[AuditProgress], None] = lambda _progress: None,
    jobs: int | None = None,
    cache: bool = True,
    dask: str | None = None,
) -> Iterator[AuditReport | Skipped]:
    """:func:`audit` thousands of models without holding all of their reports.

    Args:
        locations: as a list for :func:`audit`.
        run: see there; so are the others.
        full: see there.
        select: see there.
        ignore: see there.
        accepted: see there.
        severities: see there.
        on_progress: see there.
        jobs: see there.
        cache: see there.
        dask: see there.

    Yields:
        In the order given, each model as soon as it and those before it are done: what was
        found, why it could not be read, or that it is no model.

    Raises:
        InputError: a folder, a pattern or an organisation has no model.
        ConfigError: a selector is the prefix of no rule's id.
    """
    from ggufnorm.analysis.audit.fleet.run import Fleet
    from ggufnorm.analysis.audit.run import AuditOptions

    options = AuditOptions(None, run, full, select, ignore, accepted, severities or {})
    yield from _each(locations, options, on_progress, Fleet(jobs, cache, dask))[1]


def _each(
    locations: Sequence[AnyLocation],
    options: AuditOptions,
    on_progress: Callable[[AuditProgress], None],
    fleet: Fleet,
) -> tuple[list[str], Iterator[AuditReport | Skipped]]:
    """The models that locations stand for, and their audits in that order."""
    from ggufnorm.analysis.audit.fleet.run import audit_all
    from ggufnorm.core.audit import AuditReport, PassedOver

    models = _models("audit", locations)
    turns, others = _turns(models, frozenset(os.fspath(one) for one in locations))
    checkable = [model for model in models if turns[model] is None]

    def audits() -> Iterator[AuditReport | Skipped]:
        with closing(audit_all(checkable, options, on_progress, fleet)) as found:
            for model in models:
                turn = turns[model]
                if turn is not None:
                    yield PassedOver(model, turn) if model in others else Skipped(model, turn)
                    continue
                checked = next(found)
                if isinstance(checked, AuditReport):
                    yield checked
                else:
                    yield Skipped(model, str(checked))

    return models, audits()


def _turns(
    models: Sequence[str], named: frozenset[str]
) -> tuple[dict[str, str | None], dict[str, str]]:
    """What was meant in the place of what is no model; of it, what a folder or pattern brought."""
    turns = {model: wrong_turn("audit", [model]) for model in models}
    others = {m: turn for m, turn in turns.items() if turn is not None and m not in named}
    if len(others) == len(turns):  # nothing would be audited, and that is no good news
        others = {}
    return turns, others


def _models(verb: str, locations: Sequence[AnyLocation]) -> list[str]:
    texts = [os.fspath(location) for location in locations]
    try:
        return expand(texts)
    except InputError:
        # A folder without a GGUF file may hold a checkpoint, and that was meant otherwise.
        for text in filter(os.path.isdir, texts):
            require_kinds(verb, text)
        raise
