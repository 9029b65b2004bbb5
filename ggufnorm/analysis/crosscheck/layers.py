"""The layers of two ONNX graphs, where norms do not tell where they part.

Each layer's weight and bias, with all that scales and shifts its channels, are compared, and
what comes out behind it where both sides were run with that in view.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ggufnorm.analysis.crosscheck.folds import Fit
from ggufnorm.core.folding import ALONE, Layer
from ggufnorm.core.frameworks import CauseKind, FirstWrong, LayerComparison, LayerStatus
from ggufnorm.core.metrics import Difference, difference
from ggufnorm.core.observed import ObservedRun
from ggufnorm.core.tolerances import JUMP, SAME_DOWNSTREAM, STRETCH_OF_MATRICES
from ggufnorm.core.transforms import Transform, explain
from ggufnorm.engines.onnx.layers import PlacedLayer, read_layers
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.formats.naming.join import match_names

_MOST_OTHERS = 64
"""Other layers' weights that are looked for in one that is wrong, at most."""


@dataclass(frozen=True)
class Layers:
    """The layers of a source, and the engine's.

    Attributes:
        found: in the order of the source's graph.
        places: index of the node of each in the source's graph, by the engine's name.
        unmatched: of the source, without a partner.
    """

    found: tuple[LayerComparison, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()

    @property
    def largest(self) -> float:
        """The largest relative L2 distance of results that nothing wrong precedes."""
        fine = (s for s in self.found if s.status in ("agrees", "rounded", "harmless"))
        return max((s.output.rel_l2 or 0.0 for s in fine if s.output), default=0.0)


@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def compare_layers(
    source: ObservedRun, engine: ObservedRun, folded: Collection[str] = ()
) -> Layers:
    """Compare the layers of two ONNX files.

    Args:
        source: what is right by definition.
        engine: another run on the same input.
        folded: names of the engine's layers of which is told already what is wrong.

    Raises:
        InputError: one of them cannot be read.
    """
    theirs, ours = (
        tuple(p for p in read_layers(OnnxModel(run.location)) if p.layer.op != ALONE)
        for run in (source, engine)
    )
    if engine.own_feed:  # what the two do to their pixels is told by itself
        theirs, ours = (_without_front(side) for side in (theirs, ours))
    pairs = _pairs(theirs, ours)
    known = {id(s) for s, _e in pairs}
    others = [s.layer for s, _e in pairs][:_MOST_OTHERS]
    found: list[LayerComparison] = []
    for s, e in pairs:
        seen = _output(source.behind.get(s.end), engine.behind.get(e.end))
        if (s.layer.op == "FusedConv") != (e.layer.op == "FusedConv"):
            seen = None  # an activation is in one of them
        told = e.layer.name in folded
        one = _compared(s.layer, e.layer, seen, others, told=told)
        status = "upstream" if told else _status(one, found, engine.rounding)
        found.append(replace(one, status=status))
    return Layers(
        tuple(found),
        {e.layer.name: s.node for s, e in pairs},
        tuple(s.layer.name for s in theirs if id(s) not in known),
    )


def _without_front(placed: tuple[PlacedLayer, ...]) -> tuple[PlacedLayer, ...]:
    """The layers, the first without what is done to its input."""
    return (*(replace(p, layer=replace(p.layer, before=())) for p in placed[:1]), *placed[1:])


def _pairs(
    source: Sequence[PlacedLayer], engine: Sequence[PlacedLayer]
) -> list[tuple[PlacedLayer, PlacedLayer]]:
    theirs, ours = ([(p.label, p.layer.look) for p in side] for side in (source, engine))
    found = match_names(theirs, ours)
    pairs = [(source[k], engine[i]) for i, k in found.items()]
    alike = [(s, e) for s, e in pairs if s.layer.look == e.layer.look]
    return sorted(alike, key=lambda pair: pair[0].node)


def _output(a: np.ndarray | None, b: np.ndarray | None) -> Difference | None:
    if a is None or b is None or a.size != b.size or not np.isfinite(a).all():
        return None
    return difference(a.reshape(1, -1), b.reshape(1, -1))


def _compared(
    source: Layer, engine: Layer, seen: Difference | None, others: Sequence[Layer], *, told: bool
) -> LayerComparison:
    fit = Fit.of(source, engine)
    causes = () if fit.good or told else tuple(_causes(source, engine, fit, others))
    return LayerComparison(
        source=source.name,
        engine=engine.name,
        op=engine.op,
        weight_error=_finite(fit.weight),
        bias_error=_finite(fit.bias),
        weight_allowed=fit.weight_allowed,
        bias_allowed=fit.bias_allowed,
        output=seen,
        status="agrees",
        message="; ".join(causes),
    )


def _status(
    one: LayerComparison, before: Sequence[LayerComparison], rounding: float
) -> LayerStatus:
    if one.message:
        return "mistake"
    off = None if one.output is None else one.output.rel_l2
    seen = [s.output.rel_l2 or 0.0 for s in before if s.output]
    explained = max(SAME_DOWNSTREAM, STRETCH_OF_MATRICES * rounding, JUMP * max(seen, default=0.0))
    wrong = any(s.status in ("mistake", "before", "upstream") for s in before)
    if one.output is not None and (off is None or off > explained):
        return "upstream" if wrong else "before"
    exact = max(one.weight_error or 0.0, one.bias_error or 0.0) <= SAME_DOWNSTREAM
    return "agrees" if exact and (off or 0.0) <= SAME_DOWNSTREAM else "rounded"


# -- why -----------------------------------------------------------------------------------------


def _causes(source: Layer, engine: Layer, fit: Fit, others: Sequence[Layer]) -> Iterator[str]:
    factors = tuple(_factors(source, engine))
    if factors and Fit.of(source, without_factors(source, engine)).good:
        yield from factors
        return
    (w, b), (expected_w, expected_b) = engine.values(), source.values()
    if fit.weight > fit.weight_allowed or not np.isfinite(fit.weight):
        yield f"its weight {_explained_weight(w, expected_w, source, others)}"
    if fit.bias > fit.bias_allowed or not np.isfinite(fit.bias):
        yield f"its bias {_of_bias(b, expected_b)}"


def _factors(source: Layer, engine: Layer) -> Iterator[str]:
    """Factors of a Gemm that are not the source's."""
    for name in ("alpha", "beta"):
        ours, theirs = getattr(engine, name), getattr(source, name)
        if ours != theirs:
            yield f"its {name} is {ours:.4g}, in the source {theirs:.4g}"


def without_factors(source: Layer, engine: Layer) -> Layer:
    """The engine's layer with the source's ``alpha`` and ``beta``."""
    alpha, beta = (
        theirs / ours if ours else np.nan
        for ours, theirs in ((engine.alpha, source.alpha), (engine.beta, source.beta))
    )
    return replace(engine, weight=engine.weight * alpha, bias=engine.bias * beta)


def _explained_weight(
    found: np.ndarray, expected: np.ndarray, source: Layer, others: Sequence[Layer]
) -> str:
    if found.shape == expected.shape and found.shape[1] == found.shape[2]:
        turned = np.swapaxes(expected, 1, 2)
        if np.allclose(found, turned, rtol=1e-4, atol=1e-6 * float(np.abs(expected).max())):
            return "is transposed"
    flat = {
        layer.name: layer.values()[0].reshape(-1).astype(np.float32)
        for layer in others
        if layer.name != source.name and layer.weight.size == expected.size
    }
    return explain(_flat(found), _flat(expected), Transform(), others=flat).message


def _of_bias(found: np.ndarray, expected: np.ndarray) -> str:
    if not found.any() and expected.any():
        return "is missing"
    return explain(_flat(found), _flat(expected), Transform()).message


def _flat(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.reshape(-1), np.float32)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


# -- what is to be said of all of them -----------------------------------------------------------


def harmless_layers(layers: Layers) -> Layers:
    """The same where nothing of it shows in what comes out of the model."""
    found = (replace(s, status="harmless") if s.status == "mistake" else s for s in layers.found)
    return replace(layers, found=tuple(found))


def first_wrong_layer(layers: Layers, engine: str) -> FirstWrong | None:
    """The first layer that is wrong by itself, or behind which something wrong comes out."""
    for i, one in enumerate(layers.found):
        after = layers.found[i - 1].engine if i else None
        if one.status == "mistake":
            factor = one.message.startswith(("its alpha", "its beta"))
            causes: tuple[CauseKind, ...] = ("alpha",) if factor else ("values",)
            reason = f"{one.message} ({one.op})"
            return FirstWrong(one.engine, None, "layer", after, reason, causes)
        if one.status == "before":
            off = None if one.output is None else one.output.rel_l2
            size = "NaN or infinity" if off is None else f"off by {off:.3g}"
            where = f"after {after}" if after else "before the first layer"
            reason = (
                f"what comes out of it is {size}, and its weight and bias are right: {engine}"
                f" does something else {where}"
            )
            return FirstWrong(one.engine, None, "layer", after, reason, ())
    return None


def layers_sentence(layers: Layers, wrong: FirstWrong | None) -> str:
    """How many agree; empty for nothing to say."""
    n = len(layers.found)
    if not n:
        return ""
    mistaken = sum(s.status == "mistake" for s in layers.found)
    if mistaken:
        more = mistaken - (wrong is not None and wrong.where == "layer")
        return f"{more} more of {n} layers are wrong." if more else ""
    if wrong is not None:
        return ""
    if any(s.status == "harmless" for s in layers.found):
        names = [s.engine for s in layers.found if s.status == "harmless"]
        return (
            f"{len(names)} of {n} layers hold other values ({names[0]} …), and nothing of it"
            " shows in what comes out."
        )
    return f"Weights and biases of all {n} layers agree." if n > 1 else "The layer agrees."
