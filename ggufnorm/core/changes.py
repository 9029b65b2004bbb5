"""Operations computed with other settings than they were, to tell which ones made a result.

For each operation without weights of its own the settings that implementations confuse are
tried: of a rotary embedding the pairs, the frequencies and how many channels are turned; of
the attention's softmax the scale and the mask; of a feed-forward network the function.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.activations import ACTIVATIONS
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.operations import Array, Operation
from ggufnorm.core.rope import Pairs, Rope, as_halves
from ggufnorm.core.tolerances import SAME_FUNCTION

Wide = NDArray[np.float64]

EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k")
"""What configurations call the number of experts of a token."""
EXPERTS_OPS = ("GET_ROWS", "MUL", "SCALE", "SUM_ROWS")
"""What ggml computes experts' weights with."""


@dataclass(frozen=True)
class Change:
    """Another setting and what comes of it.

    Attributes:
        used: what the operation was computed with, in words.
        other: the other setting, in words.
        value: what comes of that.
    """

    used: str
    other: str
    value: Array


def changes(
    operation: Operation, inputs: Sequence[Array], numbers: Mapping[str, float]
) -> Iterator[Change]:
    """What an operation gives with other settings, the likeliest first.

    Args:
        operation: of llama.cpp.
        inputs: its computed inputs, as ggml lays them out, ``(ne3, ne2, ne1, ne0)``.
        numbers: of the source's configuration, by their names: settings to try.
    """
    if operation.op == "ROPE" and len(inputs) == 1:
        yield from _ropes(operation, inputs[0], numbers)
    elif operation.op == "SOFT_MAX" and inputs:
        yield from _gates(operation, inputs[0])
        yield from _soft_maxes(operation, inputs[0], numbers)
    elif operation.op in ("UNARY", "GLU"):
        yield from _activations(operation, inputs)
    elif operation.op in EXPERTS_OPS and "moe_weight" in operation.name:
        yield from _experts_weights(operation, inputs, numbers)


_NO_FACTORS = frozenset(
    {"ctx", "dropout", "eps", "epsilon", "id", "initializer", "pattern", "position", "positions",
     "theta", "vocab", "window"}
)  # fmt: skip
"""Words in the names of numbers that no network multiplies with: that one of them, or its root, is
the factor between two results is chance."""


def named_factors(numbers: Mapping[str, float]) -> dict[str, float]:
    """Factors that the numbers of a configuration stand for: itself, 1/n, √n, 1/√n, by name."""
    found: dict[str, float] = {}
    for name, n in numbers.items():
        if n > 0 and _NO_FACTORS.isdisjoint(re.split(r"[^a-z]+", name.lower())):
            root = math.sqrt(n)
            found |= {name: n, f"1/{name}": 1 / n, f"√{name}": root, f"1/√{name}": 1 / root}
    return found


def _with(numbers: Mapping[str, float], *words: str) -> list[float]:
    """The numbers that one of the words is in the name of."""
    return [n for name, n in numbers.items() if any(word in name for word in words)]


# -- rotary embedding ------------------------------------------------------------------------

_PERMUTED = ": the converter has to permute the rows of Q and K for the first"


def _ropes(operation: Operation, x: Array, numbers: Mapping[str, float]) -> Iterator[Change]:
    used = Rope.of_params(operation.params)
    if used is None:
        return
    pairs: tuple[Pairs, Pairs] = (
        ("neighbours", "halves") if used.pairs == "neighbours" else ("halves", "neighbours")
    )
    shares = (s for s in _with(numbers, "partial_rotary", "rotary_pct") if 0 < s <= 1)
    sizes = dict.fromkeys([used.n_dims, x.shape[-1], *(int(x.shape[-1] * s) for s in shares)])
    thetas = (b for b in _with(numbers, "theta", "rotary_base") if b > 1)
    bases = dict.fromkeys([used.base, *thetas])
    scales = dict.fromkeys([used.scale, 1.0, *(1 / f for f in _with(numbers, "factor") if f > 0)])
    for yarn in dict.fromkeys([used.yarn, None]):
        for kind, n_dims, base, scale in product(pairs, sizes, bases, scales):
            other = replace(used, pairs=kind, n_dims=n_dims, base=base, scale=scale, yarn=yarn)
            if other != used:
                hint = _PERMUTED if (used.pairs, kind) == ("neighbours", "halves") else ""
                yield Change(f"turns {used}", f"turning {other}{hint}", other.apply(x))
            if used.pairs == "neighbours" == kind and n_dims < x.shape[-1]:
                # The converter permuted whole heads, and Transformers turns a part of each.
                part = replace(other, pairs="halves")
                hint = f" (rows are ordered as if all {x.shape[-1]} channels of a head turned)"
                yield Change(f"turns {used}", f"turning {part}{hint}", part.apply(as_halves(x)))


def known_difference(operation: Operation, inputs: Sequence[Array]) -> Change | None:
    """What llama.cpp computes in another way than Transformers, whatever a file says.

    It always cuts the range of channels between YaRN's two frequencies to whole ones
    (``ggml_rope_yarn_corr_dims`` in ``ggml/src/ggml.c``), and GPT-OSS states ``truncate: false``.

    Args:
        operation: of llama.cpp.
        inputs: its computed inputs.
    """
    used = Rope.of_params(operation.params) if operation.op == "ROPE" else None
    if used is None or used.yarn is None or len(inputs) != 1:
        return None
    other = replace(used, yarn=replace(used.yarn, truncate=False))
    return Change(
        "cuts YaRN's range of frequencies to whole channels, as llama.cpp always does",
        "the range as it is (truncate: false)",
        other.apply(inputs[0]),
    )


# -- the softmax of an attention -------------------------------------------------------------


def _soft_maxes(operation: Operation, x: Array, numbers: Mapping[str, float]) -> Iterator[Change]:
    (used,) = struct.unpack_from("f", operation.params)
    windows = [int(n) for n in _with(numbers, "window") if n >= 1]
    masks = {"a causal mask": _mask(x, None), "no mask": _mask(x, 0)}
    masks |= {f"a causal mask of {n} tokens": _mask(x, n) for n in windows}
    scales = {"": used, "1": 1.0, **named_factors(numbers)}
    for (mask, seen), (label, scale) in product(masks.items(), scales.items()):
        name = f" ({label})" if label else ""
        other = f"{scale:.6g}{name} and {mask}"
        yield Change(f"multiplies the scores with {used:.6g}", other, _softmax(x, seen, scale))


def _mask(x: Array, window: int | None) -> NDArray[np.bool_]:
    """Which keys each token sees; None for all up to its own, 0 for all there are."""
    n_tokens, n_keys = x.shape[-2:]
    token, key = np.arange(n_tokens)[:, None], np.arange(n_keys)[None]
    if window == 0:
        return np.broadcast_to(key < n_tokens, (n_tokens, n_keys))
    near = True if window is None else key > token - window
    return (key <= token) & near


def _softmax(x: Array, seen: NDArray[np.bool_], scale: float) -> Array:
    scores = np.where(seen, x.astype(np.float64) * scale, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def _gates(operation: Operation, x: Array) -> Iterator[Change]:
    """Of a router, the other gating function (``build_moe_ffn`` in ``src/llama-graph.cpp``)."""
    if "moe" in operation.name:
        gates = 1.0 / (1.0 + np.exp(-x.astype(np.float64)))
        other = "a sigmoid (expert_gating_func 2)"
        yield Change("routes by a softmax", other, np.asarray(gates, np.float32))


def _experts_weights(
    operation: Operation, inputs: Sequence[Array], numbers: Mapping[str, float]
) -> Iterator[Change]:
    """Weights of another number of experts, or of which one side divides by their sum.

    Source: ``norm_w`` and ``n_expert_used`` of ``build_moe_ffn`` in ``src/llama-graph.cpp``.
    """
    as_they_are, key = "the experts' weights as they are", "(expert_weights_norm)"
    y = operation.value
    if y is None or not inputs:
        return
    n_used = int(max((numbers.get(name, 0) for name in EXPERTS_USED), default=0))
    if operation.op in ("GET_ROWS", "SCALE"):
        if y.shape[-1] == 1 and n_used not in (0, y.shape[-2]):
            used = f"uses {y.shape[-2]} experts for a token"
            yield Change(used, f"{n_used} experts (num_experts_per_tok)", inputs[0])
    elif operation.op == "SUM_ROWS":
        yield Change("divides the experts' weights by their sum", f"{as_they_are} {key}", inputs[0])
    elif (w := next((v for v in inputs if v.shape[-1] == 1), None)) is not None:
        total = w.sum(axis=-2, keepdims=True)
        if np.ptp(total) <= SAME_FUNCTION * np.abs(total).max():
            return  # they are divided already
        divided = y / np.where(total == 0, 1, total) if y.ndim == w.ndim else y
        for factor in dict.fromkeys([1.0, *_with(numbers, "scal")]):
            other = np.asarray(divided * factor, np.float32)
            yield Change(f"uses {as_they_are}", f"dividing them by their sum {key}", other)


# -- activations -----------------------------------------------------------------------------


def _activations(operation: Operation, inputs: Sequence[Array]) -> Iterator[Change]:
    if "moe_probs" in operation.name and inputs:
        whole = np.ones(inputs[0].shape, bool)
        other = "a softmax (expert_gating_func 1)"
        yield Change("routes by a sigmoid", other, _softmax(inputs[0], whole, 1.0))
    parts = [v.astype(np.float64) for v in inputs]
    if operation.op == "GLU" and len(parts) == 1:
        half = parts[0].shape[-1] // 2
        parts = [parts[0][..., :half], parts[0][..., half:]]
    made = dict(_activated(parts))
    used = next((name for name, y in made.items() if _is(y, operation.value)), "another function")
    for name, y in made.items():
        if name != used:
            yield Change(f"computes {used}", name, y)


def _activated(parts: Sequence[Wide]) -> Iterator[tuple[str, Array]]:
    for name, function in ACTIVATIONS.items():
        for of, *factors in {tuple(range(len(parts))), tuple(reversed(range(len(parts))))}:
            y = function(parts[of])
            for i in factors:
                y = y * parts[i]
            which = "" if len(parts) == 1 else f" of its {'second' if of else 'first'} input"
            yield f"{name}{which}", np.asarray(y, np.float32)


def _is(made: Array, value: Array | None) -> bool:
    if value is None or made.shape != value.shape:
        return False
    return relative_l2(value, made) <= SAME_FUNCTION
