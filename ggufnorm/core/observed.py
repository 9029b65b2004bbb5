"""What a framework or an engine showed of its norms in one run, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.engine import Engine
from ggufnorm.core.formula import Formula, best_formula
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.model import Skipped
from ggufnorm.core.rounding import HALF_ULP
from ggufnorm.core.tokens import tokens_first
from ggufnorm.core.tolerances import SAME_FORMULA

Array = NDArray[np.float32]

_FITTED_ROWS = 8
"""Rows from which a formula is told; the smallest among them tells epsilon."""
_BLOCK = 1 << 18
"""Values that are recomputed at a time: NumPy does so in float64, in several copies."""

MaybeArray = TypeVar("MaybeArray", Array, "Array | None")


class _Elsewhere(Generic[MaybeArray]):
    """A field whose array may lie elsewhere than in memory.

    Given is the array or a function that reads it, which is called whenever the field is looked
    at: nothing holds what it returns but whoever looks.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, held: object | None, owner: type) -> MaybeArray:
        if held is None:  # of the class itself: so a dataclass asks for a default
            raise AttributeError(self._name)
        value = vars(held)[self._name]
        found: MaybeArray = value() if callable(value) else value
        return found

    def __set__(self, held: object, value: MaybeArray | Callable[[], Array]) -> None:
        vars(held)[self._name] = value


@dataclass(frozen=True)
class ObservedNorm:
    """One norm in one run.

    Attributes:
        name: as its engine calls it: a module, a tensor, a node.
        formula: what it computes, with the epsilon and the offset that it applies.
        epsilon_stated: what its attribute or the file's metadata say; None if nothing.
        weight: ``(channels,)`` or ``(heads, channels)``, before the formula's offset; None
            for none.
        bias: the same.
        x: what went in, ``(tokens, heads, channels)``; one head unless the norm is per head.
            In an image encoder each row is a token. Given as an array or as a function that
            reads one, like ``y``.
        y: what came out, the same shape.
        weight_name: of the weight where it is stored, None for none.
        bias_name: the same of the bias.
        dtype: of the stored weight, in the file's words; None if it is float32 throughout.
        layer: block number, None outside the blocks or where it is not told.
        role: as in :class:`~ggufnorm.core.model.NormSite`; the empty string where it is
            not told.
        rounding: relative L2 that the types of its operations lose; 0 for float32.
    """

    name: str
    formula: Formula
    epsilon_stated: float | None
    weight: Array | None
    bias: Array | None
    x: _Elsewhere[Array] = _Elsewhere()
    y: _Elsewhere[Array] = _Elsewhere()
    weight_name: str | None = None
    bias_name: str | None = None
    dtype: str | None = None
    layer: int | None = None
    role: str = ""
    rounding: float = 0.0

    @property
    def effective_weight(self) -> Array | None:
        """What the normalized row is multiplied with: the weight and the offset."""
        if self.weight is None or not self.formula.weight:
            return None
        return self.weight + np.float32(self.formula.offset)

    def loaded(self) -> ObservedNorm:
        """The same with its rows in memory."""
        return replace(self)

    def residual(self) -> float:
        """Relative L2 distance of the result from the formula's own."""
        return relative_l2(self.recompute(self.x), self.y)

    def recompute(self, x: Array) -> Array:
        """What the norm makes of an input, in NumPy.

        Raises:
            ValueError: its weight or bias do not broadcast to the shape of ``x``.
        """
        step = max(1, _BLOCK * len(x) // max(1, x.size))
        if len(x) <= step:
            return self.formula.recompute(x, self.weight, self.bias)
        blocks = (x[i : i + step] for i in range(0, len(x), step))
        return np.concatenate([self.formula.recompute(b, self.weight, self.bias) for b in blocks])


@dataclass(frozen=True)
class Residual:
    """The hidden state that leaves a block.

    Attributes:
        name: of the block.
        n_norms: how many norms were computed before.
        value: ``(tokens, 1, channels)``; an array or a function that reads one.
    """

    name: str
    n_norms: int
    value: _Elsewhere[Array] = _Elsewhere()


@dataclass(frozen=True)
class Dense:
    """A linear layer behind the pooling of an embedding model.

    Attributes:
        name: of its folder.
        weight: ``(out, in)``.
        bias: ``(out,)``; None without.
        activation: the class of the function behind it, ``Identity`` for none.
    """

    name: str
    weight: Array
    bias: Array | None
    activation: str

    def __str__(self) -> str:
        n_out, n_in = self.weight.shape
        behind = "" if self.activation == "Identity" else f", {self.activation}"
        return f"{self.name} ({n_in} to {n_out}{behind})"

    def apply(self, x: Array) -> Array | None:
        """Its result; None where the width or the activation is none that is known here."""
        activations: dict[str, Callable[[Array], Array]] = {
            "Identity": lambda v: v,
            "Tanh": np.tanh,
            "ReLU": lambda v: np.maximum(v, 0),
        }
        function = activations.get(self.activation)
        if function is None or x.shape[-1] != self.weight.shape[1]:
            return None
        y = x @ self.weight.T
        return np.asarray(function(y if self.bias is None else y + self.bias), np.float32)


@dataclass(frozen=True)
class Padded:
    """What a source makes of a text alone, and beside a longer one in a padded batch.

    Attributes:
        n_tokens: of the text.
        side: on which it is padded.
        alone: its score, ``(labels,)``, or the states of its tokens, ``(n_tokens, channels)``;
            None where the source fails.
        padded: the same in the batch.
        cause: why they differ, or why the source fails; empty where that is not known.
    """

    n_tokens: int
    side: Literal["left", "right"]
    alone: Array | None
    padded: Array | None
    cause: str


@dataclass(frozen=True)
class SourceOutput:
    """What a checkpoint gives for a text, besides predictions.

    Attributes:
        states: of the last layer, ``(tokens, channels)``; None where it shows none.
        pooling: how it makes one embedding of them, ``mean`` …; None if it does not say.
        modules: what runs behind the pooling besides a normalization.
        classifier: the class that scores a text; None if it is made for none.
        score: its logits, ``(labels,)``; None where there is none.
        head: the weights that make it of the states, by name.
        normalizes: whether it brings an embedding to length 1; None if it does not say.
        dense: linear layers behind the pooling.
        padded: the same text alone and in a padded batch; None where that was not looked at.
        typed: the score with the second half of the text as a second one, where its tokens
            get another type; None where all types are the same.
        labels: ids of the tokens by the names of which a reranker answers.
        predicted: logits behind the last token; None without.
        unread: tensors of the checkpoint that nothing of Transformers reads.
        made_for: the class that the checkpoint was made for; None if it does not say.
    """

    states: Array | None
    pooling: str | None
    modules: tuple[str, ...]
    classifier: str | None
    score: Array | None
    head: dict[str, Array]
    normalizes: bool | None = None
    dense: tuple[Dense, ...] = ()
    padded: Padded | None = None
    typed: Array | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    predicted: Array | None = None
    unread: tuple[str, ...] = ()
    made_for: str | None = None


@dataclass(frozen=True)
class ModelOutput:
    """A result of a model, as floating-point numbers.

    Attributes:
        name: in the graph.
        value: in the graph's shape.
        unstable: the operation before it that rounding may turn over, such as ``TopK``; None
            if there is none.
    """

    name: str
    value: Array
    unstable: str | None = None


@dataclass(frozen=True)
class ObservedRun:
    """One run of one model.

    Attributes:
        engine: what ran it, with its version.
        location: of the model, as given.
        norms: in the order in which they were computed.
        logits: ``(tokens, vocabulary)``, an array or a function that reads one; None if the
            model predicts no tokens.
        skipped: what was not observed, and why.
        rounding: relative rounding of the coarsest type that the model's matrices are
            stored in, or of the engine's own kernels: 0 for float32.
        kernels: rounding of the engine's kernels by themselves, whatever the types.
        residuals: of each block, in order; empty where the engine does not show them.
        result: the model's first output; None where the engine does not show it.
        outputs: all of floating point, in the graph's order; empty where the engine does not
            show them.
        behind: what comes out behind each layer, by the value's name; empty where there are
            norms to look at.
        build: which llama.cpp ran it, and where; None for another engine.
        own_feed: whether it was fed other values than the source, as it normalizes its input
            otherwise.
        predicts_times: factor of the predictions that the model has and that was left out of
            the run, as llama.cpp leaves it out.
    """

    engine: str
    location: str
    norms: tuple[ObservedNorm, ...]
    logits: _Elsewhere[Array | None] = _Elsewhere()
    skipped: tuple[Skipped, ...] = ()
    rounding: float = 0.0
    kernels: float = HALF_ULP["F16"]
    residuals: tuple[Residual, ...] = ()
    result: Array | None = None
    outputs: tuple[ModelOutput, ...] = ()
    behind: Mapping[str, Array] = field(default_factory=dict)
    build: Engine | None = None
    own_feed: bool = False
    predicts_times: float = 1.0

    @property
    def predicts(self) -> bool:
        """Whether there are logits; they are not read."""
        return vars(self)["logits"] is not None


@dataclass(frozen=True)
class TypeCost:
    """How far types of matrices move a source, as relative L2 distances.

    Attributes:
        moved: of each norm's input by the norm's name, all matrices before it in those types.
        own: the same with every norm given its input of the plain run: what the matrices
            since the norms before cost by themselves.
        logits: of the logits; 0 without.
        own_logits: the same, the last norm given its input of the plain run.
    """

    moved: Mapping[str, float]
    own: Mapping[str, float]
    logits: float = 0.0
    own_logits: float = 0.0


def by_token(value: Array, n_tokens: int, channels: int) -> Array:
    """A value as ``(tokens, heads, channels)``, whichever axis the tokens are on.

    Args:
        value: channels last.
        n_tokens: how many were run; 0 in an image encoder, whose rows stay as they lie.
        channels: of a row.

    Raises:
        ValueError: no axis is as long as there are tokens, or the channels do not fit.
    """
    if not n_tokens:
        return np.ascontiguousarray(value, np.float32).reshape(-1, 1, channels)
    moved = tokens_first(value, n_tokens, channels_last=value.shape[-1] == channels)
    if moved is None:
        if not value.shape[:-1] or int(np.prod(value.shape[:-1])) % n_tokens:
            raise ValueError(f"{value.shape} has no axis of {n_tokens} tokens")
        moved = value  # rows of one token side by side, as after view(-1, channels)
    return np.ascontiguousarray(moved, np.float32).reshape(n_tokens, -1, channels)


def applied_formula(
    x: Array, y: Array, weight: Array | None, bias: Array | None, expected: Formula
) -> tuple[Formula, float]:
    """The formula that made ``y`` of ``x``, and how far its result is off.

    The one that is expected, where it explains the result; else the best that
    :func:`~ggufnorm.core.formula.best_formula` knows.

    Args:
        x: ``(tokens, heads, channels)``.
        y: the same shape.
        weight: broadcasts against ``x``, or None.
        bias: the same.
        expected: what the code or the file says.

    Raises:
        ValueError: no row is finite and not all zero.
    """
    residual = relative_l2(expected.recompute(x, weight, bias), y)
    if residual <= SAME_FORMULA:
        return expected, residual
    rows, out = _rows(x), _rows(y)
    size = np.linalg.norm(np.nan_to_num(rows.astype(np.float64)), axis=1)
    order = np.flatnonzero(size > 0)[np.argsort(size[size > 0], kind="stable")]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, _FITTED_ROWS).astype(int))]
    w, b = (None if v is None else np.asarray(_spread(v, x))[chosen] for v in (weight, bias))
    fit = best_formula(rows[chosen], out[chosen], w, b, expected=expected)
    return fit.formula, fit.residual


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _spread(v: Array | None, x: Array) -> Array | None:
    """A weight as each row of ``x`` meets it."""
    return None if v is None else np.broadcast_to(v, x.shape).reshape(-1, x.shape[-1])
