"""What a conversion does to a norm's values, and what explains values that it did not make.

Converters add offsets, scale and reorder (``conversion/*.py`` in llama.cpp). Where a file's
values are not what the source and the known transform give, the likeliest mistakes are
tried in turn, from the one that explains all values exactly to the one that explains some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import round_to_bf16
from ggufnorm.core.metrics import finite_relative_l2
from ggufnorm.core.tolerances import SAME_ELEMENT

Array = NDArray[np.float32]
Wide = NDArray[np.float64]


MOSTLY = 0.5
"""Share of the elements from which values count as right but for some."""

_GLANCE = 8
"""Elements that tell most pairs of norms apart."""

Kind = Literal[
    "equal", "half", "offset", "scale", "affine", "rounding", "bytes", "permutation",
    "elsewhere", "size", "partial", "values",
]  # fmt: skip
"""How a file's values come from the source's:

- ``equal``: as they should; ``half``: so too, but the offset was added in half precision;
- ``offset``, ``scale``, ``affine``: by another sum or product than they should;
- ``rounding``: rounded to F16 or BF16 on the way; ``bytes``: each one's bytes reversed;
- ``permutation``: in another order; ``elsewhere``: they are another norm's;
- ``size``: there are more or fewer; ``partial``: some differ; ``values``: nothing explains them.
"""


@dataclass(frozen=True)
class Transform:
    """What a converter does to the values of a norm: ``scale · w + offset``.

    Attributes:
        offset: added.
        scale: factor.
        unpermute: each head's first half and second half are interleaved, and all heads
            get the first one's values (Chameleon).
    """

    offset: float = 0.0
    scale: float = 1.0
    unpermute: bool = False

    def apply(self, values: NDArray[np.floating], *, half: bool = False) -> Array:
        """The values in the file.

        Args:
            values: the source's, of any shape.
            half: compute in half precision, as torch does with an F16 source.

        Returns:
            float32, flat.
        """
        if self.unpermute and values.ndim and values.shape[-1] % 2 == 0 and values.size:
            heads = values.reshape(-1, values.shape[-1])
            values = np.tile(heads[0].reshape(2, -1).T.reshape(-1), len(heads))
        number = np.float16 if half else np.float32
        with np.errstate(over="ignore", invalid="ignore"):
            flat = values.reshape(-1).astype(number)
            if self.scale != 1.0:
                flat = np.multiply(flat, number(self.scale), dtype=number)
            if self.offset != 0.0:
                flat = np.add(flat, number(self.offset), dtype=number)
        return np.asarray(flat, dtype=np.float32)


@dataclass(frozen=True)
class Explanation:
    """How a file's values come from the source's.

    Attributes:
        kind: in one word.
        message: the same in words that follow "the weight …".
        evidence: the figures, as JSON values.
        other: where the values belong, of kind ``elsewhere``.
    """

    kind: Kind
    message: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    other: str | None = None


def same(found: NDArray[np.floating], expected: NDArray[np.floating]) -> bool:
    """Whether all values are the same but for the last bits; NaN is the same as NaN."""
    return found.size == expected.size and bool(_same_each(found, expected).all())


# What is too large for a format becomes infinite, as in a converter.
@np.errstate(over="ignore", invalid="ignore")
def explain(
    found: NDArray[np.floating],
    source: NDArray[np.floating],
    transform: Transform,
    *,
    half: bool = False,
    others: Mapping[str, Array] | None = None,
) -> Explanation:
    """Tell how a file's values come from the source's.

    Args:
        found: the file's values.
        source: the source's, of the same number of elements, or of another.
        transform: what the converter does to them.
        half: whether the source is F16, so that it does so in half precision.
        others: what other norms' values should be, flat, by name.
    """
    f, s = found.reshape(-1), source
    expected = transform.apply(s)
    if f.size != expected.size:
        evidence = {"elements": int(f.size), "expected": int(expected.size)}
        message = f"has {f.size} elements, its source {expected.size}"
        return Explanation("size", message, evidence)
    if same(f, expected):
        return Explanation("equal")
    if half and same(f, transform.apply(s, half=True)):
        message = f"got its {transform.offset:+g} in half precision, as the source is F16"
        error = float(np.max(np.abs(f.astype(np.float64) - expected)))
        return Explanation("half", message, {"largest_error": error})
    flat = transform.apply(s) if transform.unpermute else s.reshape(-1).astype(np.float32)
    for attempt in _ATTEMPTS:
        explanation = attempt(f, flat, expected, transform)
        if explanation is not None:
            return explanation
    return _elsewhere(f, others or {}) or _partial(f, expected) or _unexplained(f, expected)


Attempt = Callable[[Array, Array, Array, Transform], Explanation | None]


def _offset(f: Array, s: Array, _expected: Array, transform: Transform) -> Explanation | None:
    wide, base = f.astype(np.float64), s.astype(np.float64) * transform.scale
    for k in _offsets_to_try(wide - base):
        for name, rounding in _ROUNDINGS.items():
            if k != transform.offset and same(f, rounding(base + k)):
                rounded = "" if name == "F32" else f", rounded to {name}"
                want = f"{transform.offset:g}"
                message = f"is the source's plus {k:g}{rounded}, where the conversion adds {want}"
                evidence = {"offset": k, "expected_offset": transform.offset, "rounding": name}
                return Explanation("offset", message, evidence)
    return None


def _offsets_to_try(difference: Wide) -> list[float]:
    if not np.isfinite(difference).all():
        return []
    middle = float(np.median(difference))
    nearby = round(middle, 3)
    return list(dict.fromkeys([float(round(middle)), nearby, float(np.float32(middle))]))


def _rounding(_f: Array, s: Array, _expected: Array, transform: Transform) -> Explanation | None:
    exact = s.astype(np.float64) * transform.scale + transform.offset
    for name, rounding in _ROUNDINGS.items():
        if name != "F32" and same(_f, rounding(exact)):
            error = float(np.max(np.abs(_f - exact)))
            message = f"was rounded to {name} on the way, by up to {error:.2g}"
            return Explanation("rounding", message, {"rounding": name, "largest_error": error})
    return None


def _scale(f: Array, _s: Array, expected: Array, _t: Transform) -> Explanation | None:
    wide, e = f.astype(np.float64), expected.astype(np.float64)
    used = e != 0
    if not used.any() or not np.isfinite(wide).all():
        return None
    factor = float(np.median(wide[used] / e[used]))
    if factor == 0 or not same(wide, factor * e):
        return None
    factor = float(np.float32(factor))
    message = f"is {factor:g} times what the conversion gives"
    return Explanation("scale", message, {"scale": factor})


def _affine(f: Array, s: Array, _expected: Array, transform: Transform) -> Explanation | None:
    wide, base = f.astype(np.float64), s.astype(np.float64)
    spread = base - base.mean() if np.isfinite(base).all() else np.zeros(1)
    if f.size < 8 or not np.isfinite(wide).all() or not np.any(spread):
        return None
    factor = float(spread @ (wide - wide.mean()) / (spread @ spread))
    offset = float(wide.mean() - factor * base.mean())
    # The fit's own rounding is relative to the largest value, not to each.
    close = np.abs(factor * base + offset - wide) <= 4 * SAME_ELEMENT * np.max(np.abs(wide))
    if not close.all() or abs(factor) < 1e-3:
        return None
    want = f"{transform.scale:g}·w{transform.offset:+g}"
    message = f"is {factor:.6g}·w{offset:+.6g} of the source, where the conversion gives {want}"
    return Explanation("affine", message, {"scale": factor, "offset": offset})


def _bytes(f: Array, _s: Array, expected: Array, _t: Transform) -> Explanation | None:
    with np.errstate(invalid="ignore"):
        swapped = np.array_equal(f.view(np.uint32).byteswap(), expected.view(np.uint32))
    return Explanation("bytes", "has the bytes of each value reversed") if swapped else None


def _permutation(f: Array, _s: Array, expected: Array, _t: Transform) -> Explanation | None:
    if not same(np.sort(f), np.sort(expected)):
        return None
    moved = int((~_same_each(f, expected)).sum())
    order = next((name for name, e in orders(expected) if same(f, e)), None)
    message = f"has the right values in another order ({order or f'{moved} of {f.size} moved'})"
    return Explanation("permutation", message, {"order": order, "moved": moved})


def orders(values: Array) -> Iterable[tuple[str, Array]]:
    """Values, flat, in the orders that conversions are known to mix up, with their names."""
    yield "reversed", values[::-1]
    if values.size % 2 == 0:
        yield "halves interleaved", values.reshape(2, -1).T.reshape(-1)
        yield "interleaving undone", values.reshape(-1, 2).T.reshape(-1)
        yield "halves exchanged", np.roll(values, values.size // 2)
    for by in (1, -1):
        yield f"rolled by {by}", np.roll(values, by)


_ATTEMPTS: tuple[Attempt, ...] = (_rounding, _offset, _scale, _affine, _bytes, _permutation)


def _elsewhere(f: Array, others: Mapping[str, Array]) -> Explanation | None:
    for name, values in others.items():
        if same(f[:_GLANCE], values[:_GLANCE]) and same(f, values):
            return Explanation("elsewhere", f"holds the values of {name}", {"of": name}, name)
    return None


def _partial(f: Array, expected: Array) -> Explanation | None:
    wrong = np.flatnonzero(~_same_each(f, expected))
    if len(wrong) >= MOSTLY * f.size:
        return None
    first = int(wrong[0])
    message = (
        f"differs from its source in {len(wrong)} of {f.size} elements, first in element"
        f" {first}: {f[first]:.6g} for {expected[first]:.6g}"
    )
    evidence = {
        "n_different": len(wrong),
        "first": first,
        "value": _number(f[first]),
        "expected": _number(expected[first]),
    }
    return Explanation("partial", message, evidence)


def _unexplained(f: Array, expected: Array) -> Explanation:
    wide, e = f.astype(np.float64), expected.astype(np.float64)
    both = np.isfinite(wide) & np.isfinite(e)
    wide, e = wide[both], e[both]
    relative = finite_relative_l2(e, wide)
    correlation = _correlation(wide, e)
    evidence = {"relative_error": relative, "correlation": correlation}
    shown = "unknown" if relative is None else f"{relative:.3g}"
    alike = "" if correlation is None else f", correlation {correlation:.3f}"
    message = f"is not its source's (relative error {shown}{alike})"
    return Explanation("values", message, evidence)


def _correlation(a: Wide, b: Wide) -> float | None:
    if a.size < 2:
        return None
    x, y = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size else None


def _number(value: np.floating) -> float | str:
    # JSON has no NaN and no infinity.
    return float(value) if np.isfinite(value) else str(value)


def _to_f16(values: Wide) -> Wide:
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float16).astype(np.float64)


def _to_f32(values: Wide) -> Wide:
    return values.astype(np.float32).astype(np.float64)


_ROUNDINGS: dict[str, Callable[[Wide], Wide]] = {
    "F32": _to_f32,
    "F16": _to_f16,
    "BF16": lambda values: round_to_bf16(values.astype(np.float32)).astype(np.float64),
}


def _same_each(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.bool_]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        close = np.abs(x - y) <= SAME_ELEMENT * np.maximum(np.abs(x), np.abs(y))
    close &= np.isfinite(x) & np.isfinite(y)
    return np.asarray(close | (x == y) | (np.isnan(x) & np.isnan(y)))
