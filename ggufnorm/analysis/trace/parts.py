"""A trace that is made in parts, one range of layers after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ggufnorm.core.drift import ModelFacts
from ggufnorm.core.trace import BatchFacts, TraceFacts
from ggufnorm.engines.base import Array, Tokens
from ggufnorm.engines.llama.runner import Enter, LlamaRunner
from ggufnorm.engines.llama.stretch import Layers
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.errors import ConfigError, MismatchError


def require_layers(layers: Layers, n_layers: int, *, has_part: bool) -> None:
    """Refuse a range that the model does not have, or that has no beginning.

    Raises:
        ConfigError: it is such a one.
    """
    first, last = layers
    if last >= n_layers:
        raise ConfigError(f"the model has layers 0-{n_layers - 1}, and not {first}-{last}")
    if first and not has_part:
        raise ConfigError(
            f"layers {first}-{last} start from what layer {first - 1} ends with: name the trace of"
            f" layers 0-{first - 1} with --after"
        )
    if has_part and not first:
        raise ConfigError("--after is for layers behind the first: they start from the text")


def require_part(
    part: Trace, model: ModelFacts, tokens: Tokens, n_ctx: int, n_chunks: int, layers: Layers
) -> None:
    """Refuse a trace that a range cannot start from.

    Args:
        part: of the layers before.
        model: that is run.
        tokens: of the text.
        n_ctx: tokens of a chunk.
        n_chunks: that are run.
        layers: that are run.

    Raises:
        MismatchError: it is of another run, or does not have what is needed.
    """
    f = part.facts
    wrong = None
    if f.layers is None:
        wrong = "it has all layers"
    elif f.layers != layers[0]:
        wrong = f"it ends with layer {f.layers - 1}, and not {layers[0] - 1}"
    elif f.model.fingerprint != model.fingerprint:
        wrong = f"it is of another file ({f.model.path})"
    elif (f.n_ctx, f.n_chunks) != (n_ctx, n_chunks):
        wrong = f"it has {f.n_chunks} chunks of {f.n_ctx} tokens, and not {n_chunks} of {n_ctx}"
    elif not np.array_equal(part.tokens, tokens[: n_ctx * n_chunks]):
        wrong = "it ran another text: give both the same -f"
    elif (f.dtype, f.stride) != ("f32", 1):
        wrong = "it does not hold every token in f32: make it without --dtype f16 and --budget"
    if wrong is not None:
        raise MismatchError(
            f"layers {layers[0]}-{layers[1]} cannot start from {part.path}: {wrong}"
        )


def entering(part: Trace, runner: LlamaRunner) -> Enter:
    """What layers start from: the value that the layers before ended with."""
    places = [{s.key: i for i, s in enumerate(b.stops)} for b in part.facts.batches]

    def enter(k: int, first: int) -> Array:
        key = runner.graphs[k].hooks[0].key
        if k >= len(places) or key not in places[k]:
            raise MismatchError(f"{part.path} lacks {key}, from which the layers start")
        return part.rows(k, places[k][key], first // part.facts.n_ctx, 1).values

    return enter


def joined(part: TraceFacts, own: TraceFacts) -> TraceFacts:
    """What a trace says of itself that has the layers before, too."""
    pairs = zip(part.batches, own.batches, strict=True)
    return replace(
        own,
        batches=tuple(_joined(a, b) for a, b in pairs),
        skipped=tuple(dict.fromkeys((*part.skipped, *own.skipped))),
    )


def _joined(part: BatchFacts, own: BatchFacts) -> BatchFacts:
    known = {s.key for s in part.stops}
    stops = (*part.stops, *(s for s in own.stops if s.key not in known))
    return replace(own, stops=stops, norms=(*part.norms, *own.norms))
