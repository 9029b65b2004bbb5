"""Findings on pipelines, and all of them in a sentence."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

from ggufnorm.analysis.preprocessing.pipelines import Pipeline
from ggufnorm.core.audit import SEVERITIES
from ggufnorm.core.feed import FeedFinding


def by_severity(findings: Iterable[FeedFinding]) -> tuple[FeedFinding, ...]:
    """The most severe findings first, otherwise in their order."""
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))


def is_misconfigured(pipeline: Pipeline) -> bool:
    """Whether Transformers does not do what its own configuration says."""
    return pipeline.name == "transformers" and bool(pipeline.mistakes)


def pipeline_findings(
    pipeline: Pipeline, differs: str, mild: Container[str] = ()
) -> Iterator[FeedFinding]:
    """What is wrong with what one pipeline feeds.

    Args:
        pipeline: with its mistakes.
        differs: name of the finding if Transformers is misconfigured.
        mild: mistakes that are a warning; the others are errors.
    """
    name, message = pipeline.name, f"{pipeline.name}: {pipeline.normalization}"
    if is_misconfigured(pipeline):
        why = f"transformers does not do what its configuration says: {pipeline.normalization}"
        yield FeedFinding("warning", differs, name, why)
        return
    for mistake in pipeline.mistakes:
        yield FeedFinding("warning" if mistake in mild else "error", mistake, name, message)
    if not pipeline.told:
        yield FeedFinding("warning", "not-told", name, message)


def summarize(pipelines: Sequence[Pipeline], findings: Sequence[FeedFinding], fed: str) -> str:
    """All of it in one sentence.

    Args:
        pipelines: at least one.
        findings: on them.
        fed: what they feed: ``pixels``.
    """
    errors = dict.fromkeys(_where(f) for f in findings if f.severity == "error")
    if errors:
        return f"Not as expected: {', '.join(errors)}"
    if not findings and len(pipelines) == 1:
        (only,) = pipelines
        return f"{only.name}: {only.normalization}"
    right = [p.name for p in pipelines if p.told and not p.mistakes]
    parts = [f"{_listed(right)}: normalized as expected"] if right else []
    if not findings:
        parts.append(f"all feed the same {fed}")
    return "; ".join([*parts, *dict.fromkeys(_where(f) for f in findings)])


def _where(finding: FeedFinding) -> str:
    return f"{finding.pipeline} ({finding.name})" if finding.pipeline else finding.name


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
