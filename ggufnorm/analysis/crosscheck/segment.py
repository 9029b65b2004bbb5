"""Run source and engine once more, and record all that both compute between two norms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ggufnorm.analysis.crosscheck.join import Pair
from ggufnorm.analysis.crosscheck.nodes import watch_nodes
from ggufnorm.analysis.crosscheck.orders import in_source_order
from ggufnorm.analysis.crosscheck.pinned import source_inputs
from ggufnorm.core.frameworks import FirstWrong
from ggufnorm.core.observed import Array
from ggufnorm.core.operations import Operation, Segment
from ggufnorm.engines.hf.model import HFModel, Tokens
from ggufnorm.engines.row_file import RowFile
from ggufnorm.formats.conversion import tensor_of
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.naming.names import part_of
from ggufnorm.runs.options import RunSettings


def record_segment(
    model: HFModel,
    location: str,
    pairs: Sequence[Pair],
    wrong: FirstWrong,
    tokens: Tokens,
    tolerance: float,
    how: RunSettings,
) -> Segment:
    """All that is computed in the blocks between the last right norm and what is wrong.

    Args:
        model: the source.
        location: of the engine's GGUF file.
        pairs: the norms of both, in the engine's order.
        wrong: what lies behind the wrong operation.
        tokens: ids.
        tolerance: relative L2 distance up to which two results are the same.
        how: the file is run.

    Raises:
        EngineError: llama.cpp fails or crashes.
    """
    from ggufnorm.engines.hf.values import watch_values

    start, end = _first_of_block(pairs, wrong.after), _pair(pairs, wrong.key)
    crosses = start is not None and part_of(start.engine.role) != _part_at(pairs, end)
    if crosses:
        start = None  # the decoder begins with its own tokens
    first, last = (None if p is None else p.engine.name for p in (start, end))
    rows = RowFile()
    pins = source_inputs(pairs, rows)
    engine = watch_nodes(location, tokens, first, last, rows=rows, pins=pins, how=how)
    # Within a block the two may compute in another order: the source is followed to its end.
    begin, stop = (None if p is None else p.source.name for p in (start, _behind_block(pairs, end)))
    source = watch_values(model, tokens, begin, stop, "decoder" if crosses else None)
    belongs = _belongs(location, source)
    return Segment(
        engine=engine,
        source=source,
        goal=None if end is None else end.source.x,
        n_tokens=model.n_rows(tokens),
        tolerance=tolerance,
        weights=_weights(location, engine, model.config, source, belongs),
        numbers=model.numbers(),
        belongs=belongs,
    )


def _pair(pairs: Sequence[Pair], key: str | None) -> Pair | None:
    return next((p for p in pairs if p.key == key), None)


def _first_of_block(pairs: Sequence[Pair], key: str | None) -> Pair | None:
    """The first norm of a norm's block: what runs beside the norm may have begun before it."""
    last = _pair(pairs, key)
    if last is None or last.engine.layer is None:
        return last
    return next(p for p in pairs if _block(p) == _block(last))


def _block(pair: Pair) -> tuple[str | None, int | None]:
    """An encoder's blocks are numbered like its decoder's."""
    return part_of(pair.engine.role), pair.engine.layer


def _behind_block(pairs: Sequence[Pair], end: Pair | None) -> Pair | None:
    """The first norm behind the block of a norm; None if there is none."""
    if end is None:
        return None
    later = pairs[[p.key for p in pairs].index(end.key) + 1 :]
    return next((p for p in later if _block(p) != _block(end)), None)


def _part_at(pairs: Sequence[Pair], end: Pair | None) -> str | None:
    """Whether a stretch ends in the encoder or the decoder; None where there are no parts."""
    return part_of((end or pairs[-1]).engine.role)


def _weights(
    location: str,
    operations: Iterable[Operation],
    config: Mapping[str, Any],
    source: Sequence[Operation],
    belongs: Mapping[str, str],
) -> dict[str, Array]:
    """What the operations read of a file, but for its embeddings, in the source's order."""
    names = {o.tensor for o in operations if o.tensor and o.op in ("MUL_MAT", "MUL_MAT_ID", "ADD")}
    with open_model(local_path(location)) as file:
        weights = {name: np.squeeze(read_tensor(file, name)) for name in sorted(names)}
        named = [(belongs.get(o.tensor or ""), o.weight) for o in source if o.weight is not None]
        theirs = {name: weight for name, weight in named if name is not None}
        others = [weight for name, weight in named if name is None]
        return in_source_order(file, config, weights, theirs, others)


def _belongs(location: str, operations: Iterable[Operation]) -> dict[str, str]:
    """Where a file should have the matrices that the source's operations read."""
    names = {o.tensor for o in operations if o.tensor and o.weight is not None}
    with open_model(local_path(location)) as file:
        return {name: ours for name in names if (ours := tensor_of(file, name)) is not None}
