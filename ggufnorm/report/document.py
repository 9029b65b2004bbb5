"""Results as one versioned document of plain data.

Names in a document are a promise to scripts: new ones come, none is renamed or removed
within a version. ``docs/schema/`` holds a JSON Schema of each kind.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Container, Sequence
from typing import Any

from ggufnorm.core.audit import AuditReport, AuditSet
from ggufnorm.core.drift import DriftReport, DriftSet
from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.core.result import Result
from ggufnorm.errors import InputError
from ggufnorm.report.kinds import BY_NAME, kind_of

VERSION = 1
MAX_BYTES = 1 << 28
"""Of a document that is read."""

_QUOTED = 30
_LONGEST = 20  # characters of an integer of 64 bits
_LARGEST = 1e150
"""No number of a document is larger: their squares are finite too."""

UNWRITTEN = frozenset({"cost"})
"""Fields that stand in no document: the same job gives the same document."""


def document(result: Result) -> dict[str, Any]:
    """A result as a JSON-like dict that begins with ``schema`` and ``version``."""
    return {
        "schema": kind_of(result).name,
        "version": VERSION,
        **to_plain(result, leave_out=UNWRITTEN),
    }


def to_json(result: Result) -> str:
    """The document as JSON text; numbers that JSON does not have are null."""
    return json.dumps(document(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str, name: str) -> Result:
    """The inverse of :func:`to_json`.

    Args:
        text: the document.
        name: of the document, for messages.

    Raises:
        InputError: it is not a document of ggufnorm's, is damaged, or is newer than this
            version of ggufnorm.
    """
    data = _parsed(text, name)
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or not schema.startswith("ggufnorm/"):
        raise InputError(f"{name}: not a ggufnorm document: write one with --format json")
    version = data.get("version")
    if schema not in BY_NAME or (isinstance(version, int) and version > VERSION):
        raise InputError(
            f"{name}: {reprlib.repr(schema)}, version {reprlib.repr(version)}, is not known to this"
            " ggufnorm: upgrade it"
        )
    if version != VERSION:
        raise InputError(f"{name}: damaged document: version {reprlib.repr(version)}")
    try:
        return from_plain(BY_NAME[schema].result, data)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name}: damaged document: {error}") from None


def from_line(text: str, name: str, others: Container[str]) -> Result | dict[str, Any]:
    """A document, or the plain data of one whose schema is among ``others``.

    Raises:
        InputError: as :func:`from_json`.
    """
    data = _parsed(text, name)
    if isinstance(data, dict) and data.get("schema") in others:
        return data
    return from_json(text, name)


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite, parse_int=_integer)
    except _RangeError as error:
        raise InputError(f"{name}: damaged document: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not a ggufnorm document: {error}") from None


class _RangeError(ValueError):
    """A number that no report holds."""


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_QUOTED]} is not a finite number")
    if abs(value) > _LARGEST:
        raise _RangeError(f"{text[:_QUOTED]} is out of range")
    return value


def _integer(text: str) -> int:
    if len(text) > _LONGEST:
        raise _RangeError(f"{text[:_QUOTED]}… is out of range")
    return int(text)


def side_by_side(results: Sequence[Result]) -> Result:
    """Several results as one.

    Raises:
        InputError: they are not of one kind, or of a kind that is not shown side by side.
    """
    if len(results) == 1:
        return results[0]
    inspections = [r for r in results if isinstance(r, (Inspection, InspectionSet))]
    if len(inspections) == len(results):
        return InspectionSet(
            tuple(m for r in inspections for m in _models(r)),
            tuple(s for r in inspections if isinstance(r, InspectionSet) for s in r.failed),
        )
    drifts = [r for r in results if isinstance(r, (DriftReport, DriftSet))]
    if len(drifts) == len(results):
        return DriftSet(tuple(d for r in drifts for d in _reports(r)))
    audits = [r for r in results if isinstance(r, (AuditReport, AuditSet))]
    if len(audits) == len(results):
        return AuditSet(
            tuple(a for r in audits for a in ((r,) if isinstance(r, AuditReport) else r.models)),
            tuple(s for r in audits if isinstance(r, AuditSet) for s in r.failed),
            tuple(s for r in audits if isinstance(r, AuditSet) for s in r.passed_over),
        )
    kinds = ", ".join(sorted({kind_of(r).name for r in results}))
    raise InputError(f"cannot show {kinds} side by side: give documents of inspect, drift or audit")


def _models(result: Inspection | InspectionSet) -> tuple[Inspection, ...]:
    return (result,) if isinstance(result, Inspection) else result.models


def _reports(result: DriftReport | DriftSet) -> tuple[DriftReport, ...]:
    return (result,) if isinstance(result, DriftReport) else result.reports
