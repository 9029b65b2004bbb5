"""What two ONNX graphs show beside their norms: batch norms, layers and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from ggufnorm.analysis.crosscheck.folds import Folds, find_folds, first_wrong_fold, harmless_folds
from ggufnorm.analysis.crosscheck.layers import (
    Layers,
    compare_layers,
    first_wrong_layer,
    harmless_layers,
)
from ggufnorm.analysis.crosscheck.results import are_the_same, compare_outputs
from ggufnorm.core.frameworks import FirstWrong, OutputDifference, SiteComparison
from ggufnorm.core.observed import ObservedRun
from ggufnorm.core.tolerances import JUMP, SAME_FORMULA
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.norms import find_norms, site_name

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
    """

    folds: Folds
    layers: Layers
    outputs: tuple[OutputDifference, ...]
    places: Mapping[str, int]

    @property
    def shows(self) -> bool:
        """Whether anything was compared."""
        results = any(o.difference is not None for o in self.outputs)
        return bool(self.folds.found or self.layers.found or results)


NOTHING = Graphs(Folds(), Layers(), (), {})
"""Of models that are not both ONNX."""


def compare_graphs(source: ObservedRun, engine: ObservedRun) -> Graphs:
    """Compare two ONNX files beside their norms.

    Args:
        source: what is right by definition.
        engine: another run on the same input.

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
    return Graphs(folds, layers, outputs, _places(source))


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
