"""Models through the rules."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ggufnorm.analysis.audit.ignores import Ignore, split_ignored
from ggufnorm.analysis.audit.manifest import read_manifest
from ggufnorm.analysis.audit.mends import settled
from ggufnorm.analysis.audit.registry import NotApplicableError, Rule
from ggufnorm.analysis.audit.rules import (
    RULES,
    TENSOR_DATA,
    compares_tensors,
    names_rule,
    no_such_rule,
    why_not_for,
)
from ggufnorm.analysis.audit.source.tensors import Progress
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.audit import (
    SEVERITIES,
    AuditReport,
    AuditSummary,
    Finding,
    NotRun,
    Provenance,
    Severity,
)
from ggufnorm.core.capture import Capture
from ggufnorm.core.distribution import weight_statistics
from ggufnorm.errors import ConfigError, GgufnormError, InputError, TensorDataError
from ggufnorm.formats.dequantize import read_norms
from ggufnorm.formats.forms import kind_of_model
from ggufnorm.formats.gguf_constants import LlamaFileType
from ggufnorm.formats.hf import Source, open_source
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of, norm_sites

if TYPE_CHECKING:
    from ggufnorm.runs.options import RunSettings

Location = str | os.PathLike[str]


@dataclass(frozen=True)
class AuditOptions:
    """What to check, and how thoroughly.

    Attributes:
        source: what the models were converted from; None if it is not known.
        run: whether to run each model in llama.cpp.
        full: whether to read all tensors, not just the norms; they are anyway where the model
            and its source are both on this machine.
        select: beginnings of the ids of the rules to check; empty for all.
        ignore: beginnings of the ids of the rules not to check.
        accepted: findings that are known and accepted.
        severities: of rules, by the beginning of their ids, where they are not their own.
        manifest: file with what a model should hold; None if there is none.
        how: each model is run; None for the CPU with all threads.
    """

    source: Location | None = None
    run: bool = False
    full: bool = False
    select: Sequence[str] = ()
    ignore: Sequence[str] = ()
    accepted: Sequence[Ignore] = ()
    severities: Mapping[str, Severity] = field(default_factory=dict)
    manifest: Location | None = None
    how: RunSettings | None = None


@dataclass(frozen=True)
class AuditProgress:
    """How far an audit of several models is, counted in rules.

    Attributes:
        phase: what is being done, for a person.
        done: rules that were checked.
        total: rules to check, over all models.
        speed: the speed for a person: not told.
        warning: whether ``phase`` is a warning.
        note: whether it is something worth knowing.
    """

    phase: str
    done: int
    total: int
    speed: str = ""
    warning: bool = False
    note: bool = False


def audit(
    location: Location,
    *,
    source: Location | None = None,
    run: bool = False,
    full: bool = False,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    accepted: Sequence[Ignore] = (),
    severities: Mapping[str, Severity] | None = None,
    manifest: Location | None = None,
    how: RunSettings | None = None,
) -> AuditReport:
    """Check one converted model, with its source every tensor and key of it.

    Args:
        location: a path, or any other location (:mod:`ggufnorm.formats.location`); of a
            remote model only the header and the norms are fetched, unless ``full``.
        source: what it was converted from: a folder with ``config.json`` and safetensors,
            or ``hf://org/repo[@revision]``.
        run: whether to run it in llama.cpp too; then it must be on this machine.
        full: whether to read all tensors, not just the norms; they are anyway where the model
            and its source are both on this machine.
        select: beginnings of the ids of the rules to check (``N``, ``N3``, ``E104``);
            empty for all.
        ignore: beginnings of the ids of the rules not to check.
        accepted: findings that are known and accepted
            (:func:`ggufnorm.analysis.audit.ignores.read_ignores`).
        severities: of rules, by the beginning of their ids, where they are not their own.
        manifest: file with what the model should hold
            (:func:`ggufnorm.analysis.audit.manifest.save_manifest`).
        how: the model is run; None for the CPU with all threads.

    Returns:
        What the rules found; each rule selected either ran or says why it did not.

    Raises:
        InputError: the model or the source cannot be found, opened or read.
        GGUFError: the model is not well-formed GGUF.
        ConfigError: a selector names no rule.
        RefusedError: a device that the model is to be put on is not there.
    """
    options = AuditOptions(
        source, run, full, select, ignore, accepted, severities or {}, manifest, how
    )
    return audit_opened(location, options, choose_rules(select, ignore))


def choose_rules(select: Sequence[str], ignore: Sequence[str]) -> tuple[Rule, ...]:
    """The rules that ``select`` names and ``ignore`` does not.

    Args:
        select: beginnings of ids (``N``, ``N4``, ``N402``) or names (``norm-duplicated``); empty
            for all rules.
        ignore: the same.

    Raises:
        ConfigError: one of them names no rule.
    """
    chosen, left_out = _named(select), _named(ignore)
    return tuple(r for r in RULES if (not select or r.id in chosen) and r.id not in left_out)


def _named(selectors: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for selector in selectors:
        ids = {r.id for r in RULES if names_rule(selector, r)}
        if not ids:
            raise ConfigError(
                no_such_rule(selector, "the beginning of no rule's id, and no rule's name")
            )
        found |= ids
    return found


def audit_opened(
    location: Location,
    options: AuditOptions,
    rules: Sequence[Rule],
    step: Callable[[], None] = lambda: None,
    tell: Progress = lambda _phase, _done, _total: None,
    opened: Callable[[ModelFile], None] = lambda _file: None,
) -> AuditReport:
    """Audit a model by rules that were chosen; ``opened`` is shown its file first.

    Raises:
        InputError: as :func:`audit`.
    """
    with ExitStack() as stack:
        try:
            return checked(stack, location, options, rules, step, tell, opened)[1]
        except TensorDataError as error:
            if TENSOR_DATA not in rules:
                raise
            return _damaged(error, options, rules)


def checked(
    stack: ExitStack,
    location: Location,
    options: AuditOptions,
    rules: Sequence[Rule] | None = None,
    step: Callable[[], None] = lambda: None,
    tell: Progress = lambda _phase, _done, _total: None,
    on_open: Callable[[ModelFile], None] = lambda _file: None,
) -> tuple[Subject, AuditReport]:
    """Audit a model that stays open as long as ``stack``.

    Raises:
        InputError: as :func:`audit`; also where a tensor's data is not all there.
        ConfigError: as :func:`audit`.
    """
    chosen = choose_rules(options.select, options.ignore) if rules is None else rules
    source = options.source
    opened = None if source is None else stack.enter_context(open_source(source))
    file = stack.enter_context(open_model(location))
    on_open(file)
    if opened is not None and opened.is_adapter and kind_of_model(file) != "adapter":
        raise InputError(
            f"{opened.path}: is a LoRA adapter, and no checkpoint: merge it"
            " (merge_and_unload in PEFT), save that, and give it as the source"
        )
    local = opened is not None and opened.is_local and not _is_remote(file)
    subject = open_subject(file, opened, full=options.full or local)
    compares = compares_tensors(chosen, kind_of_model(file))
    subject = replace(subject, on_progress=tell, compares=compares)
    if options.manifest is not None:
        subject = replace(subject, manifest=read_manifest(options.manifest))
    if options.run:
        if options.how is not None:
            _require_placement(file, options.how)
        subject = replace(subject, run=lambda: _run(location, options.how))
    findings, not_run = _check(subject, chosen, step)
    return subject, _report(subject, findings, not_run, options, chosen)


def open_subject(file: ModelFile, source: Source | None = None, *, full: bool = False) -> Subject:
    """What rules look at; all norms are read together.

    Raises:
        InputError: their bytes cannot be had.
    """
    sites, skipped = norm_sites(file)
    names = [name for site in sites for name in (site.tensor, site.bias) if name]
    weights, unreadable = read_norms(file, names)
    measured = tuple(
        replace(s, weight=weight_statistics(weights[s.tensor])) if s.tensor in weights else s
        for s in sites
    )
    return Subject(file, measured, skipped, weights, unreadable, source, full)


def _is_remote(file: ModelFile) -> bool:
    """Whether reading all of a file means fetching it."""
    return "://" in file.path


def _require_placement(file: ModelFile, how: RunSettings) -> None:
    from ggufnorm.analysis.audit.capture import require_placement

    require_placement(file, how)


def _run(location: Location, how: RunSettings | None) -> Capture:
    from ggufnorm.analysis.audit.capture import capture

    return capture(location, how=how)


def _check(
    subject: Subject, rules: Sequence[Rule], step: Callable[[], None]
) -> tuple[list[Finding], list[NotRun]]:
    findings: list[Finding] = []
    not_run: list[NotRun] = []
    kind = kind_of_model(subject.file)
    for rule in rules:
        why = why_not_for(rule, kind)
        try:
            if why is not None:
                raise NotApplicableError(why)
            # One by one: what a rule found before it gave up stays found. A damaged file may
            # hold NaNs that signal.
            with np.errstate(invalid="ignore"):
                for finding in rule.findings(subject):
                    findings.append(finding)
        except (NotApplicableError, GgufnormError) as error:
            not_run.append(NotRun(rule.id, str(error)))
        step()
    return settled(subject, findings), not_run


def _damaged(error: TensorDataError, options: AuditOptions, rules: Sequence[Rule]) -> AuditReport:
    """The report of a file whose header is sound and whose data is not all there."""
    message = str(error).removeprefix(f"{error.path}: ")
    evidence = {"offset": error.offset}
    finding = Finding(
        TENSOR_DATA.id, "error", error.tensor, layer_of(error.tensor), message, evidence
    )
    findings, ignored = split_ignored([finding], options.accepted, error.path)
    not_run = [
        NotRun(r.id, f"the tensors are not all there ({TENSOR_DATA.id})")
        for r in rules
        if r is not TENSOR_DATA
    ]
    summary = _summary(findings, len(ignored), 0, (TENSOR_DATA.id,))
    return AuditReport(
        error.path, "", None, tuple(findings), tuple(ignored), tuple(not_run), summary
    )


def _report(
    subject: Subject,
    found: Sequence[Finding],
    not_run: Sequence[NotRun],
    options: AuditOptions,
    rules: Sequence[Rule],
) -> AuditReport:
    graded = [_graded(f, options.severities) for f in found]
    ordered = sorted(graded, key=lambda f: (SEVERITIES.index(f.severity), f.rule))
    findings, ignored = split_ignored(ordered, options.accepted, subject.file.path)
    # A rule that stopped half-way after it found something did run.
    silent = {n.rule for n in not_run} - {f.rule for f in found}
    ran = tuple(r.id for r in rules if r.id not in silent)
    return AuditReport(
        path=subject.file.path,
        architecture=subject.architecture,
        name=subject.metadata.string("general.name"),
        findings=tuple(findings),
        ignored=tuple(ignored),
        not_run=tuple(not_run),
        summary=_summary(findings, len(ignored), len(subject.sites), ran),
        provenance=_provenance(subject.file),
        engine=None if subject.run is None else getattr(subject.outcome, "build", None),
    )


def _graded(finding: Finding, severities: Mapping[str, Severity]) -> Finding:
    """A finding with the severity that the longest beginning of its rule's id stands for."""
    fitting = [prefix for prefix in severities if finding.rule.startswith(prefix)]
    if not fitting:
        return finding
    return replace(finding, severity=severities[max(fitting, key=len)])


def _provenance(file: ModelFile) -> Provenance:
    said = file.metadata.string
    number = file.metadata.integer("general.file_type")
    base = "general.base_model.0"
    return Provenance(
        n_bytes=sum(shard.size for shard in file.shards),
        file_type=_FILE_TYPES.get(number) if number is not None else None,
        quantized_by=said("general.quantized_by"),
        size_label=said("general.size_label"),
        base_model=said(f"{base}.repo_url") or said(f"{base}.name"),
        has_imatrix="quantize.imatrix.file" in file.metadata,
    )


_FILE_TYPES = {t.value: t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in LlamaFileType}


def _summary(
    findings: Sequence[Finding], n_ignored: int, n_norms: int, ran: tuple[str, ...]
) -> AuditSummary:
    errors, warnings, infos = (sum(f.severity == s for f in findings) for s in SEVERITIES)
    return AuditSummary(errors, warnings, infos, n_ignored, n_norms, ran)
