"""What an audit found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ggufnorm.core.engine import Engine
from ggufnorm.core.mend import Mend
from ggufnorm.core.model import NOT_CHECKED, Skipped
from ggufnorm.core.result import Result

Severity = Literal["error", "warning", "info"]
"""``error``: the model computes something else than its source, or does not run;
``warning``: it probably does; ``info``: worth knowing, nothing is wrong."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""The most severe first."""


@dataclass(frozen=True)
class Finding:
    """Something that a rule has to say about a model.

    Attributes:
        rule: the rule's id, for example ``N101``.
        severity: how grave it is.
        tensor: the tensor that it is about, None for the file as a whole.
        layer: block number, None outside the blocks.
        message: one sentence: what is wrong, with its figures.
        evidence: the figures, by name, as JSON values.
        mend: what would make it right; None where the right value is not known.
    """

    rule: str
    severity: Severity
    tensor: str | None
    layer: int | None
    message: str
    evidence: dict[str, Any]
    mend: Mend | None = None


@dataclass(frozen=True)
class NotRun:
    """A rule that could not be checked, or not in full, and why."""

    rule: str
    reason: str


@dataclass(frozen=True)
class Ignored:
    """A finding that an ignore file accepts.

    Attributes:
        finding: what was found.
        reason: why it is accepted, in the words of the ignore file.
    """

    finding: Finding
    reason: str


@dataclass(frozen=True)
class AuditSummary:
    """An audit in figures.

    Attributes:
        errors: findings of that severity, without the ignored ones.
        warnings: the same.
        infos: the same.
        ignored: findings that an ignore file accepts.
        n_norms: norms looked at.
        rules_run: ids of the rules that were checked, in full or in part.
    """

    errors: int
    warnings: int
    infos: int
    ignored: int
    n_norms: int
    rules_run: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """What a file's metadata says of how it was made, None where they do not say.

    A GGUF names no converter; ``quantized_by`` is where publishers sign.

    Attributes:
        n_bytes: size of the file, or of all shards.
        file_type: ``general.file_type`` by name: ``Q4_K_M``.
        quantized_by: ``general.quantized_by``.
        size_label: ``general.size_label``: ``7B``.
        base_model: address or name of the model that it was made of.
        has_imatrix: whether an importance matrix was used (``quantize.imatrix.file``).
    """

    n_bytes: int
    file_type: str | None
    quantized_by: str | None
    size_label: str | None
    base_model: str | None
    has_imatrix: bool


@dataclass(frozen=True)
class AuditReport(Result):
    """One model's audit. Every rule selected is in ``summary.rules_run`` or ``not_run``.

    Attributes:
        path: the file.
        architecture: ``general.architecture``.
        name: ``general.name``, None if the file has none.
        findings: the most severe first, then by rule.
        ignored: findings that an ignore file accepts.
        not_run: the rules that could not be checked.
        summary: all of it in figures.
        provenance: how the file was made; None of a damaged file.
        engine: the llama.cpp that ran it, and where; None where it was not run.
    """

    path: str
    architecture: str
    name: str | None
    findings: tuple[Finding, ...]
    ignored: tuple[Ignored, ...]
    not_run: tuple[NotRun, ...]
    summary: AuditSummary
    provenance: Provenance | None = None
    engine: Engine | None = None


@dataclass(frozen=True)
class PassedOver(Skipped):
    """A file of a folder or pattern that is no model, and what it is."""


@dataclass(frozen=True)
class AuditSet(Result):
    """Several models' audits.

    Attributes:
        models: those that could be read, as they were given.
        failed: those that could not or, after a Ctrl-C, were not, and why.
        passed_over: files of a folder or pattern that are no models, and what they are.
    """

    models: tuple[AuditReport, ...]
    failed: tuple[Skipped, ...]
    passed_over: tuple[Skipped, ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether a Ctrl-C kept models from being checked."""
        return any(skipped.reason == NOT_CHECKED for skipped in self.failed)
