"""Words and numbers that text and Markdown reports share."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ggufnorm.core.attribution import Restoration, Share
from ggufnorm.core.diff import NormDifference, TensorDifference
from ggufnorm.core.drift import DriftReport, ModelFacts
from ggufnorm.core.fingerprint import OFFSETS, OffsetFingerprint
from ggufnorm.core.model import Inspection, NormKind, NormSite, WeightStatistics
from ggufnorm.core.printable import printable as printable
from ggufnorm.core.recipe import RecipeReport

_BLOCKS = "▁▂▃▄▅▆▇█"

KIND_NAMES: dict[NormKind | None, str] = {
    "rms": "RMSNorm",
    "layer": "LayerNorm",
    "group": "GroupNorm",
    "l2": "L2 norm",
    None: "unknown norm",
}


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


def halved(histogram: Sequence[int]) -> list[int]:
    """A histogram of half as many bins."""
    return [a + b for a, b in zip(histogram[::2], histogram[1::2], strict=False)]


def bars(values: Sequence[float], most: int = 40) -> str:
    """Values as a row of blocks, from zero to the largest.

    Args:
        values: not negative, in order.
        most: blocks; of more values, neighbours share one, which shows the largest of them.
    """
    each = max(1, -(-len(values) // most))
    values = [max(values[i : i + each]) for i in range(0, len(values), each)]
    top = max(values, default=0.0)
    if top <= 0:
        return _BLOCKS[0] * len(values)
    last = len(_BLOCKS) - 1
    return "".join(_BLOCKS[max(0, min(last, int(len(_BLOCKS) * v / top)))] for v in values)


def model_line(m: ModelFacts) -> str:
    """A model file in one line."""
    parts = [Path(m.path).name, m.architecture, m.file_type or "", f"{m.n_bytes / 1e6:,.1f} MB"]
    return printable("  ".join(p for p in parts if p))


def plus_minus(value: float | None, error: float | None, digits: int, unit: float = 1.0) -> str:
    """A value with its standard error; – for none."""
    if value is None:
        return "–"
    text = f"{value * unit:.{digits}f}"
    return text if error is None else f"{text} ± {error * unit:.{digits}f}"


def types(before: str | None, after: str | None) -> str:
    """A tensor's type, or both if they differ: ``F16→Q4_K``."""
    return (after or "–") if before in (None, after) else f"{before}→{after or '–'}"


def side_by_side_row(report: DriftReport) -> dict[str, str]:
    """A report in a table of several."""
    s, layers = report.logits, report.localisation.layers
    own = max((o.local.rel_l2 or 0.0 for o in report.operations), default=None)
    culprit = report.culprit
    return {
        "Model": printable(Path(report.quant.path).name),
        "Size": f"{report.quant.n_bytes / 1e6:,.1f} MB",
        "KL divergence": number(s.mean_kld if s else None),
        "Same top": "–" if s is None or s.same_top1 is None else f"{s.same_top1:.2%}",
        "Perplexity": "–" if s is None or s.ppl_ratio is None else f"× {s.ppl_ratio:.4f}",
        "Own": number(own),
        "Drift": number(layers[-1].rel_l2 if layers else None),
        "By layer": bars([layer.rel_l2 for layer in layers], 16),
        "Culprit": "none" if culprit is None else printable(culprit.tensor or culprit.node),
    }


def percent(share: float | None) -> str:
    """A share of one, in percent; – for none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def share_row(s: Share) -> dict[str, str]:
    """What a tensor, or several together, cost at the output."""
    return {
        "Layer": layer_cell(s.layer),
        "Tensor": printable(s.tensor or f"{len(s.tensors)} × {s.role or 'tensors'}"),
        "Type": s.dtype or "mixed",
        "KL": number(s.kld),
        "±": number(s.kld_se, 2),
        "Share": percent(s.share),
        "per MB": number(s.kld_per_mb),
        "Own": number(s.local_rel_l2),
    }


def restoration_row(r: Restoration) -> dict[str, str]:
    """What is left if a norm's input is made the reference's."""
    return {
        "Layer": layer_cell(r.layer),
        "Norm": printable(r.role),
        "KL": number(r.kld),
        "±": number(r.kld_se, 2),
        "Left": percent(r.share),
    }


def command_lines(report: RecipeReport) -> Iterator[str]:
    """A recipe as a command line to paste, broken into lines."""
    yield "llama-quantize \\"
    if report.imatrix:
        name = "IMATRIX" if report.imatrix == "auto" else shlex.quote(printable(report.imatrix))
        yield f"  --imatrix {name} \\"
    for argument in report.arguments:
        yield f"  --tensor-type {shlex.quote(printable(argument))} \\"
    reference = shlex.quote(printable(report.reference.path))
    yield f"  {reference} OUT.gguf {printable(report.file_type)}"


def norm_difference_row(n: NormDifference) -> dict[str, str]:
    """A norm that differs between two files."""
    return {
        "Tensor": printable(n.tensor),
        "Layer": layer_cell(n.layer),
        "Types": types(n.dtype_a, n.dtype_b),
        "Differ": f"{n.n_differing:,}/{n.n_elements:,}",
        "Max ulp": "NaN" if n.max_ulp is None else f"{n.max_ulp:,}",
        "Max |Δ|": number(n.max_abs),
        "row:col": "–" if n.max_abs is None else f"{n.max_abs_row}:{n.max_abs_column}",
        "Rel L2": number(n.rel_l2),
    }


def tensor_difference_row(t: TensorDifference) -> dict[str, str]:
    """A tensor that differs between two files."""
    return {
        "Tensor": printable(t.tensor),
        "Types": types(t.dtype_a, t.dtype_b),
        "Size": f"{100 * t.share:.1f} %",
        "Rel L2": number(t.rel_l2),
        "NMSE": number(t.nmse),
        "SQNR dB": decibels(t.sqnr_db),
        "Cosine": "–" if t.cosine is None else f"{t.cosine:.6f}",
        "Max |Δ|": number(t.max_abs),
        "row:col": "–" if t.max_abs is None else f"{t.max_abs_row}:{t.max_abs_column}",
    }


def decibels(value: float | None) -> str:
    """A ratio in dB; – for none."""
    return "–" if value is None else f"{value:.1f}"


def layer_cell(layer: int | None) -> str:
    """A block number; – for outside the blocks."""
    return "–" if layer is None else str(layer)


_VALUE_WIDTH = 24


def value_cell(value: Any) -> str:
    """A value of the metadata, cut if it is long."""
    if value is None:
        return "–"
    text = printable(f"{value:g}" if isinstance(value, float) else str(value))
    return text if len(text) <= _VALUE_WIDTH else f"{text[: _VALUE_WIDTH - 1]}…"


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
