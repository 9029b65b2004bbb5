"""Results as one versioned document of plain data.

Names in a document are a promise to scripts: new ones come, none is renamed or removed
within a version.
"""

from __future__ import annotations

import json
from typing import Any

from ggufnorm.core.audit import AuditReport, AuditSet
from ggufnorm.core.diff import DiffReport
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.frameworks import FrameworksReport
from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.core.plain import to_plain

Result = (
    Inspection
    | InspectionSet
    | DriftReport
    | DiffReport
    | AuditReport
    | AuditSet
    | FrameworksReport
)

VERSION = 1
_SCHEMAS: dict[type, str] = {
    Inspection: "ggufnorm/inspect",
    InspectionSet: "ggufnorm/inspect-set",
    DriftReport: "ggufnorm/drift",
    DiffReport: "ggufnorm/diff",
    AuditReport: "ggufnorm/audit",
    AuditSet: "ggufnorm/audit-set",
    FrameworksReport: "ggufnorm/frameworks",
}


def document(result: Result) -> dict[str, Any]:
    """A result as a JSON-like dict that begins with ``schema`` and ``version``.

    The same job gives the same document: what a run cost is left out.
    """
    body = {name: value for name, value in to_plain(result).items() if name != "cost"}
    return {"schema": _SCHEMAS[type(result)], "version": VERSION, **body}


def to_json(result: Result) -> str:
    """The document as JSON text; numbers that JSON does not have are null."""
    return json.dumps(document(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
