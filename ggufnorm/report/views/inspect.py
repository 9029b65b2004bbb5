"""The view of an inspection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ggufnorm.core.fingerprint import OFFSETS, OffsetFingerprint
from ggufnorm.core.model import (
    Inspection,
    InspectionSet,
    NormKind,
    NormSite,
    TensorFacts,
    TypesInside,
    WeightStatistics,
)
from ggufnorm.report.formatting import (
    counted,
    integer,
    layer,
    number,
    numeric,
    shape_text,
    sparkline,
)
from ggufnorm.report.view import (
    Cell,
    Column,
    Columns,
    Export,
    Report,
    Section,
    Sentence,
    table,
)
from ggufnorm.report.views.common import skipped_section, unread_reports

_KIND_NAMES: dict[NormKind | None, str] = {
    "rms": "RMSNorm",
    "layer": "LayerNorm",
    "group": "GroupNorm",
    "l2": "L2 norm",
    None: "unknown norm",
}


def inspection_view(result: Inspection) -> tuple[Report, ...]:
    """The norms of a file, and what they have in common."""
    said = (*_summary(result), *types_inside(result.types), *_notes(result))
    tensors = result.tensors or ()
    n_bytes = sum(t.n_bytes for t in tensors)
    norms = table("norms", _NORMS, result.norms, export=Export(_EXPORTED, tuple(_exported(result))))
    return (
        Report(
            _title(result),
            subject=result.path,
            verdict=said,
            sections=(
                Section("", charts=("weights",), table=norms),
                skipped_section(result.skipped),
                Section(
                    f"{counted(len(tensors), 'tensor')}, {n_bytes:,} bytes",
                    table=table("tensors", _TENSORS, tensors),
                ),
            ),
        ),
    )


def inspection_set_view(result: InspectionSet) -> tuple[Report, ...]:
    """Files that could not be read, then each of the others."""
    models = (report for model in result.models for report in inspection_view(model))
    n = len(result.models) + len(result.failed)
    return (*unread_reports(result.failed, n), *models)


def _title(inspection: Inspection) -> str:
    facts = [inspection.architecture or "unknown architecture"]
    facts += [inspection.name] if inspection.name else []
    facts += [f"{inspection.n_layers} layers"] if inspection.n_layers is not None else []
    facts += [inspection.file_type] if inspection.file_type else []
    facts += [counted(len(inspection.norms), "norm")]
    return f"{Path(inspection.path).name}: {', '.join(facts)}"


def _statistic(name: str) -> Callable[[NormSite], Cell]:
    """A field of the weight's statistics as a cell."""
    return lambda norm: numeric(getattr(norm.weight, name) if norm.weight else None)


def _type(norm: NormSite) -> Cell:
    usual = norm.dtype in (None, "F32")
    return Cell(norm.dtype or "–", norm.dtype, "neutral" if usual else "warning")


def _outlier(norm: NormSite) -> Cell:
    """Channel and value of the most extreme outlier, and how many more there are."""
    weight = norm.weight
    if weight is None:
        return Cell("")
    if weight.non_finite:
        return Cell(f"{weight.non_finite} NaN/inf", status="error")
    return Cell(_most_extreme(weight))


def _most_extreme(weight: WeightStatistics) -> str:
    if not weight.outliers:
        return ""
    first, more = weight.outliers[0], weight.n_outliers - 1
    return f"{first.index}:{number(first.value)}" + (f" +{more}" if more else "")


_NORMS: Columns[NormSite] = (
    Column("Layer", lambda n: layer(n.layer)),
    Column("Norm", lambda n: n.role + ("*" if n.inferred else ""), left=True, least=24),
    Column("Kind", lambda n: (n.kind or "?") + ("+bias" if n.bias else ""), left=True),
    Column(
        "Epsilon",
        lambda n: Cell("?") if n.epsilon is None else Cell(f"{n.epsilon:g}", n.epsilon),
        priority=3,
    ),
    Column("Type", _type, left=True, priority=5),
    Column("Shape", lambda n: shape_text(n.shape), priority=6),
    Column("Mean", _statistic("mean"), priority=7),
    Column("RMS", _statistic("rms"), priority=8),
    Column("Min", _statistic("minimum"), priority=2),
    Column("Max", _statistic("maximum"), priority=1),
    Column(
        "Weights",
        lambda n: sparkline(n.weight.histogram) if n.weight else "",
        left=True,
        priority=4,
    ),
    Column("Outlier", _outlier, left=True),
    Column("Tensor", lambda n: n.tensor or "(no weight)", left=True, priority=9),
)

_TENSORS: Columns[TensorFacts] = (
    Column("Tensor", lambda t: t.name, left=True, least=25),
    Column("Type", lambda t: t.dtype, left=True),
    Column("Shape", lambda t: shape_text(t.shape)),
    Column("Bytes", lambda t: integer(t.n_bytes)),
    Column("Offset", lambda t: integer(t.offset), priority=1),
)


# -- sentences ---------------------------------------------------------------------------


def _summary(inspection: Inspection) -> Iterator[Sentence]:
    """Kinds, epsilons and the offset fingerprint, one line each."""
    norms = inspection.norms
    if not norms:
        yield Sentence("No norms: those without weights are listed for known architectures only.")
    for (kind, epsilon), n in Counter((x.kind, _epsilon(x)) for x in norms).items():
        yield Sentence(f"{counted(n, _KIND_NAMES[kind])}, {epsilon}")
    yield from map(Sentence, _offsets([n.weight.offset for n in norms if n.weight]))


def types_inside(found: TypesInside | None) -> Iterator[Sentence]:
    """The types of a file's tensors, and where its label says otherwise."""
    if found is None or found.bits_per_weight is None:
        return
    yield Sentence(
        f"Types inside: {type_counts(found)}; {found.n_weights:,} weights at"
        f" {found.bits_per_weight:.2f} bits"
    )
    if found.note:
        yield Sentence(found.note, "warning")


def type_counts(found: TypesInside) -> str:
    """``81 Q5_0, 27 Q4_K``: of the matrices, and of all tensors where there are none."""
    counts = found.matrices or found.vectors
    return ", ".join(f"{c.n_tensors:,} {c.dtype}" for c in counts)


def _epsilon(norm: NormSite) -> str:
    if norm.epsilon is None:
        return "epsilon unknown"
    return f"epsilon {norm.epsilon:g} ({norm.epsilon_key})"


def _offsets(found: Sequence[OffsetFingerprint]) -> Iterator[str]:
    alike: dict[tuple[int | None, str], list[OffsetFingerprint]] = {}
    for fingerprint in found:
        alike.setdefault((fingerprint.offset, fingerprint.note), []).append(fingerprint)
    for (offset, note), group in alike.items():
        weights = counted(len(group), "weight")
        if offset is not None:
            baked = f"{offset:+d}" if offset else "no offset"
            yield f"{weights}: BF16 values, {baked} was baked in"
            continue
        shares = "" if group[0].fits else f" ({_shares(group)})"
        yield f"{weights}: {note}{shares}: they do not tell whether an offset was baked in"


def _shares(group: Sequence[OffsetFingerprint]) -> str:
    """How many of the elements are BF16 with each offset taken off; never rounded up to all."""
    parts = []
    for k in OFFSETS:
        share = sum(f.bf16[str(k)] for f in group) / len(group)
        parts.append(f"{int(share * 100)}% of {f'w{-k:+d}' if k else 'w'}")
    return ", ".join(parts)


def _notes(inspection: Inspection) -> Iterator[Sentence]:
    """What is unknown or unusual, each with the number of norms that it holds for."""
    for note, n in Counter(x.note for x in inspection.norms if x.note).items():
        yield Sentence(f"{counted(n, 'norm')}: {note}", "warning")
    if any(x.inferred for x in inspection.norms):
        yield Sentence(
            "* gguf-py does not know this architecture or tensor: read by the shape of its name",
            "warning",
        )


# -- for scripts -------------------------------------------------------------------------

_EXPORTED = (
    "path", "architecture", "tensor", "layer", "role", "kind", "epsilon", "epsilon_key", "groups",
    "dtype", "shape", "bias", "mean", "rms", "minimum", "maximum", "non_finite", "n_outliers",
    "outlier_index", "outlier_value", "offset", "inferred", "note",
)  # fmt: skip
"""Names as in the JSON document; what is null there is empty in CSV."""


def _exported(model: Inspection) -> Iterator[tuple[object, ...]]:
    for n in model.norms:
        w = n.weight
        outlier = w.outliers[0] if w and w.outliers else None
        yield (
            model.path, model.architecture,
            n.tensor, n.layer, n.role, n.kind, n.epsilon, n.epsilon_key, n.groups,
            n.dtype, "x".join(map(str, n.shape)), n.bias,
            *((w.mean, w.rms, w.minimum, w.maximum, w.non_finite, w.n_outliers) if w
              else [None] * 6),
            outlier and outlier.index, outlier and outlier.value, w and w.offset.offset,
            str(n.inferred).lower(), n.note,
        )  # fmt: skip
