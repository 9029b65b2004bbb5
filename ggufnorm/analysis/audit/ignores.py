"""Findings that are known and accepted, each with a reason, from a TOML file.

Such a file holds a table for each::

    [[ignore]]
    rule = "N303"                 # an id, its beginning, or a name
    tensor = "blk.*.ffn_norm.*"   # optional: a shell pattern
    model = "tiny-*.gguf"         # optional: a shell pattern for the path's end
    reason = "never trained: all ones in the checkpoint too"

and what rules weigh, where that is not their own severity, by the beginning of their ids::

    [severity]
    N403 = "warning"
    H2 = "info"

``[[tool.ggufnorm.ignore]]`` and ``[tool.ggufnorm.severity]`` in a ``pyproject.toml`` mean the
same. A baseline is an audit that was saved as JSON: all of its findings are accepted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePath
from typing import Any

from ggufnorm.analysis.audit.rules import BY_ID, names_rule
from ggufnorm.core.audit import SEVERITIES, AuditReport, Finding, Ignored, Severity
from ggufnorm.errors import ConfigError
from ggufnorm.formats.files import open_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

IGNORE_FILE = ".ggufnorm-ignore.toml"
"""The file's usual name."""

_MAX_BYTES = 1 << 20
_MAX_PARTS = 64
_STRING = re.compile(rb'"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'')
_LONG_KEY = re.compile(rb"(?:[\w-]+[ \t]*\.[ \t]*){%d}" % _MAX_PARTS)


@dataclass(frozen=True)
class Ignore:
    """An entry of an ignore file.

    Attributes:
        rule: an id, its beginning, or a rule's name.
        reason: why what it finds is accepted.
        tensor: shell pattern; None for every finding, empty for those of the file as a whole.
        model: shell pattern for the end of the model's path; None for all.
    """

    rule: str
    reason: str
    tensor: str | None = None
    model: str | None = None

    def covers(self, finding: Finding, path: str) -> bool:
        """Whether a finding about the model of that path is accepted."""
        return (
            names_rule(self.rule, BY_ID[finding.rule])
            and (self.tensor is None or fnmatchcase(finding.tensor or "", self.tensor))
            and (self.model is None or fnmatchcase(path, f"*{self.model}"))
        )


@dataclass(frozen=True)
class Policy:
    """What an ignore file says.

    Attributes:
        accepted: findings that are known.
        severities: by the beginning of a rule's id.
    """

    accepted: tuple[Ignore, ...] = ()
    severities: Mapping[str, Severity] = field(default_factory=dict)


_KEYS = tuple(f.name for f in fields(Ignore))


def find_policy(folder: Path) -> Policy:
    """What is said in ``.ggufnorm-ignore.toml`` in a folder, or of its ``pyproject.toml``.

    A ``pyproject.toml`` that does not name ggufnorm is somebody else's: whatever is wrong
    with it, it accepts nothing.

    Raises:
        ConfigError: see :func:`read_policy`.
    """
    if (folder / IGNORE_FILE).is_file():
        return read_policy(folder / IGNORE_FILE)
    shared = folder / "pyproject.toml"
    return read_policy(shared) if _names_us(shared) else Policy()


def baseline(path: Path, reports: Iterable[AuditReport]) -> list[Ignore]:
    """Entries for all findings of audits that were saved.

    Args:
        path: of the saved result; the reason names it.
        reports: what it holds.
    """
    return [
        Ignore(
            f.rule,
            f"in the baseline {path.name}",
            escape(f.tensor or ""),
            escape(PurePath(report.path).name),
        )
        for report in reports
        for f in report.findings
    ]


def _names_us(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return b"ggufnorm" in file.read(_MAX_BYTES)
    except OSError:
        return False


def read_ignores(path: Path) -> list[Ignore]:
    """The accepted findings of an ignore file.

    Raises:
        ConfigError: see :func:`read_policy`.
    """
    return list(read_policy(path).accepted)


def read_policy(path: Path) -> Policy:
    """What an ignore file says.

    Raises:
        ConfigError: it cannot be read, is not TOML, or an entry is not as described in
            the module; above all, if it gives no reason.
    """
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ConfigError(f"{path}: more than {_MAX_BYTES >> 20} MiB: no ignore file")
        if _LONG_KEY.search(_STRING.sub(b"s", text)):  # tomllib's time and memory are quadratic
            raise ConfigError(f"{path}: a key has more than {_MAX_PARTS} parts")
        data = tomllib.loads(text.decode())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}".splitlines()[0]) from None
    if path.name == "pyproject.toml":
        for key in ("tool", "ggufnorm"):
            data = data.get(key, {}) if isinstance(data, dict) else {}
    entries = data.get("ignore", []) if isinstance(data, dict) else []
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: `ignore` must be tables: write [[ignore]]")
    accepted = tuple(_entry(path, i, entry) for i, entry in enumerate(entries, 1))
    severities = data.get("severity", {}) if isinstance(data, dict) else {}
    if not isinstance(severities, dict):
        raise ConfigError(f"{path}: `severity` must be a table: write [severity]")
    return Policy(accepted, dict(_severity(path, *item) for item in severities.items()))


def _severity(path: Path, rule: str, severity: Any) -> tuple[str, Severity]:
    if severity not in SEVERITIES:
        raise ConfigError(
            f"{path}: {rule} of `severity` is {severity!r}: it must be one of"
            f" {', '.join(SEVERITIES)}"
        )
    return rule.upper(), severity


def _entry(path: Path, number: int, entry: Any) -> Ignore:
    where = f"{path}: entry {number} of `ignore`"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is no table: write [[ignore]]")
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}: it may have {', '.join(_KEYS)}")
    for key, value in entry.items():
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{where}: {key!r} must be a text that is not empty")
    for key in ("rule", "reason"):
        if key not in entry:
            raise ConfigError(f"{where} gives no {key}: every accepted finding needs one")
    return Ignore(**entry)


def split_ignored(
    findings: Sequence[Finding], accepted: Sequence[Ignore], path: str
) -> tuple[list[Finding], list[Ignored]]:
    """What is left of the findings, and what the first entry that covers it accepts."""
    left: list[Finding] = []
    ignored: list[Ignored] = []
    for finding in findings:
        entry = next((e for e in accepted if e.covers(finding, path)), None)
        if entry is None:
            left.append(finding)
        else:
            ignored.append(Ignored(finding, entry.reason))
    return left, ignored
