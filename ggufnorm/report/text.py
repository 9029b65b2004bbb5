"""Words and numbers that text and Markdown reports share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ggufnorm.core.fingerprint import OFFSETS, OffsetFingerprint
from ggufnorm.core.model import Inspection, NormKind, NormSite, WeightStatistics

_BLOCKS = "▁▂▃▄▅▆▇█"

KIND_NAMES: dict[NormKind | None, str] = {
    "rms": "RMSNorm",
    "layer": "LayerNorm",
    "group": "GroupNorm",
    "l2": "L2 norm",
    None: "unknown norm",
}


def printable(text: str) -> str:
    """Text from a file without characters that could steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(value: float | None, digits: int = 3) -> str:
    """A number in as few characters as ``digits`` significant digits allow; – for none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.{digits}g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.{digits - 1}e}"


def sparkline(histogram: Sequence[int]) -> str:
    """A histogram as a row of blocks: a dot is an empty bin."""
    most = max(histogram, default=0)
    return "".join(_BLOCKS[-(-n * len(_BLOCKS) // most) - 1] if n else "·" for n in histogram)


def title(inspection: Inspection) -> str:
    """What the file is, in one line."""
    facts = [inspection.architecture or "unknown architecture"]
    facts += [inspection.name] if inspection.name else []
    facts += [f"{inspection.n_layers} layers"] if inspection.n_layers is not None else []
    facts += [inspection.file_type] if inspection.file_type else []
    facts += [counted(len(inspection.norms), "norm")]
    return printable(f"{Path(inspection.path).name}: {', '.join(facts)}")


def counted(n: int, noun: str) -> str:
    """``1 norm``, ``2 norms``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


NORM_COLUMNS = ("Layer", "Norm", "Kind", "Epsilon", "Type", "Shape", "Mean", "RMS", "Min", "Max",
                "Weights", "Outlier", "Tensor")  # fmt: skip


def norm_row(norm: NormSite) -> dict[str, str]:
    """A norm's cells by :data:`NORM_COLUMNS`."""
    w = norm.weight
    figures = (w.mean, w.rms, w.minimum, w.maximum) if w else (None,) * 4
    cells = [
        "–" if norm.layer is None else str(norm.layer),
        printable(norm.role) + ("*" if norm.inferred else ""),
        (norm.kind or "?") + ("+bias" if norm.bias else ""),
        "?" if norm.epsilon is None else f"{norm.epsilon:g}",
        norm.dtype or "–",
        "×".join(map(str, norm.shape)) or "–",
        *(number(f) for f in figures),
        sparkline(w.histogram) if w else "",
        outlier_cell(w) if w else "",
        printable(norm.tensor or "(no weight)"),
    ]
    return dict(zip(NORM_COLUMNS, cells, strict=True))


def outlier_cell(weight: WeightStatistics) -> str:
    """Channel and value of the most extreme outlier, and how many more there are."""
    if weight.non_finite:
        return f"{weight.non_finite} NaN/inf"
    if not weight.outliers:
        return ""
    first, more = weight.outliers[0], weight.n_outliers - 1
    return f"{first.index}:{number(first.value)}" + (f" +{more}" if more else "")


def summary(inspection: Inspection) -> Iterator[str]:
    """Kinds, epsilons and the offset fingerprint, one line each."""
    norms = inspection.norms
    if not norms:
        yield "No norms: those without weights are listed for known architectures only."
    for (kind, epsilon), n in Counter((x.kind, _epsilon(x)) for x in norms).items():
        yield printable(f"{counted(n, KIND_NAMES[kind])}, {epsilon}")
    yield from _offsets([n.weight.offset for n in norms if n.weight])


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


def notes(inspection: Inspection) -> Iterator[str]:
    """What is unknown or unusual, each with the number of norms that it holds for."""
    for note, n in Counter(x.note for x in inspection.norms if x.note).items():
        yield f"{counted(n, 'norm')}: {printable(note)}"
    if any(x.inferred for x in inspection.norms):
        yield ("* gguf-py does not know this architecture or tensor: read by the shape of its name")
