"""Run source and engine once more, to take down all that both compute between two norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ggufnorm.core.frameworks import FirstWrong
from ggufnorm.core.observed import Array
from ggufnorm.core.operations import Operation, Stretch
from ggufnorm.engines.hf.model import HFModel, Tokens
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.frameworks.join import Pair
from ggufnorm.frameworks.nodes import watch_nodes


def take_down(
    model: HFModel,
    location: str,
    pairs: Sequence[Pair],
    wrong: FirstWrong,
    tokens: Tokens,
    tolerance: float,
    n_threads: int | None,
) -> Stretch:
    """All that is computed in the blocks between the last right norm and what is wrong.

    Args:
        model: the source.
        location: of the engine's GGUF file.
        pairs: the norms of both, in the engine's order.
        wrong: what lies behind the wrong operation.
        tokens: ids.
        tolerance: relative L2 distance up to which two results are the same.
        n_threads: CPU threads; None for all.

    Raises:
        EngineError: llama.cpp fails or crashes.
    """
    from ggufnorm.engines.hf.values import watch_values

    start, end = _first_of_block(pairs, wrong.after), _pair(pairs, wrong.key)
    in_engine, in_source = (
        [None if p is None else getattr(p, side).name for p in (start, end)]
        for side in ("engine", "source")
    )
    engine = watch_nodes(location, tokens, *in_engine, n_threads=n_threads)
    return Stretch(
        engine=engine,
        source=watch_values(model, tokens, *in_source),
        n_tokens=len(tokens),
        tolerance=tolerance,
        weights=_weights(location, engine),
        numbers=model.numbers(),
    )


def _pair(pairs: Sequence[Pair], key: str | None) -> Pair | None:
    return next((p for p in pairs if p.key == key), None)


def _first_of_block(pairs: Sequence[Pair], key: str | None) -> Pair | None:
    """The first norm of a norm's block: what runs beside the norm may have begun before it."""
    last = _pair(pairs, key)
    if last is None or last.engine.layer is None:
        return last
    return next(p for p in pairs if p.engine.layer == last.engine.layer)


def _weights(location: str, operations: Iterable[Operation]) -> dict[str, Array]:
    """What the operations read of a file, but for its embeddings."""
    names = {o.tensor for o in operations if o.tensor and o.op in ("MUL_MAT", "ADD")}
    with open_model(local_path(location)) as file:
        return {name: np.squeeze(read_tensor(file, name)) for name in sorted(names)}
