"""What two ONNX graphs show beside their norms: batch norms, layers and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.crosscheck.folds import Folds, find_folds, first_wrong_fold, harmless_folds
from ggufnorm.analysis.crosscheck.layers import (
    Layers,
    compare_layers,
    first_wrong_layer,
    harmless_layers,
)
from ggufnorm.analysis.crosscheck.results import are_the_same, compare_outputs
from ggufnorm.core.frameworks import FirstWrong, OutputDifference, SiteComparison
from ggufnorm.core.metrics import difference
from ggufnorm.core.observed import ObservedRun
from ggufnorm.core.tolerances import JUMP, SAME_DOWNSTREAM, SAME_FORMULA
from ggufnorm.engines.onnx.front import read_front
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.norms import find_norms, site_name
from ggufnorm.engines.onnx.tail import difference_of_tails, recognize_tail
from ggufnorm.errors import EngineError, InputError

Tokens = NDArray[np.int32]

_MOST_BYTES = 1 << 29
"""Of a file, above which its layers are not read: in float64 they take several times as much."""


@dataclass(frozen=True)
class Graphs:
    """What two graphs show.

    Attributes:
        folds: what became of batch norms.
        layers: where no norm tells where they part.
        outputs: all results.
        places: index of the node of each norm of the source, by its name.
        front: what is done otherwise to the pixels that both are fed; None for nothing.
    """

    folds: Folds
    layers: Layers
    outputs: tuple[OutputDifference, ...]
    places: Mapping[str, int]
    front: FirstWrong | None = None

    @property
    def pools_otherwise(self) -> bool:
        """Whether it is known why the first result is another."""
        return bool(self.outputs and self.outputs[0].reason)

    @property
    def shows(self) -> bool:
        """Whether anything was compared."""
        results = any(o.difference is not None for o in self.outputs)
        return bool(self.folds.found or self.layers.found or results)


NOTHING = Graphs(Folds(), Layers(), (), {})
"""Of models that are not both ONNX."""


def compare_graphs(
    source: ObservedRun, engine: ObservedRun, tokens: Tokens | None, names: tuple[str, str]
) -> Graphs:
    """Compare two ONNX files beside their norms.

    Args:
        source: what is right by definition.
        engine: another run on the same input.
        tokens: that both ran; None for a picture.
        names: what the two are called.

    Raises:
        InputError: one of them cannot be read.
    """
    folds = find_folds(source.location, engine.location)
    outputs = compare_outputs(source, engine)
    layers = Layers()
    taught = any(f.cause == "statistics" for f in folds.found)
    if (source.behind or engine.behind) and not taught and _is_small(source, engine):
        wrong = {f.layer for f in folds.found if f.status == "mistake"}
        layers = compare_layers(source, engine, wrong)
    if are_the_same(outputs, SAME_FORMULA):
        folds, layers = harmless_folds(folds), harmless_layers(layers)
    if outputs and tokens is not None and len(tokens) > 1 and not source.predicts:
        outputs = (_with_tail(outputs[0], source, engine, tokens, names), *outputs[1:])
    front = _front(source, engine, names)
    return Graphs(folds, layers, outputs, _places(source), front)


def _front(source: ObservedRun, engine: ObservedRun, names: tuple[str, str]) -> FirstWrong | None:
    """The pixels that one of the two normalizes, and the other one otherwise or not at all."""
    if not engine.own_feed:
        return None
    theirs, ours = (read_front(OnnxModel(run.location)) for run in (source, engine))
    said = [
        f"{name} normalizes it itself ({front})" if front else f"{name} does not"
        for name, front in ((names[1], ours), (names[0], theirs))
    ]
    if ours is None:
        said = [f"{names[1]} does not normalize it itself", f"{names[0]} does ({theirs})"]
    reason = f"{', '.join(said)}: the same pixels mean another picture"
    name = next(front.input for front in (ours, theirs) if front is not None)
    return FirstWrong(name, None, "input", None, reason, ("pixels",))


def _with_tail(
    first: OutputDifference,
    source: ObservedRun,
    engine: ObservedRun,
    tokens: Tokens,
    names: tuple[str, str],
) -> OutputDifference:
    """The first result, with what the two ends do otherwise; looked at with padding too."""
    try:
        theirs, ours = (recognize_tail(run.location, tokens) for run in (source, engine))
    except (EngineError, InputError):
        return first
    if theirs is None or ours is None:
        return first
    reason = difference_of_tails(theirs, ours, names)
    padded = first.difference
    if theirs.padded.shape == ours.padded.shape:
        padded = difference(theirs.padded, ours.padded)
    if padded is None or first.difference is None:
        return replace(first, reason=reason or first.reason)
    # What padding alone shows is worth as much as what any text does.
    off, behind = (d.rel_l2 or 0.0 for d in (first.difference, padded))
    if not reason and behind > JUMP * max(off, SAME_DOWNSTREAM):
        reason = f"it is off by {off:.3g} without padding: the attention mask is used otherwise"
    worse = padded if reason and behind > off else first.difference
    return replace(first, difference=worse, reason=reason)


def _is_small(*runs: ObservedRun) -> bool:
    sizes = (sum(f.stat().st_size for f in OnnxModel(r.location).files()) for r in runs)
    return max(sizes) <= _MOST_BYTES


def _places(source: ObservedRun) -> dict[str, int]:
    model = OnnxModel(source.location)
    return {site_name(n, model): n.node for n in find_norms(model)[0]}


def earliest(
    wrong: FirstWrong | None, sites: Sequence[SiteComparison], graphs: Graphs, engine: str
) -> FirstWrong | None:
    """Of a wrong site, a wrong fold and a wrong layer the one that the source's graph has first.

    Args:
        wrong: the first wrong site, or the logits.
        sites: all of them.
        graphs: what else there is.
        engine: what the engine is called.
    """
    found: list[tuple[float, FirstWrong]] = []
    if wrong is not None:
        name = next((s.source.name for s in sites if s.key == wrong.key), None)
        found.append((graphs.places.get(name or "", float("inf")), wrong))
    fold = first_wrong_fold(graphs.folds)
    if fold is not None:
        found.append((graphs.folds.places[fold.key], fold))
    layer = first_wrong_layer(graphs.layers, engine)
    if layer is not None:
        found.append((graphs.layers.places[layer.key], layer))
    # Of one place the norm, which says more than its layer.
    return min(found, key=lambda f: f[0])[1] if found else None


def explained_by(graphs: Graphs, explained: float) -> float:
    """The largest relative L2 distance of a result that rounding explains.

    Args:
        graphs: the layers and what comes out of them.
        explained: the same by the norms.
    """
    return max(explained, JUMP * graphs.layers.largest)


def with_layer(
    wrong: FirstWrong,
    sites: Sequence[SiteComparison],
    graphs: Graphs,
    source: ObservedRun,
    engine: ObservedRun,
) -> FirstWrong:
    """The finding with the wrong layer between two norms, where there is one.

    Args:
        wrong: what lies between norms goes wrong.
        sites: all norms.
        graphs: what else there is.
        source: what is right by definition.
        engine: the other run.
    """
    if not _is_small(source, engine):
        return wrong
    before = [s.source.name for s in takewhile(lambda s: s.key != wrong.key, sites)]
    after = next((s.source.name for s in sites if s.key == wrong.after), None)
    end = next((s.source.name for s in sites if s.key == wrong.key), None)
    first = graphs.places.get(after or "", -1) if before else -1
    last = graphs.places.get(end or "", float("inf"))
    layers = compare_layers(source, engine)
    for one in layers.found:
        if one.status == "mistake" and first < layers.places[one.engine] < last:
            reason = f"{wrong.reason}: {one.op} {one.engine}: {one.message}"
            return replace(wrong, reason=reason)
    return wrong
