"""What became of an ONNX graph's batch norms in another graph of the same network.

They are folded into a layer beside them, kept, or written as other operations. Whatever it
is, a layer and all that scales and shifts its channels are one weight and one bias, and those
must be the source's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ggufnorm.core.folding import (
    ALONE,
    BatchNorm,
    Layer,
    Spot,
    Step,
    Values,
    alone,
    spots,
)
from ggufnorm.core.frameworks import FirstWrong, FoldedNorm, FoldStatus
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.misfolds import Mistake, mistakes
from ggufnorm.core.model import Skipped
from ggufnorm.core.tolerances import SAME_FORMULA
from ggufnorm.engines.onnx.layers import PlacedLayer, read_layers
from ggufnorm.engines.onnx.model import OnnxModel, attribute
from ggufnorm.engines.onnx.norms import (
    find_norms,
    own_statistics,
    site_name,
    takes_own_statistics,
)
from ggufnorm.formats.naming.join import match_names


@dataclass(frozen=True)
class Folds:
    """The batch norms of a source, and what became of them.

    Attributes:
        found: in the order of the source's graph.
        skipped: those of which nothing is told, and why.
        places: index of the node of each norm of the source, by its name.
    """

    found: tuple[FoldedNorm, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict)


# Damaged files hold anything; what comes of it is a fit that is not good.
@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def find_folds(source: str, engine: str) -> Folds:
    """Tell what became of each batch norm.

    Args:
        source: an ONNX file.
        engine: another one of the same network.

    Raises:
        InputError: one of them cannot be read.
    """
    model, other = OnnxModel(source), OnnxModel(engine)
    taught = dict(_of_own_statistics(model, other))
    if not any(node.op_type == ALONE for node in model.nodes):
        # What stands in no place of the source's graph comes before all of it.
        return Folds(tuple(taught.values()), (), dict.fromkeys(taught, -1))
    theirs = read_layers(model)
    norms = {n: i for placed in theirs for n, i in placed.norms.items()}
    ours = read_layers(other)
    apart = {p.layer.name for p in ours if p.layer.op == ALONE}
    pairs, skipped = _pairs([p for one in theirs for p in _apart(one, apart)], ours)
    diagnoser = _Diagnoser(_moved(pairs))
    folds = {fold.norm: fold for fold in diagnoser.all()}
    places = {site_name(n, model): n.node for n in find_norms(model)[0]}
    for name, fold in taught.items():
        folds[name] = _retold(folds[name], fold) if name in folds else fold
        places.setdefault(name, -1)
    places |= norms
    found = sorted(folds.values(), key=lambda fold: places[fold.norm])
    left = tuple(s for s in skipped if s.what not in taught)
    return Folds(tuple(found), left, places)


def _of_own_statistics(source: OnnxModel, engine: OnnxModel) -> Iterator[tuple[str, FoldedNorm]]:
    """Batch norms that only the engine gives the mean and the variance of their own input."""
    theirs, ours = ({site_name(n, m): m.nodes[n.node] for n in find_norms(m)[0]
                     if takes_own_statistics(m, m.nodes[n.node])}
                    for m in (source, engine))  # fmt: skip
    if len(theirs) == len(ours):
        return
    for name, node in ours.items():
        if name in theirs:
            continue
        before = engine.producers.get(node.input[0])
        yield (
            name,
            FoldedNorm(
                norm=name,
                layer=name if before is None else before.name or name,
                op=ALONE if before is None else before.op_type,
                side="after",
                status="mistake",
                weight_error=None,
                bias_error=None,
                weight_allowed=0.0,
                bias_allowed=0.0,
                epsilon=attribute(node, "epsilon", 1e-5),
                epsilon_applied=None,
                cause="statistics",
                message=own_statistics(engine, node),
                of=None,
            ),
        )


def _retold(fold: FoldedNorm, taught: FoldedNorm) -> FoldedNorm:
    """A fold of which it is known why it is wrong."""
    return replace(fold, status="mistake", cause=taught.cause, message=taught.message)


Pair = tuple[PlacedLayer, Layer]
"""A layer of the source, and the engine's."""


def _pairs(
    source: Sequence[PlacedLayer], engine: Sequence[PlacedLayer]
) -> tuple[list[Pair], tuple[Skipped, ...]]:
    """Layers of both sides, and the batch norms whose layer the engine does not have."""
    theirs, ours = ([(p.label, p.layer.look) for p in side] for side in (source, engine))
    found = {k: i for i, k in match_names(theirs, ours).items()}
    pairs, skipped = [], []
    for k, placed in enumerate(source):
        partner = engine[found[k]].layer if k in found else None
        if partner is not None and partner.look == placed.layer.look:
            pairs.append((placed, partner))
        else:
            reason = f"no layer of the engine's graph is told to be {placed.layer.name}"
            skipped += [Skipped(spot.norm.name, reason) for spot in spots(placed.layer)]
    return pairs, tuple(skipped)


def _apart(placed: PlacedLayer, names: Collection[str]) -> Iterator[PlacedLayer]:
    """A layer of the source without the norms that the engine has beside no layer, and those."""
    found = [s.norm for s in spots(placed.layer) if s.norm.name in names]
    if placed.layer.op == ALONE or not found:
        yield placed
        return

    def left(steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return tuple(s for s in steps if s.norm is None or s.norm.name not in names)

    layer = placed.layer
    yield replace(placed, layer=replace(layer, before=left(layer.before), after=left(layer.after)))
    for norm in found:
        i = placed.norms[norm.name]
        yield replace(placed, layer=alone(norm, norm.step), weight_name=norm.name,
                      label=norm.name, node=i)  # fmt: skip


def _moved(pairs: Sequence[Pair]) -> list[tuple[Layer, Layer]]:
    """The same, a norm between two layers given to the second where that is the one it is in."""
    at = {placed.node: i for i, (placed, _engine) in enumerate(pairs)}
    found = [(placed.layer, engine) for placed, engine in pairs]
    for i, (placed, engine) in enumerate(pairs):
        k = at.get(placed.follows) if placed.follows is not None else None
        if k is None:
            continue
        first, its_engine = found[k]
        start = next((s.index for s in spots(first) if s.side == "after"), len(first.after))
        without, layer = replace(first, after=first.after[:start]), found[i][0]
        if Fit.of(without, its_engine).good and not Fit.of(layer, engine).good:
            found[k] = (without, its_engine)
            found[i] = (replace(layer, before=(*first.after[start:], *layer.before)), engine)
    return found


@dataclass(frozen=True)
class _Diagnoser:
    """Diagnoses the batch norms of all layers that both sides have."""

    pairs: Sequence[tuple[Layer, Layer]]

    def all(self) -> Iterator[FoldedNorm]:
        norms = {s.norm.name: s.norm for layer, _e in self.pairs for s in spots(layer)}
        for layer, engine in self.pairs:
            fit = Fit.of(layer, engine)
            folds = [(s, self._fold(s, engine, fit, norms)) for s in spots(layer)]
            explained = any(f.cause not in (None, "values") for _s, f in folds)
            for spot, fold in folds:
                # Of two norms in one layer, the one that explains its values is to blame.
                blameless = explained and fold.cause == "values"
                yield _cleared(fold, spot, engine) if blameless else fold

    def _fold(
        self, spot: Spot, engine: Layer, fit: Fit, norms: Mapping[str, BatchNorm]
    ) -> FoldedNorm:
        fold = FoldedNorm(
            norm=spot.norm.name,
            layer=engine.name,
            op=engine.op,
            side=spot.side,
            status="folded" if max(fit.weight, fit.bias) <= SAME_FORMULA else "rounded",
            weight_error=_finite(fit.weight),
            bias_error=_finite(fit.bias),
            weight_allowed=fit.weight_allowed,
            bias_allowed=fit.bias_allowed,
            epsilon=spot.norm.epsilon,
            epsilon_applied=None,
            cause=None,
            message="",
            of=None,
        )
        if not fit.good:
            return self._wrong(fold, spot, engine, norms)
        if _is_kept(spot, engine):
            return replace(fold, status="kept")
        if spot.side == "before" and spot.layer.padded and spot.norm.step.shift.any():
            message = "shifts what the layer pads: folded into it, the border is another"
            return replace(fold, status="mistake", cause="padding", message=message)
        return fold

    def _wrong(
        self, fold: FoldedNorm, spot: Spot, engine: Layer, norms: Mapping[str, BatchNorm]
    ) -> FoldedNorm:
        for mistake in mistakes(spot, engine.values()[0], norms):
            if Fit.of(spot.layer, engine, mistake.values).good:
                return self._named(fold, spot, mistake)
        message = "is not in the weight as it should be"
        if fold.weight_error is not None and fold.weight_error <= fold.weight_allowed:
            message = "is right in the weight, and not in the bias"
        return replace(fold, status="mistake", cause="values", message=message)

    def _named(self, fold: FoldedNorm, spot: Spot, mistake: Mistake) -> FoldedNorm:
        named = replace(
            fold,
            status="mistake",
            cause=mistake.cause,
            message=mistake.message,
            epsilon_applied=mistake.epsilon,
            of=mistake.of,
        )
        other = self._other_layer(spot) if mistake.cause == "lost" else None
        if other is None:
            return named
        return replace(
            named, cause="elsewhere", message=f"is folded into {other}, not beside it", of=other
        )

    def _other_layer(self, spot: Spot) -> str | None:
        """The engine's name of another layer that has the norm."""
        step = replace(spot.norm.step, norm=None)
        for layer, engine in self.pairs:
            if layer is spot.layer or layer.bias.size != step.scale.size:
                continue
            if Fit.of(replace(layer, after=(*layer.after, step)), engine).good:
                return engine.name
        return None


@dataclass(frozen=True)
class Fit:
    """How well an engine's layer is the one that it should be.

    Attributes:
        weight: relative L2 of its weight.
        bias: the same of its bias, relative to the terms that it should be the sum of.
        weight_allowed: most that rounding explains.
        bias_allowed: the same of the bias.
    """

    weight: float
    bias: float
    weight_allowed: float
    bias_allowed: float

    @property
    def good(self) -> bool:
        """Whether rounding explains it."""
        return self.weight <= self.weight_allowed and self.bias <= self.bias_allowed

    @classmethod
    def of(cls, layer: Layer, engine: Layer, expected: Values | None = None) -> Fit:
        """The fit of an engine's layer.

        Args:
            layer: the source's.
            engine: the engine's.
            expected: what it should hold; None for what the source's does.
        """
        weight, bias = layer.values() if expected is None else expected
        found = engine.values()
        size = max(layer.bias_size(), float(np.linalg.norm(bias)), np.finfo(np.float64).tiny)
        distance = float(np.linalg.norm(found[1] - bias)) / size
        rounding = SAME_FORMULA + layer.weight_rounding() + engine.weight_rounding()
        added = (layer.bias_rounding() + engine.bias_rounding()) / size
        return cls(
            weight=relative_l2(weight, found[0]),
            bias=distance if np.isfinite(distance) else np.inf,
            weight_allowed=rounding,
            bias_allowed=rounding + added,
        )


def _cleared(fold: FoldedNorm, spot: Spot, engine: Layer) -> FoldedNorm:
    """The same without blame."""
    status: FoldStatus = "kept" if _is_kept(spot, engine) else "folded"
    return replace(fold, status=status, cause=None, message="")


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _is_kept(spot: Spot, engine: Layer) -> bool:
    """Whether the engine scales the channels by an operation of its own where the norm stands."""

    def scaling(layer: Layer) -> int:
        steps: tuple[Step, ...] = getattr(layer, spot.side)
        return sum(s.norm is not None or bool((s.scale != 1).any()) for s in steps)

    return scaling(engine) > scaling(spot.put())


# -- what is to be said of all of them -----------------------------------------------------------


def first_wrong_fold(folds: Folds) -> FirstWrong | None:
    """The first batch norm of which something else became than should."""
    for i, fold in enumerate(folds.found):
        if fold.status == "mistake":
            good = folds.found[i - 1].norm if i else None
            causes = () if fold.cause is None else (fold.cause,)
            return FirstWrong(fold.norm, None, "fold", good, f"it {described(fold)}", causes)
    return None


def harmless_folds(folds: Folds) -> Folds:
    """The same where nothing of what is wrong shows in what comes out of the model."""
    found = (replace(f, status="harmless") if f.status == "mistake" else f for f in folds.found)
    return replace(folds, found=tuple(found))


def described(fold: FoldedNorm) -> str:
    """What is wrong, and in which layer."""
    return f"{fold.message} ({fold.op} {fold.layer})"


def folds_sentence(folds: Folds, wrong: FirstWrong | None) -> str:
    """How many are right, or what is to be said beside the first wrong one; empty for nothing."""
    n = len(folds.found)
    mistaken = sum(f.status == "mistake" for f in folds.found)
    if mistaken:
        more = mistaken - (wrong is not None and wrong.where == "fold")
        return f"{more} more of {n} batch norms are wrong." if more else ""
    other = [f for f in folds.found if f.status == "harmless"]
    if other:
        rest = f" and {len(other) - 1} more are" if len(other) > 1 else " is"
        return (
            f"{other[0].norm}{rest} not in the layer beside as expected, and nothing of it shows in"
            " what comes out."
        )
    kept = sum(f.status == "kept" for f in folds.found)
    if not n or kept == n:
        return f"All {n} batch norms are kept as they are." if n else ""
    return f"{n - kept} of {n} batch norms are folded, and right{f'; {kept} kept' * bool(kept)}."
