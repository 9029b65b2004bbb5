"""Inspections as comma-separated values: one row per norm, one header."""

from __future__ import annotations

import csv
import io

from ggufnorm.core.model import Inspection, InspectionSet, NormSite

COLUMNS = (
    "path", "architecture", "tensor", "layer", "role", "kind", "epsilon", "epsilon_key", "groups",
    "dtype", "shape", "bias", "mean", "rms", "minimum", "maximum", "non_finite", "n_outliers",
    "outlier_index", "outlier_value", "offset", "inferred", "note",
)  # fmt: skip
"""Names as in the JSON document; what is null there is empty here."""


def to_csv(result: Inspection | InspectionSet) -> str:
    """The norms of one or several models; numbers in full, shapes as ``16x4``."""
    models = (result,) if isinstance(result, Inspection) else result.models
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for model in models:
        for norm in model.norms:
            writer.writerow([model.path, model.architecture, *_row(norm)])
    return out.getvalue()


def _row(n: NormSite) -> list[object]:
    w = n.weight
    outlier = w.outliers[0] if w and w.outliers else None
    return [
        n.tensor, n.layer, n.role, n.kind, n.epsilon, n.epsilon_key, n.groups,
        n.dtype, "x".join(map(str, n.shape)), n.bias,
        *((w.mean, w.rms, w.minimum, w.maximum, w.non_finite, w.n_outliers) if w else [None] * 6),
        outlier and outlier.index, outlier and outlier.value, w and w.offset.offset,
        str(n.inferred).lower(), n.note,
    ]  # fmt: skip
