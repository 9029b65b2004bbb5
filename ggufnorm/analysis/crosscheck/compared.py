"""One engine's run beside the source's: join the norms, diagnose them, and find what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.crosscheck.align_cls import align_class_token
from ggufnorm.analysis.crosscheck.diagnose import Diagnoser, with_cost
from ggufnorm.analysis.crosscheck.examined import examine
from ggufnorm.analysis.crosscheck.folds import folds_sentence
from ggufnorm.analysis.crosscheck.graphs import (
    NOTHING,
    compare_graphs,
    earliest,
    explained_by,
    with_layer,
)
from ggufnorm.analysis.crosscheck.join import Joined, Pair, join_gguf, join_names
from ggufnorm.analysis.crosscheck.layers import layers_sentence
from ggufnorm.analysis.crosscheck.logits import logits_off
from ggufnorm.analysis.crosscheck.output import OutputComparison
from ggufnorm.analysis.crosscheck.padding import padding_sentence
from ggufnorm.analysis.crosscheck.pinned import OwnErrors
from ggufnorm.analysis.crosscheck.results import first_wrong_output
from ggufnorm.analysis.crosscheck.stretches import NotFollowedError, follow_stretches
from ggufnorm.analysis.crosscheck.token_ids import TokenIds
from ggufnorm.analysis.crosscheck.unmatched import name_unmatched, wrong_pixels
from ggufnorm.analysis.crosscheck.verdict import (
    LOGITS,
    RESULTS,
    first_wrong,
    verdict,
    with_operation,
    wrong_output,
)
from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.frameworks import (
    EngineComparison,
    EngineDifference,
    FirstWrong,
    RunSide,
    SiteComparison,
)
from ggufnorm.core.logits import LogitStatistics, LogitSum
from ggufnorm.core.metrics import Difference, difference
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedRun, TypeCost
from ggufnorm.core.operations import Segment
from ggufnorm.core.rounding import HALF_ULP
from ggufnorm.core.tokens import halves
from ggufnorm.core.tolerances import (
    PRODUCT_ON_DEVICE,
    SAME_OPERATION,
    SAME_PRODUCT,
    STRETCH_OF_COST,
)
from ggufnorm.errors import InputError
from ggufnorm.formats.forms import parse
from ggufnorm.formats.location import local_path, open_model

Tokens = NDArray[np.int32]

MIN_TOKENS = 2
"""Fewest tokens that predict one."""

Follow = Callable[[Sequence[Pair], FirstWrong, float], Segment]
"""Records what both sides compute before something wrong, given their norms and the relative
L2 distance up to which two results are the same."""


def side(run: ObservedRun) -> RunSide:
    """One side of a comparison."""
    return RunSide(run.location, run.engine, len(run.norms), run.rounding, run.build)


def compare_runs(
    source: ObservedRun,
    engine: ObservedRun,
    location: str,
    *,
    tokens: Tokens | None = None,
    token_ids: TokenIds | None = None,
    output: OutputComparison | None = None,
    pixels: tuple[FeedFinding, ...] = (),
    skipped: tuple[Skipped, ...] = (),
    halved: Mapping[str, float] | None = None,
    follow: Follow | None = None,
    cost: Callable[[], TypeCost] | None = None,
    own: Callable[[Sequence[Pair]], OwnErrors] | None = None,
) -> EngineComparison:
    """One engine against the source.

    Args:
        source: what is right by definition.
        engine: another run on the same tokens or pixels.
        location: of the engine's model.
        tokens: that both ran; None for a picture.
        token_ids: what the two tokenizers make of texts; None where the engine has none.
        output: the engine's embedding or score beside the source's; None without.
        pixels: what the engine does to a picture otherwise than the source.
        skipped: what was not compared, and why.
        halved: how far half precision moves the input of each of the source's norms, relative
            L2 by its name; None if that was not measured.
        follow: gives all that both compute before something wrong; None where that is not
            possible.
        cost: measures how far the types of the engine's matrices move the source itself; None
            where that is not possible.
        own: measures what the engine makes of the source's values; None where it cannot be
            given them.

    Raises:
        InputError: they have no norm in common.
    """
    joined = _join(source, engine, location)
    if tokens is None:
        joined = align_class_token(joined)
    both = (parse(source.location).engine, parse(location).engine)
    names = _names(source, engine)
    graphs = compare_graphs(source, engine, tokens, names) if both == _BOTH_ONNX else NOTHING
    folds, anything = graphs.folds, joined.pairs or graphs.shows
    if not source.norms and not anything:
        raise InputError(f"{source.location}: it has no norm that can be compared")
    if not anything:
        weightless = all(n.effective_weight is None for n in source.norms)
        raise InputError(
            f"{location}: none of its {len(engine.norms)} norms is one of the"
            f" {len(source.norms)} of {source.location}: "
            + (
                "without weights nothing tells which is which, so nothing is compared"
                if weightless
                else "they are not one network"
            )
        )
    weights = {p.key: w for p in joined.pairs if (w := p.source.effective_weight) is not None}
    moved = {
        p.key: (halved or {}).get(p.source.name, 0.0) * engine.rounding / HALF_ULP["F16"]
        for p in joined.pairs
    }
    alone = OwnErrors({}, None) if own is None else own(joined.pairs)
    diagnoser = Diagnoser(
        *names, engine.rounding, weights, moved, own=alone.sites, kernels=engine.kernels
    )
    sites = diagnoser.sites(joined.pairs)
    told = {fold.norm for fold in folds.found}
    known = (*source.skipped, *engine.skipped, *joined.skipped, *folds.skipped)
    logits, why_not = _logits(source, engine, tokens)
    explained = diagnoser.explained(sites)
    off = _logits_off(source, engine, explained, alone, diagnoser.own_allowed(LOGITS))
    wrong = earliest(first_wrong(sites, names[1], off), sites, graphs, names[1])
    costs: Mapping[str, float] = {}
    own_costs: Mapping[str, float] = {}
    if cost is not None and _needs_cost(wrong):
        measured = cost()
        costs = _by_site(measured.moved, joined.pairs)
        own_costs = {**_by_site(measured.own, joined.pairs), LOGITS: measured.own_logits}
        diagnoser = with_cost(diagnoser, costs, own_costs)
        sites = diagnoser.sites(joined.pairs)
        explained = max(diagnoser.explained(sites), STRETCH_OF_COST * measured.logits)
        off = _logits_off(source, engine, explained, alone, diagnoser.own_allowed(LOGITS))
        wrong = first_wrong(sites, names[1], off, own_costs)
    if graphs.pools_otherwise and wrong is not None and _is_of_result(wrong, sites):
        wrong = None  # the norm of an embedding that is pooled otherwise
    if wrong is None:
        wrong = wrong_output(output, explained) or first_wrong_output(
            graphs.outputs, explained_by(graphs, explained), sites[-1].key if sites else None
        )
    followed = follow_stretches(
        sites,
        wrong,
        _is_followed,
        lambda w, seen: _record(follow, joined.pairs, w, seen, diagnoser),
        lambda seen: first_wrong(seen, names[1], off, own_costs),
        names[0],
    )
    of_output = () if output is None else output.known
    known_differences = (*_of_predictions(source, logits), *of_output, *followed.known)
    padding = None if output is None else output.padding
    sites, wrong = followed.sites, with_operation(followed.wrong, followed.operation, names[1])
    if both == _BOTH_ONNX and wrong is not None and _is_followed(wrong):
        wrong = with_layer(wrong, sites, graphs, source, engine)
    behind = wrong
    wrong = (
        graphs.front
        or wrong_pixels(pixels, sites)
        or name_unmatched(wrong, joined, source.norms, engine.norms)
    )
    result = _result(source, engine)
    seen = (len(sites), 0 if folds.found else len(graphs.layers.found))
    examined = examine(seen, logits, result, token_ids, output, graphs.outputs,
                       of_text=tokens is not None)  # fmt: skip
    said = (
        verdict(sites, wrong, engine.rounding, examined, costs, known_differences),
        _behind_front(graphs.front, behind),
        folds_sentence(folds, wrong),
        "" if folds.found else layers_sentence(graphs.layers, wrong),
        padding_sentence(padding, is_right=wrong is None),
        _on_device(engine),
        examined.sentence,
    )
    return EngineComparison(
        engine=side(engine),
        sites=sites,
        unmatched_source=joined.unmatched_source,
        unmatched_engine=joined.unmatched_engine,
        logits=logits,
        tokenizer=None if token_ids is None else token_ids.finding,
        first_wrong=wrong,
        verdict=" ".join(filter(None, said)),
        skipped=(*(s for s in known if s.what not in told), *why_not, *followed.skipped, *skipped),
        operations=followed.operations,
        known=known_differences,
        padding=padding,
        folds=folds.found,
        result=result,
        pixels=pixels,
        compared=examined.compared,
        not_compared=examined.not_compared,
        layers=graphs.layers.found,
        outputs=graphs.outputs,
    )


def _of_predictions(
    source: ObservedRun, logits: LogitStatistics | None
) -> tuple[EngineDifference, ...]:
    """The factor of a T5's predictions, which no graph of llama.cpp has (src/models/t5.cpp)."""
    factor = source.predicts_times
    if factor == 1.0 or logits is None:
        return ()
    reason = (
        f"the source multiplies what goes into its head with {factor:.4g}"
        " (scale_decoder_outputs), and llama.cpp does not; the likeliest token is the same, but"
        " what is sampled is not (the figures are without it): sample with a temperature of"
        f" {1 / factor:.4g} times yours"
    )
    return (
        EngineDifference(
            "the scale of predictions", "MUL_MAT", reason, abs(1 / factor - 1), n_sites=0
        ),
    )


def _on_device(engine: ObservedRun) -> str:
    """What a device's kernels hide; empty for the CPU's."""
    if engine.build is None or engine.kernels <= HALF_ULP["F16"]:
        return ""
    places = ", ".join(engine.build.devices)
    return (
        f"On {places} a matrix product may be off by {PRODUCT_ON_DEVICE:.2g} (llama.cpp's own"
        " test-backend-ops): a smaller mistake is not distinguishable there (-ngl 0 compares on the"
        " CPU)."
    )


def _behind_front(front: FirstWrong | None, wrong: FirstWrong | None) -> str:
    """What is wrong in two networks whose inputs are normalized otherwise; empty for one input."""
    if front is None:
        return ""
    fed = "Fed so that both normalize to the same"
    return f"{fed}, {wrong.key} is wrong: {wrong.reason}." if wrong else f"{fed}, all else agrees."


def _is_of_result(wrong: FirstWrong, sites: Sequence[SiteComparison]) -> bool:
    """Whether nothing but an L2 norm's input is wrong."""
    site = next((s for s in sites if s.key == wrong.key), None)
    return wrong.where == "before" and site is not None and site.source.kind == "l2"


def _is_followed(wrong: FirstWrong) -> bool:
    """Whether operations can tell more of it."""
    return wrong.where == "before" and wrong.key not in RESULTS[1:]


def _by_site(values: Mapping[str, float], pairs: Sequence[Pair]) -> dict[str, float]:
    """Values by the name of the source's norm, by the site's key."""
    return {p.key: v for p in pairs if (v := values.get(p.source.name)) is not None}


def _needs_cost(wrong: FirstWrong | None) -> bool:
    """Whether to measure what types cost: a norm that is wrong by itself is so in any type."""
    return wrong is None or wrong.where == "before"


def _record(
    follow: Follow | None,
    pairs: Sequence[Pair],
    wrong: FirstWrong,
    sites: Sequence[SiteComparison],
    diagnoser: Diagnoser,
) -> Segment:
    """All that both compute before something wrong.

    Raises:
        NotFollowedError: it cannot be told.
    """
    if follow is None:
        raise NotFollowedError("only language models are followed between norms")
    if diagnoser.own:
        tolerance = diagnoser.of_operation
    else:
        before = list(takewhile(lambda s: s.key != wrong.key, sites))
        tolerance = diagnoser.explained(before, wrong.key)
    if tolerance > (SAME_PRODUCT if diagnoser.own else SAME_OPERATION):
        raise NotFollowedError(
            f"results may differ by {tolerance:.2g} here: compare a file in F16 to be told"
            " which one is wrong"
        )
    return follow(pairs, wrong, tolerance)


def _result(source: ObservedRun, engine: ObservedRun) -> Difference | None:
    a, b = source.result, engine.result
    return difference(a, b) if a is not None and b is not None and a.shape == b.shape else None


_BOTH_ONNX = ("onnxruntime", "onnxruntime")

_NAMES = {
    "llama-cpp-python": "llama.cpp",
    "onnxruntime": "ONNX Runtime",
    "transformers": "Transformers",
}


def _names(source: ObservedRun, engine: ObservedRun) -> tuple[str, str]:
    """What the two are called: by what ran them, or by their files where that is the same."""
    a, b = _short(source), _short(engine)
    if a != b:
        return a, b
    first, second = (Path(run.location) for run in (source, engine))
    if first.name != second.name:
        return first.name, second.name
    return str(first), str(second)


def _short(run: ObservedRun) -> str:
    package = run.engine.partition(" ")[0]
    return _NAMES.get(package, package)


def _join(source: ObservedRun, engine: ObservedRun, location: str) -> Joined:
    if parse(location).engine != "llama.cpp":
        return join_names(source.norms, engine.norms)
    with open_model(local_path(location)) as file:
        return join_gguf(source.norms, engine.norms, file)


def _logits_off(
    source: ObservedRun, engine: ObservedRun, explained: float, alone: OwnErrors, allowed: float
) -> float | None:
    """Relative L2 distance of the logits, None where rounding explains it or there are none.

    Args:
        source: the source's run.
        engine: the engine's.
        explained: most that rounding explains of all differences.
        alone: what the engine makes of the source's values: the head's own error counts.
        allowed: most of that which rounding explains.
    """
    if alone.logits is not None:
        return alone.logits if alone.logits > allowed else None
    off = logits_off(source.logits, engine.logits)
    return off if off is not None and off > explained else None


def _logits(
    source: ObservedRun, engine: ObservedRun, tokens: Tokens | None
) -> tuple[LogitStatistics | None, tuple[Skipped, ...]]:
    a, b = source.logits, engine.logits
    if tokens is None:
        return None, ()
    if a is None or b is None or len(a) != len(b) or len(a) < MIN_TOKENS:
        return None, (Skipped("logits", "one side makes no next-token predictions"),)
    tokens = halves(tokens)[1] if len(a) < len(tokens) else tokens  # what a decoder reads
    n = min(a.shape[1], b.shape[1])
    # Checkpoints pad their vocabulary, and converters take the padding off.
    note = (
        (Skipped("logits", f"{a.shape[1]} and {b.shape[1]} to a position: the first {n} count"),)
        if a.shape[1] != b.shape[1]
        else ()
    )
    total = LogitSum()
    total.add(a[:-1, :n], b[:-1, :n], np.minimum(tokens[1:], n - 1))
    return total.result(), note
