"""The order of an image encoder's rows: where the class token stands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ggufnorm.analysis.crosscheck.join import Joined
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedNorm
from ggufnorm.core.tolerances import NEARER_ORDER


def align_class_token(joined: Joined) -> Joined:
    """Put the class token first where the engine has it last.

    Checkpoints have it before the patches. llama.cpp has it behind them
    (``clip_graph_internvl::build`` in ``tools/mtmd/models/internvl.cpp``,
    ``clip_graph_llava::build`` in ``llava.cpp``), and to attention the order is the same.

    Args:
        joined: norms of one picture, a row for each token.

    Returns:
        The same, the engine's rows in the source's order and that among what is skipped.
    """
    if not joined.pairs:
        return joined
    source, engine = joined.pairs[0].source, joined.pairs[0].engine
    theirs = source.x
    as_they_lie, moved = (relative_l2(theirs, e.x) for e in (engine, _last_first(engine)))
    if not moved < NEARER_ORDER * as_they_lie:
        return joined
    n = len(engine.x)
    pairs = tuple(
        replace(p, engine=_last_first(p.engine)) if len(p.engine.x) == n else p
        for p in joined.pairs
    )
    why = "the engine has the class token last, the source first: compared in the source's order"
    return replace(joined, pairs=pairs, skipped=(*joined.skipped, Skipped("order of rows", why)))


def _last_first(norm: ObservedNorm) -> ObservedNorm:
    return replace(
        norm,
        x=lambda: np.roll(norm.x, 1, axis=0),
        y=lambda: np.roll(norm.y, 1, axis=0),
    )
