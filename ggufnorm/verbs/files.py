"""``inspect`` and ``audit``: of one model, or of a set of models, folders and patterns."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ggufnorm.core.audit import NOT_CHECKED, AuditReport, AuditSet
from ggufnorm.core.model import Inspection, InspectionSet, Skipped
from ggufnorm.errors import InputError
from ggufnorm.formats.forms import AnyLocation
from ggufnorm.formats.location import expand
from ggufnorm.verbs.kinds import require_kinds, require_source, wrong_turn

if TYPE_CHECKING:
    from ggufnorm.analysis.audit.ignores import Ignore
    from ggufnorm.analysis.audit.run import AuditProgress

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
    on_progress: Callable[[AuditProgress], None] = ...,
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
    on_progress: Callable[[AuditProgress], None] = lambda _progress: None,
) -> AuditReport | AuditSet:
    """Check the normalization of converted models.

    Args:
        location: a model; of a remote one only the header and the norms are fetched, unless
            ``full``. Or a list or tuple of models, folders (all ``*.gguf`` in and below
            them) and shell patterns, of which some are checked at once.
        source: the checkpoint that they were converted from: a folder with ``config.json``
            and safetensors, or ``hf://org/repo[@revision]``.
        run: whether to run each in llama.cpp too; then it must be on this machine.
        full: whether to read all tensors, not just the norms.
        select: the rules to check: beginnings of ids (``N``, ``N3``, ``E104``) or names
            (``norm-duplicated``); empty for all.
        ignore: the rules not to check, named in the same way.
        accepted: findings that are known and accepted
            (:func:`ggufnorm.analysis.audit.ignores.read_ignores`).
        on_progress: called after each rule, of a list or tuple.

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

    options = audits.AuditOptions(source, run, full, select, ignore, accepted)
    if isinstance(location, (str, os.PathLike)):
        require_kinds("audit", location)
        require_source("audit", location, source)
        return audits.audit(location, **vars(options))
    named = frozenset(os.fspath(one) for one in location)
    return _audit_set(_models("audit", location), named, options, on_progress)


def _audit_set(
    models: Sequence[str],
    named: frozenset[str],
    options: Any,
    on_progress: Callable[[AuditProgress], None],
) -> AuditSet:
    """Audit all models; ``named`` are those that were not found in a folder or by a pattern."""
    from ggufnorm.analysis.audit.run import audit_all

    turns = {model: wrong_turn("audit", [model]) for model in models}
    checkable = [model for model in models if turns[model] is None]
    others = {m: turn for m, turn in turns.items() if turn is not None and m not in named}
    if len(others) == len(turns):  # nothing would be audited, and that is no good news
        others = {}
    found: dict[str, AuditReport | str | None] = {
        m: turn for m, turn in turns.items() if m not in others
    }
    done = 0
    try:
        for model, checked in zip(
            checkable, audit_all(checkable, options, on_progress), strict=True
        ):
            found[model] = checked if isinstance(checked, AuditReport) else str(checked)
            done += 1
    except KeyboardInterrupt:
        if not done:
            raise
    return AuditSet(
        tuple(report for report in found.values() if isinstance(report, AuditReport)),
        tuple(
            Skipped(model, why or NOT_CHECKED)
            for model, why in found.items()
            if not isinstance(why, AuditReport)
        ),
        tuple(Skipped(model, turn) for model, turn in others.items()),
    )


def _models(verb: str, locations: Sequence[AnyLocation]) -> list[str]:
    texts = [os.fspath(location) for location in locations]
    try:
        return expand(texts)
    except InputError:
        # A folder without a GGUF file may hold a checkpoint, and that was meant otherwise.
        for text in filter(os.path.isdir, texts):
            require_kinds(verb, text)
        raise
