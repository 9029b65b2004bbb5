"""What explains that a tensor does not have the values that its source gives.

The likeliest mistakes are tried in turn, from the one that explains all values to the one
that explains some. Each looks at a bounded part of the tensor: a whole one where it is
small, the first block of rows where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.audit.source.coarse import COARSE, NEAR
from ggufnorm.analysis.audit.source.compare import Measured, allowed, glance, is_near, pick, sample
from ggufnorm.analysis.audit.source.cost import fresh
from ggufnorm.analysis.audit.source.layout import Layout, Values
from ggufnorm.core.transforms import Transform
from ggufnorm.core.transforms import explain as explain_vector
from ggufnorm.formats.dequantize import read_rows
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ggufnorm.formats.model_file import ModelFile

Kind = Literal[
    "order", "zero", "non-finite", "bytes", "scale", "elsewhere", "rows", "columns", "rounding",
    "experts", "partial", "low-rank", "values",
]  # fmt: skip
"""How a tensor's values come from the source's:

- ``order``: in another order that converters know; ``rows``, ``columns``: in some other order;
- ``zero``: all of them are zero; ``non-finite``: some are NaN or infinite;
- ``bytes``: each one's bytes are reversed; ``scale``: times a constant;
- ``elsewhere``: they are another tensor's; ``rounding``: by way of a coarser type;
- ``experts``: some experts' are wrong; ``partial``: some rows are;
- ``low-rank``: they differ by a matrix of low rank; ``values``: nothing explains them.
"""

_MOST = 1 << 22
"""Most elements that an explanation looks at."""

_DIMENSIONS = 48
"""Of the projection that tells which row is which."""

_MOST_ROWS = 8192
"""Most rows among which one is looked for."""

_SKETCH = 384
"""Rows and columns of a difference whose rank is looked for."""

_MOST_RANK = 96

_FEW = 8
"""Rows are few where there are so many times as many."""

_NOISY = 0.002
"""Relative error of a type from which on its noise hides where singular values end."""

_GAP = 2.5
"""How many times the last singular value that counts is the next."""

_COARSE = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "MXFP4")


@dataclass(frozen=True)
class Explanation:
    """How a tensor's values come from the source's.

    Attributes:
        kind: in one word.
        detail: what tells one pattern from another of the kind: a factor, an order.
        message: in words that follow the tensor's name.
        evidence: the figures, as JSON values.
        other: the tensor whose values they are, of kind ``elsewhere``.
    """

    kind: Kind
    detail: str
    message: str
    evidence: dict[str, Any] = field(default_factory=dict)
    other: str | None = None


@dataclass(frozen=True)
class Case:
    """A tensor whose values are not what its source gives.

    Attributes:
        file: that has it.
        tensor: its name.
        layout: what it should have.
        measured: how far it is from that; None if the shapes do not allow to tell.
        others: what other tensors of its shape should have, the likeliest first.
        head_size: rows that belong together.
    """

    file: ModelFile
    tensor: str
    layout: Layout
    measured: Measured
    others: Mapping[str, Layout]
    head_size: int

    @property
    def dtype(self) -> str:
        """Of the file's tensor."""
        return self.file.tensors[self.tensor].dtype

    @property
    def limit(self) -> float:
        """The relative error that the type explains."""
        return allowed(self.measured.cost)

    def block(self) -> tuple[Values, Values]:
        """The first rows of the file's tensor, and those that it should have."""
        columns = self.file.tensors[self.tensor].shape[0]
        n = max(1, min(self.layout.n_rows, _MOST // max(1, columns)))
        return read_rows(self.file, self.tensor, 0, n), self.layout.read(0, n)


def explain(case: Case) -> Explanation:
    """Tell how a tensor's values come from the source's.

    Raises:
        InputError: something cannot be read.
    """
    found, expected = case.block()
    with np.errstate(all="ignore"):
        if case.layout.n_rows == 1 and case.dtype in ("F32", "F16", "BF16"):
            vector = _vector(case, found, expected)
            if vector is not None:
                return vector
        for attempt in _ATTEMPTS:
            explanation = attempt(case, found, expected)
            if explanation is not None:
                return explanation
        return _unexplained(case, found, expected)


Attempt = Callable[[Case, Values, Values], Explanation | None]


def _vector(case: Case, found: Values, expected: Values) -> Explanation | None:
    others = {n: o.read(0, 1).ravel() for n, o in case.others.items() if o.n_rows == 1}
    told = explain_vector(found, expected, Transform(), others=others)
    kinds: dict[str, Kind] = {
        "scale": "scale", "bytes": "bytes", "permutation": "rows", "elsewhere": "elsewhere",
        "rounding": "rounding", "partial": "partial", "values": "values", "offset": "values",
        "affine": "values",
    }  # fmt: skip
    if told.kind not in kinds or not found.any():
        return None
    detail = f"{told.evidence.get('scale', '')}{told.evidence.get('order') or ''}"
    return Explanation(kinds[told.kind], detail, told.message, told.evidence, told.other)


def _error(found: Values, expected: Values) -> float:
    power = float(np.linalg.norm(expected.astype(np.float64)))
    distance = float(np.linalg.norm(found.astype(np.float64) - expected))
    return distance / power if power else float(distance > 0)


def _zero(case: Case, found: Values, _expected: Values) -> Explanation | None:
    if found.any() or not np.isfinite(case.measured.error) or case.measured.error < 0.99:
        return None
    if pick(case.file, case.tensor, sample(case.layout.n_rows)).any():
        return None
    return Explanation("zero", "", "is zero everywhere")


def _non_finite(case: Case, found: Values, expected: Values) -> Explanation | None:
    if np.isfinite(case.measured.error):
        return None
    bytes_ = _bytes(case, found, expected)
    if bytes_ is not None:
        return bytes_
    n = int((~np.isfinite(found)).sum())
    message = "has values that are NaN or infinite, and its source has none"
    return Explanation("non-finite", "", message, {"n_in_block": n})


def _bytes(case: Case, found: Values, expected: Values) -> Explanation | None:
    kinds = {"F32": np.float32, "F16": np.float16}
    if case.dtype == "BF16":
        a = (found.view(np.uint32) >> 16).astype(np.uint16).byteswap()
        turned = (a.astype(np.uint32) << 16).view(np.float32)
    elif case.dtype in kinds:
        turned = found.astype(kinds[case.dtype]).byteswap().astype(np.float32)
    else:
        return None
    if not is_near(turned, expected, case.dtype):
        return None
    return Explanation("bytes", "", "has the bytes of each value reversed")


def _scale(case: Case, found: Values, expected: Values) -> Explanation | None:
    power = float(np.vdot(expected, expected))
    factor = float(np.vdot(expected, found)) / power if power else 0.0
    if factor == 0 or abs(factor - 1) < max(1e-4, case.limit):
        return None
    if _error(found, factor * expected) > case.limit:
        return None
    shown = f"{factor:.3g}"
    return Explanation("scale", shown, f"is {shown} times the source's", {"scale": factor})


def _elsewhere(case: Case, _found: Values, _expected: Values) -> Explanation | None:
    for name, layout in case.others.items():
        if layout.n_rows == case.layout.n_rows and glance(case.file, case.tensor, layout):
            return Explanation("elsewhere", "", f"holds the values of {name}", {"of": name}, name)
    return None


def _rows(case: Case, found: Values, expected: Values) -> Explanation | None:
    order = _matching(found, expected, case)
    if order is None:
        return None
    moved = int((order != np.arange(len(order))).sum())
    blocks = _moves_blocks(order, case.head_size)
    what = f"blocks of {case.head_size} rows" if blocks else "rows"
    detail = "heads" if blocks else "rows"
    message = f"has the source's {what} in another order ({moved:,} of {len(order):,} rows moved)"
    return Explanation("rows", detail, message, {"moved": moved, "first": order[:64].tolist()})


def _columns(case: Case, found: Values, expected: Values) -> Explanation | None:
    if found.shape[0] < 4:
        return None
    order = _nearest(found.T, expected.T)
    if order is None or len(np.unique(order)) < len(order):
        return None
    if _error(found, expected[:, order]) > case.limit:
        return None
    moved = int((order != np.arange(len(order))).sum())
    message = f"has the source's columns in another order ({moved:,} of {len(order):,} moved)"
    return Explanation("columns", "", message, {"moved": moved, "first": order[:64].tolist()})


def _matching(found: Values, expected: Values, case: Case) -> NDArray[np.intp] | None:
    if found.shape[1] < 4:
        return None
    order = _nearest(found, expected)
    if order is None or (order == np.arange(len(order))).all():
        return None
    return order if is_near(found, expected[order], case.dtype) else None


def _nearest(found: Values, expected: Values) -> NDArray[np.intp] | None:
    """For each row the expected one that points the same way."""
    if len(expected) < 2 or len(expected) > _MOST_ROWS:
        return None
    axes = np.random.default_rng(0).normal(size=(found.shape[1], _DIMENSIONS))
    a, b = found @ axes, expected @ axes
    a /= np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30)
    b /= np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-30)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    similarity = a @ b.T
    order = similarity.argmax(axis=1)
    near = similarity[np.arange(len(order)), order] > 0.9
    return order if near.mean() > 0.98 else None


def _moves_blocks(order: NDArray[np.intp], size: int) -> bool:
    if size < 2 or len(order) % size:
        return False
    blocks = order.reshape(-1, size)
    return bool((np.diff(blocks, axis=1) == 1).all() and (blocks[:, 0] % size == 0).all())


def _rounding(case: Case, _found: Values, _expected: Values) -> Explanation | None:
    rows = sample(case.layout.n_rows, 8)
    found, expected = pick(case.file, case.tensor, rows), case.layout.pick(rows)
    for name in _COARSE:
        if name == case.dtype:
            continue
        block = GGML_QUANT_SIZES[GGMLQuantizationType[name]][0]
        coarse = None if expected.shape[1] % block else fresh(name, expected)
        again = None if coarse is None else fresh(case.dtype, coarse)
        if again is not None and np.array_equal(found, again):
            return _by_way_of(name)
    for name, make in COARSE.items():
        coarse = make(expected)
        again = None if coarse is None else fresh(case.dtype, coarse)
        plain = fresh(case.dtype, expected)
        if again is not None and plain is not None and not np.array_equal(again, plain):
            same = np.isclose(found, again, rtol=1e-5, atol=0)
            if same.mean() >= 1 - NEAR:
                return _by_way_of(name)
    return None


def _by_way_of(name: str) -> Explanation:
    message = f"has its source's values by way of {name}"
    return Explanation("rounding", name, message, {"by_way_of": name})


def _experts(case: Case, _found: Values, _expected: Values) -> Explanation | None:
    shape = case.file.tensors[case.tensor].shape
    if len(shape) < 3 or shape[2] < 2:
        return None
    per = shape[1]
    wrong = [e for e in range(shape[2]) if not _expert_holds(case, e, e, per)]
    if not wrong or len(wrong) > 256:
        return None
    zero = [e for e in wrong if not _expert_rows(case, e, per)[0].any()]
    if zero and len(zero) == len(wrong):
        message = f"is zero in {_some(zero, 'expert')} of {shape[2]}"
        return Explanation("zero", "experts", message, {"experts": zero})
    holds = {
        e: next((o for o in range(shape[2]) if _expert_holds(case, e, o, per)), None) for e in wrong
    }
    if all(o is not None for o in holds.values()):
        message = f"has its experts in another order ({_some(wrong, 'expert')} moved)"
        return Explanation(
            "experts", "order", message, {"holds": {str(k): v for k, v in holds.items()}}
        )
    if len(wrong) < shape[2]:
        message = f"has other values in {_some(wrong, 'expert')} of {shape[2]}"
        return Explanation("experts", "values", message, {"experts": wrong})
    return None


def _expert_rows(
    case: Case, expert: int, per: int, source: int | None = None
) -> tuple[Values, Values]:
    rows = sample(per, 4)
    there = expert if source is None else source
    return pick(case.file, case.tensor, rows + expert * per), case.layout.pick(rows + there * per)


def _expert_holds(case: Case, expert: int, source: int, per: int) -> bool:
    found, expected = _expert_rows(case, expert, per, source)
    return is_near(found, expected, case.dtype)


def _some(numbers: Sequence[int], noun: str) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    more = f" and {len(numbers) - 6} more" if len(numbers) > 6 else ""
    return f"{noun}{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _partial(case: Case, _found: Values, _expected: Values) -> Explanation | None:
    m = case.measured
    if m.cost is None or not m.n_bad_rows or 2 * m.n_bad_rows > m.n_rows:
        return None
    message = (
        f"has other values in {m.n_bad_rows:,} of {m.n_rows:,} rows, first in row {m.bad_rows[0]}"
    )
    evidence = {"n_rows": m.n_bad_rows, "first": list(m.bad_rows[:8])}
    return Explanation("partial", "", message, evidence)


def _few_rows(case: Case, found: Values, expected: Values) -> Explanation | None:
    """Some rows are wrong, and what is left of the difference is no matrix of low rank."""
    m = case.measured
    if not m.n_bad_rows or _FEW * m.n_bad_rows > m.n_rows:
        return None
    rest = np.setdiff1d(np.arange(len(found)), m.bad_rows)
    if rank_of_difference(found[rest], expected[rest], m.cost or 0.0) is not None:
        return None
    return _partial(case, found, expected)


def _low_rank(case: Case, found: Values, expected: Values) -> Explanation | None:
    rank = rank_of_difference(found, expected, case.measured.cost or 0.0)
    if rank is None:
        return None
    message = f"differs from its source by a matrix of rank {rank}"
    return Explanation("low-rank", str(rank), message, {"rank": rank, **_figures(case)})


def rank_of_difference(found: Values, expected: Values, cost: float) -> int | None:
    """The rank of what one matrix differs from another by, if it is low; None if not.

    Args:
        found: ``(rows, columns)``.
        expected: the same.
        cost: relative error that the type explains; singular values of that size are noise.
    """
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return None
    rng = np.random.default_rng(1)
    rows = np.sort(rng.permutation(found.shape[0])[:_SKETCH])
    columns = np.sort(rng.permutation(found.shape[1])[:_SKETCH])
    a, b = found[np.ix_(rows, columns)], expected[np.ix_(rows, columns)]
    if min(a.shape) < 16:
        return None
    values = np.linalg.svd((a - b).astype(np.float64), compute_uv=False)
    # White noise of that size has no singular value beyond this (Marchenko-Pastur).
    deviation = cost * float(np.linalg.norm(b)) / np.sqrt(b.size)
    edge = 1.15 * deviation * (np.sqrt(a.shape[0]) + np.sqrt(a.shape[1]))
    most = min(_MOST_RANK, min(a.shape) // 4)
    if cost > _NOISY:
        rank = int((values > edge).sum())
        return rank if 0 < rank < most // 2 else None
    gaps = values[:most] / np.maximum(values[1 : most + 1], max(edge, 1e-30))
    rank = int(np.argmax(gaps)) + 1
    return rank if gaps[rank - 1] > _GAP and rank < most else None


def _figures(case: Case) -> dict[str, Any]:
    m = case.measured
    finite = m.error if np.isfinite(m.error) else None
    return {"relative_error": finite, "type_costs": m.cost, "dtype": case.dtype}


def _unexplained(case: Case, found: Values, expected: Values) -> Explanation:
    m = case.measured
    times = m.error / m.cost if m.cost else None
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / size if size and np.isfinite(size) else 0.0
    costs = f"; {case.dtype} explains {m.cost:.2g}" if m.cost is not None else ""
    message = f"is not its source's (relative error {m.error:.3g}{costs}, cosine {cosine:.3f})"
    evidence = {**_figures(case), "cosine": cosine, "times": times}
    return Explanation("values", "near" if cosine > 0.7 else "far", message, evidence)


_ATTEMPTS: tuple[Attempt, ...] = (
    _non_finite, _zero, _bytes, _scale, _rounding, _elsewhere, _experts, _rows, _columns,
    _few_rows, _low_rank, _partial,
)  # fmt: skip
