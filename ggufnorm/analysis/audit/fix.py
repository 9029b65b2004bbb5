"""A corrected copy of a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ggufnorm.analysis.audit.mends import Plan, plan
from ggufnorm.analysis.audit.run import AuditOptions, audit, checked
from ggufnorm.core.audit import Finding
from ggufnorm.core.fix import FixReport, Left
from ggufnorm.core.mend import Mend
from ggufnorm.core.progress import OnProgress, Progress, no_progress
from ggufnorm.errors import OutputError
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.gguf_rewrite import Array, Changes, Stream, rewrite
from ggufnorm.formats.location import local_path
from ggufnorm.formats.output import replacing, reported, require_writable
from ggufnorm.formats.split import shard_name

Location = str | os.PathLike[str]

_COUNT = "split.tensors.count"


def fix(
    location: Location,
    output: str | os.PathLike[str],
    *,
    source: Location | None = None,
    select: Sequence[str] = (),
    on_plan: Callable[[tuple[Mend, ...]], None] = lambda _mends: None,
    on_progress: OnProgress = no_progress,
) -> FixReport:
    """Write a corrected copy of a model: what an audit finds, where the right value is known.

    Keys are set; tensors get the offset, order, byte order, type or values that the source and
    the conversion give them, in the file's own types, quantized by ggml; norms that are missing
    are added. Every other key and byte stays. Memory does not depend on the model's size.

    Args:
        location: of a model on this machine; it is never changed.
        output: the copy, which appears only when it is complete. Of a split model all shards
            are written, under this name with ``-00001-of-0000N.gguf`` behind it.
        source: what the model was converted from; see :func:`ggufnorm.audit`.
        select: the rules whose findings are mended: beginnings of ids, or names; empty for all.
        on_plan: is given what will be changed, before anything is written.
        on_progress: is told how far the copy is.

    Returns:
        What was mended and what was not, and an audit of the copy by all rules.

    Raises:
        InputError: the model or the source cannot be found, opened or read.
        OutputError: the copy cannot be written, or is the model itself.
        ConfigError: a selector names no rule.
    """
    path = local_path(location)
    with ExitStack() as stack:
        options = AuditOptions(source, select=select)
        subject, report = checked(stack, path, options)
        targets = _targets(output, subject.file.shards)
        todo = plan(subject, report.findings)
        on_plan(todo.mends)
        if todo.mends:
            _write(todo, subject.file.shards, targets, on_progress)
    left = tuple(Left(finding, reason) for finding, reason in todo.left)
    if not todo.mends:
        return FixReport(str(path), None, (), left, report)
    on_progress(Progress("auditing the copy"))
    found = audit(targets[0], source=source)
    return FixReport(
        str(path), str(targets[0]), _once(todo.mended), _still(left, found.findings), found
    )


def _still(left: Sequence[Left], found: Sequence[Finding]) -> tuple[Left, ...]:
    """What was not mended and is still found: a mend of one finding may mend another."""
    there = {(f.rule, f.tensor, f.layer) for f in found}
    return tuple(
        one for one in left if (one.finding.rule, one.finding.tensor, one.finding.layer) in there
    )


def _once(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The first finding of each key and tensor that was mended."""
    first: dict[tuple[str, ...], Finding] = {}
    for finding in findings:
        if finding.mend is not None:
            first.setdefault(finding.mend.targets, finding)
    return tuple(first.values())


def _targets(output: str | os.PathLike[str], shards: Sequence[GGUFFile]) -> list[Path]:
    """The files to be written, one for each shard.

    Raises:
        OutputError: one of them cannot be written, or is read.
    """
    names = [os.fspath(output)]
    if len(shards) > 1:
        stem = names[0].removesuffix(".gguf")
        names = [shard_name(stem, i, len(shards)) for i in range(1, len(shards) + 1)]
    for name in names:
        path = Path(name)
        if path.exists() and not path.is_file():
            raise OutputError(f"cannot write {name}: a model is written to a regular file")
        require_writable(path, [shard.path for shard in shards])
    return [Path(name) for name in names]


@dataclass
class _Told:
    """Bytes of all shards, for one bar."""

    on_progress: OnProgress
    total: int
    before: int = 0

    def __call__(self, done: int, _total: int) -> None:
        megabyte = 1_000_000
        self.on_progress(
            Progress("writing", (self.before + done) // megabyte, self.total // megabyte)
        )


def _write(
    todo: Plan, shards: Sequence[GGUFFile], targets: Sequence[Path], on_progress: OnProgress
) -> None:
    """Write all shards; none takes its place before all are complete."""
    told = _Told(on_progress, sum(shard.size for shard in shards))
    with ExitStack() as stack:
        for number, (shard, target) in enumerate(zip(shards, targets, strict=True)):
            unfinished = stack.enter_context(replacing(target))
            with reported(target):
                rewrite(shard, unfinished, _changes(todo, shards, number), told)
            told.before += shard.size


def _changes(todo: Plan, shards: Sequence[GGUFFile], number: int) -> Changes:
    """What is changed in one shard: keys in the first, tensors where they are, new ones last."""
    shard, n = shards[number], len(shards)
    new = [name for name in todo.written if not any(name in s.tensors for s in shards)]
    written: dict[str, Array | Stream] = {**todo.tensors, **todo.streams}
    here = {
        name: values
        for name, values in written.items()
        if name in shard.tensors or (name in new and number == n - 1)
    }
    keys: dict[str, tuple[str, object]] = {}
    renamed: Mapping[str, str] = {}
    if number == 0:
        own = [m for m in todo.mends if m.kind == "key"]
        keys = {m.target: (m.type or "str", m.value) for m in own if m.renames is None}
        renamed = {m.renames: m.target for m in own if m.renames is not None}
    if new and _COUNT in shard.metadata:
        count = shard.metadata.integer(_COUNT) or 0
        keys[_COUNT] = ("u16", count + len(new))
    return Changes(keys, renamed, here)
