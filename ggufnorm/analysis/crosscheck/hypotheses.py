"""Hypotheses on an operation whose result the source has nowhere: the change that mends it.

An operation is computed again, from what really went in, as it would be with another setting
(:mod:`ggufnorm.core.changes`) or another matrix. A result that the source has too tells what
the source does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from ggufnorm.analysis.crosscheck.parts import latent_parts, parts
from ggufnorm.core.changes import changes, named_factors
from ggufnorm.core.matrices import distance, explain_matrix
from ggufnorm.core.operations import Array, Match, Operation, Results, Segment, TokenRows, l2_norm
from ggufnorm.core.rope import Rope
from ggufnorm.core.tolerances import SAME_FACTOR

_LARGEST = 1e30
"""Factors above come of masks, which hold the lowest number there is."""
_SMALLEST = 1e-6
"""Factors below come of results that are all zero, or nearly: those explain nothing."""
_MOST_USES = 3
_FACTORS = ("scal", "multiplier", "factor", "cap")
"""What the names of factors in a configuration hold."""

_ATTENDS = ("matmul", "scaled_dot_product_attention")
"""What an attention does with Q and K."""


class Hypotheses:
    """Tries what would mend an operation in one segment.

    Args:
        segment: what was computed.
        matches: of each of the engine's operations, in the source.
        results: of the source.
        tolerance: relative L2 distance up to which results and matrices are the same.
        source: what the source is called.
    """

    def __init__(
        self,
        segment: Segment,
        matches: Sequence[Match | None],
        results: Results,
        tolerance: float,
        source: str,
    ) -> None:
        self.operations, self.matches, self.results = segment.engine, matches, results
        self.n_tokens = segment.n_tokens
        self.weights, self.numbers = segment.weights, segment.numbers
        self.tolerance, self.source = tolerance, source
        self.factors = named_factors(segment.numbers)

    def of(self, index: int) -> tuple[int, str, bool]:
        """The wrong operation, why, and whether that mends it, given the first without counterpart.

        They differ where a product is right and the bias behind it is not, and where a result
        has the right values in another order, which shows only behind it.
        """
        places = chain(
            self._bias(index),
            self._adds_nothing(index),
            self._reordered(index),
            self._rows(index),
        )
        elsewhere = next(places, None)
        if elsewhere is not None:
            return *elsewhere, True
        operation = self.operations[index]
        reason = next(self._tested(operation), None)
        if reason is None:
            behind = next(self._behind(index), None)
            if behind is not None:
                return *behind, True
            hidden = self._hidden(index)
            if hidden != index:
                what = f"{self.source} has nowhere what {operation.name} makes of its result"
                return hidden, what, False
        return index, reason or self._nowhere(operation), reason is not None

    def certain(self, index: int) -> Iterator[str]:
        """What mends an operation that comes of another without counterpart."""
        operation = self.operations[index]
        yield from self._changed(operation)
        yield from self._matrix(operation)
        yield from self._latent(operation)

    def _behind(self, index: int) -> Iterator[tuple[int, str]]:
        """What goes in is found nowhere either, though one of several uses of it is right."""
        waiting, seen = [*self.operations[index].inputs], set[int]()
        while waiting:
            i = waiting.pop()
            if i in seen or self.matches[i] is not None:
                continue
            seen.add(i)
            if self.operations[i].computes:
                yield from ((i, reason) for reason in self._changed(self.operations[i]))
            waiting += self.operations[i].inputs

    def _hidden(self, index: int) -> int:
        """The operation with a tensor before, whose result has no row for each token.

        ggml's scans give the last states behind the results of all tokens.
        """
        for i in self.operations[index].inputs:
            found = self._computed(i)
            before = self.operations[found]
            rows = None if before.value is None else TokenRows.of(before.value, self.n_tokens)
            if rows is None and before.computes and before.tensor and self.matches[found] is None:
                return found
        return index

    def _changed(self, operation: Operation) -> Iterator[str]:
        for change in changes(operation, self._inputs(operation), self.numbers):
            if self._find(change.value) is not None:
                yield f"it {change.used}; what {self.source} has comes of {change.other}"

    def _tested(self, operation: Operation) -> Iterator[str]:
        yield from self._changed(operation)
        yield from self._matrix(operation)
        yield from self._latent(operation)
        yield from self._embedding(operation)
        yield from self._sum(operation)
        yield from self._scale(operation)
        yield from self._multiple(operation)

    def _nowhere(self, operation: Operation) -> str:
        """What the source does with the same inputs."""
        uses = [u for i in self._origins(operation) for u in self.results.users(i)]
        turned = Rope.of_params(operation.params) if operation.op == "ROPE" else None
        if turned is not None and any(u.op in _ATTENDS for u in uses):
            return f"it turns {turned}; {self.source} takes it to the attention without RoPE"
        nowhere = f"{self.source} has its result nowhere"
        if operation.op == "SCALE":
            factor = self._number(struct.unpack_from("f", operation.params)[0])
            nowhere = f"it multiplies with {factor}; {nowhere}"
        if not uses:
            return nowhere
        shown = ", ".join(list(dict.fromkeys(u.name for u in uses))[:_MOST_USES])
        return f"{nowhere}; with the same input it runs {shown}"

    def _find(self, value: Array) -> Match | None:
        return self.results.find(value, self.tolerance)

    # -- what goes in ------------------------------------------------------------------------

    def _inputs(self, operation: Operation) -> list[Array]:
        values = (self.operations[i].value for i in operation.inputs)
        return [v for v in values if v is not None]

    def _computed(self, index: int) -> int:
        """The operation behind views and copies."""
        while not self.operations[index].computes and self.operations[index].inputs:
            index = self.operations[index].inputs[0]
        return index

    def _origins(self, operation: Operation) -> list[int]:
        """The source's operations whose results go in."""
        found = (self.matches[self._computed(i)] for i in operation.inputs)
        return [m.index for m in found if m is not None]

    # -- products with a matrix --------------------------------------------------------------

    def _products(self, operation: Operation) -> list[tuple[Operation, Array]]:
        """The source's products of the same input, the nearest matrix first."""
        ours = self._weight(operation)
        if operation.op not in ("MUL_MAT", "MUL_MAT_ID") or ours is None:
            return []
        users = (u for i in self._origins(operation) for u in self.results.users(i))
        match = self.matches[self.operations.index(operation)]
        if match is not None:
            users = (u for u in users if u is self.results.operations[match.index])
        found = [(u, w) for u in users if u.weight is not None for w in parts(u.weight, ours)]
        return sorted(found, key=lambda p: distance(ours, p[1]))

    def _weight(self, operation: Operation) -> Array | None:
        """The matrix, its rows in the source's order where the converter changes it."""
        weight = self.weights.get(operation.tensor or "")
        for user in self.operations:
            at = [self._computed(i) for i in user.inputs]
            if user.op != "ROPE" or weight is None or not at or user.value is None:
                continue
            if self.operations[at[0]] is operation and Rope.swaps_rows(user.params):
                heads, width = user.value.shape[-2:]
                if heads * width == len(weight):  # LlamaModel.permute in conversion/llama.py
                    pairs = weight.reshape(heads, width // 2, 2, -1)
                    return pairs.swapaxes(1, 2).reshape(weight.shape)
        return weight

    def is_right(self, index: int) -> bool:
        """Whether an operation is the product of what the source has and the source's matrix."""
        operation = self.operations[index]
        ours = self._weight(operation)
        for theirs, weight in self._products(operation)[:1]:
            assert ours is not None
            right = explain_matrix(ours, weight, {}, self.tolerance) is None
            return right and theirs.bias is None
        return False

    def _bias(self, index: int) -> Iterator[tuple[int, str]]:
        operation = self.operations[index]
        for theirs, _ in self._products(operation):
            y = operation.value
            if y is None or theirs.bias is None or theirs.bias.size != y.shape[-1]:
                continue
            if self._find(y + theirs.bias) is None:
                continue
            name = f"{(theirs.tensor or '').removesuffix('weight')}bias"
            for i, user in enumerate(self.operations):
                ours = self.weights.get(user.tensor or "")
                if index in user.inputs and user.op == "ADD" and ours is not None:
                    off = distance(ours, theirs.bias)
                    yield i, f"its bias differs by {off:.3g} from the source's ({name})"
            yield index, f"the source's bias behind it ({name}) is not added"

    def _adds_nothing(self, index: int) -> Iterator[tuple[int, str]]:
        """Biases before that are all zero, where the source adds something."""
        for i, operation in enumerate(self.operations[:index]):
            bias = self.weights.get(operation.tensor or "")
            if operation.op != "ADD" or bias is None or bias.any():
                continue
            users = (u for k in self._origins(operation) for u in self.results.users(k))
            added = next((u.name for u in users if u.op in ("add", "__add__")), None)
            if added is not None:
                yield i, f"its bias is all zero; {self.source} adds one ({added})"

    def _reordered(self, index: int) -> Iterator[tuple[int, str]]:
        """Products before whose results stand in another order than the source's."""
        for i, (operation, match) in enumerate(zip(self.operations, self.matches, strict=True)):
            if i < index and match is not None and not match.in_order:
                yield from ((i, reason) for reason in self._matrix(operation))

    def _matrix(self, operation: Operation) -> Iterator[str]:
        every = {o.tensor: o.weight for o in self.results.operations if o.weight is not None}
        ours = self._weight(operation)
        for theirs, weight in self._products(operation)[:1]:
            assert ours is not None
            others = {n: w for n, w in every.items() if n is not None and n != theirs.tensor}
            what = explain_matrix(ours, weight, others, self.tolerance)
            if what is not None:
                yield f"its matrix {what} ({theirs.tensor})"

    def _latent(self, operation: Operation) -> Iterator[str]:
        """Of K and V of a latent attention, which a file has by themselves, head by head."""
        ours = self.weights.get(operation.tensor or "")
        if operation.op != "MUL_MAT" or ours is None or ours.ndim != 3:
            return
        for part in latent_parts(ours, self.results.operations):
            what = explain_matrix(ours, part, {}, self.tolerance)
            if what is not None:
                yield f"its matrix {what.replace('expert', 'head')}"

    def _rows(self, index: int) -> Iterator[tuple[int, str]]:
        """Rows of a table that a sum adds, such as those of positions, and the source does not."""
        if self.operations[index].op != "ADD":
            return
        for at in map(self._computed, self.operations[index].inputs):
            if self.matches[at] is None:
                yield from ((at, reason) for reason in self._embedding(self.operations[at]))

    def _embedding(self, operation: Operation) -> Iterator[str]:
        if operation.op != "GET_ROWS" or operation.value is None:
            return
        width = operation.value.shape[-1]
        ours = operation.value.reshape(-1, width)
        for theirs in self.results.operations:
            if theirs.op == "embedding" and theirs.value is not None:
                rows = theirs.value.reshape(-1, theirs.value.shape[-1])
                seen = self._without_room(ours, len(rows))
                what = explain_matrix(seen, rows, {}, self.tolerance)
                if what is not None and seen.shape == rows.shape:
                    yield f"what it reads for the text {what} ({theirs.name})"

    def _without_room(self, rows: Array, n_rows: int) -> Array:
        """Rows of pairs of tokens without those of a cache's places that are not filled."""
        n = self.results.n_tokens
        if len(rows) <= n_rows or n_rows != n * n or len(rows) % n:
            return rows
        return rows.reshape(n, -1, rows.shape[-1])[:, :n].reshape(n_rows, -1)

    # -- sums and factors --------------------------------------------------------------------

    def _sum(self, operation: Operation) -> Iterator[str]:
        inputs = self._inputs(operation)
        y = operation.value
        if operation.op != "ADD" or y is None or [v.shape for v in inputs] != [y.shape] * 2:
            return
        terms = np.stack([v.reshape(-1).astype(np.float64) for v in inputs], axis=1)
        for other in self.results.operations:
            if other.value is None or other.value.size != y.size:
                continue
            (a, b), *_ = np.linalg.lstsq(terms, other.value.reshape(-1), rcond=None)
            # Rounding fits a factor near 1, and one near 0 of what is not added at all.
            least = max(SAME_FACTOR, self.tolerance)
            both = min(abs(a), abs(b)) > least
            unlike = max(abs(a - 1), abs(b - 1)) > least
            made = (terms @ (a, b)).astype(np.float32).reshape(y.shape)
            if both and unlike and self._find(made) is not None:
                yield (
                    f"it adds its two inputs as they are; {self.source} adds {self._number(a)}"
                    f" times the first and {self._number(b)} times the second"
                )

    def _scale(self, operation: Operation) -> Iterator[str]:
        """Of a constant factor, the one that makes the products right that take its result."""
        if operation.op != "SCALE":
            return
        (used,) = struct.unpack_from("f", operation.params)
        index = self.operations.index(operation)
        yield from self._soft_cap(operation, index, used)
        for factor, _ in self._multiples(operation):
            if self._name(used * factor) is not None:
                yield (
                    f"it multiplies with {used:.6g}; what {self.source} has comes of"
                    f" {self._number(used * factor)}"
                )
        for user in self.operations:
            if user.op != "MUL_MAT" or index not in map(self._computed, user.inputs):
                continue
            # The source may multiply more than once: a factor that it states is the one.
            factors = [used * factor for factor, _ in self._multiples(user)]
            for factor in sorted(factors, key=lambda f: self._name(f) is None):
                yield (
                    f"it multiplies with {used:.6g}; what {self.source} has behind"
                    f" {user.name} comes of {self._number(factor)}"
                )

    def _soft_cap(self, operation: Operation, index: int, used: float) -> Iterator[str]:
        """Of a factor before a hyperbolic tangent, the one that the source has before its own."""
        y = operation.value
        if y is None or not any(u.op == "UNARY" and index in u.inputs for u in self.operations):
            return
        capped = [i for o in self.results.operations if o.op == "tanh" for i in o.inputs]
        for factor, theirs in self._multiples(operation):
            if any(self.results.operations[i] is theirs for i in capped):
                yield (
                    f"it multiplies with {used:.6g} before a soft cap; what {self.source} caps"
                    f" comes of {self._number(used * factor)}"
                )

    def _multiple(self, operation: Operation) -> Iterator[str]:
        for factor, theirs in self._multiples(operation):
            yield f"{self.source} has {self._number(factor)} times its result ({theirs.name})"

    def _multiples(self, operation: Operation) -> Iterator[tuple[float, Operation]]:
        """The source's results that are an operation's result times a factor, and the factor."""
        y, inputs = operation.value, self._origins(operation)
        if y is None or not y.any():
            return
        for i, theirs in enumerate(self.results.operations):
            if theirs.value is None or i in inputs:
                continue
            size = l2_norm(theirs.value) / l2_norm(y)
            if not _SMALLEST <= size <= _LARGEST:
                continue
            for factor in (size, -size):
                usual = abs(factor - 1) <= SAME_FACTOR
                match = None if usual else self._find((y * factor).astype(np.float32))
                if match is not None and match.index == i:
                    yield factor, theirs

    def _number(self, value: float) -> str:
        name = self._name(value)
        return f"{value:.4g} ({name})" if name else f"{value:.4g}"

    def _name(self, value: float) -> str | None:
        """What a factor is in the source's configuration."""
        names = [
            name
            for name, number in self.factors.items()
            if number != 1 and abs(value - number) <= SAME_FACTOR * number
        ]
        if not names:  # a factor that rounding has moved is the one that is stated as such
            stated = {k: n for k, n in self.numbers.items() if any(w in k for w in _FACTORS)}
            near = [k for k, n in stated.items() if abs(value - n) <= self.tolerance * abs(n)]
            return near[0] if len(near) == 1 and stated[near[0]] != 1 else None
        return min(names, key=lambda n: (not any(w in n for w in _FACTORS), "√" in n), default=None)
