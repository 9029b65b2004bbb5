"""Which norm of a source is which norm of an engine.

The names decide (:mod:`ggufnorm.formats.naming.join`). Between Transformers and GGUF a norm
without a weight is known by its block and role, and what is then left on both sides is joined in
order where it is as many norms of the same kind and width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import Array, ObservedNorm
from ggufnorm.core.tolerances import SAME_FUNCTION
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming.join import match_names, sources_of_tensors
from ggufnorm.formats.naming.names import parse_norm_name

Match = tuple[str, list[ObservedNorm], ObservedNorm]
"""A site's key, its norm (or a norm of each head) in the source, and its norm in the engine."""


@dataclass(frozen=True)
class Pair:
    """One norm on both sides, the values in one shape.

    Attributes:
        key: name of the site.
        source: in the source.
        engine: in the engine.
    """

    key: str
    source: ObservedNorm
    engine: ObservedNorm


@dataclass(frozen=True)
class Joined:
    """The norms of two runs.

    Attributes:
        pairs: in the engine's order.
        unmatched_source: names of norms that only the source has.
        unmatched_engine: names of norms that only the engine has.
        skipped: pairs that cannot be compared, and why.
    """

    pairs: tuple[Pair, ...]
    unmatched_source: tuple[str, ...]
    unmatched_engine: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def first_calls(engine: Iterable[ObservedNorm]) -> Iterator[ObservedNorm]:
    """Each norm once: one that a network runs again is known by its first run, as in torch."""
    seen: set[str] = set()
    for norm in engine:
        if norm.name not in seen:
            seen.add(norm.name)
            yield norm


def join_gguf(
    source: Sequence[ObservedNorm], engine: Sequence[ObservedNorm], file: ModelFile
) -> Joined:
    """Join by the names that a converter gives.

    Args:
        source: named as in a checkpoint.
        engine: named as in the file.
        file: that the engine ran.
    """
    # A norm without a weight still has a module's name, and names are all that is asked for.
    stored = {n.weight_name or f"{n.name}.weight": n for n in source}
    by_tensor = {
        tensor: [stored[name] for name in names]
        for tensor, names in sources_of_tensors(file, stored).items()
    }
    by_place = {
        (name.layer, name.role): norms
        for tensor, norms in by_tensor.items()
        if (name := parse_norm_name(tensor, file.architecture, file.tensors)) is not None
    }
    found: list[Match] = []
    for norm in first_calls(engine):
        theirs = by_tensor.get(norm.weight_name or norm.name)
        if theirs is None and norm.weight_name is None:
            theirs = by_place.get((norm.layer, norm.role))
        if theirs is not None:
            found.append((norm.name, theirs, norm))
    if found:
        return _joined([*found, *_weightless(found, source, engine)], source, engine)
    # gguf-py lags llama.cpp: it knows no names of the newest architectures.
    alike = _alike(source, engine)
    joined = _joined(alike, source, engine)
    if not alike:
        return joined
    why = f"no names of {file.architecture} are known: norms are joined by their values and order"
    return replace(joined, skipped=(*joined.skipped, Skipped("names", why)))


def _alike(source: Sequence[ObservedNorm], engine: Sequence[ObservedNorm]) -> list[Match]:
    """Norms with the same weights, and what is left in order if it looks alike."""
    left = {id(n): n for n in source}
    pairs: dict[int, ObservedNorm] = {}
    for norm in engine:
        same = [n for n in left.values() if _has_weight_of(n, norm)]
        if len(same) == 1:
            pairs[id(norm)] = left.pop(id(same[0]))
    rest = [n for n in engine if id(n) not in pairs]
    if [_look(n) for n in rest] == [_look(n) for n in left.values()]:
        pairs |= {id(e): s for e, s in zip(rest, left.values(), strict=True)}
    return [(e.name, [pairs[id(e)]], e) for e in engine if id(e) in pairs]


def _has_weight_of(source: ObservedNorm, engine: ObservedNorm) -> bool:
    ours, theirs = engine.effective_weight, source.effective_weight
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return False
    return relative_l2(theirs, ours) <= SAME_FUNCTION and np.ptp(ours) != 0


def _weightless(
    found: Sequence[Match], source: Sequence[ObservedNorm], engine: Sequence[ObservedNorm]
) -> list[Match]:
    """Norms without a weight, which a file has no name for, in order if they look alike."""
    joined = {id(n) for _, parts, e in found for n in (*parts, e)}
    left, rest = (
        [n for n in norms if n.weight_name is None and id(n) not in joined]
        for norms in (source, engine)
    )
    if [_look(n) for n in left] != [_look(n) for n in rest]:
        return []
    return [(e.name, [s], e) for s, e in zip(left, rest, strict=True)]


def join_names(source: Sequence[ObservedNorm], engine: Sequence[ObservedNorm]) -> Joined:
    """Join by the ends of the weights' names, and what is left by order."""
    theirs, ours = ([(n.weight_name, _look(n)) for n in norms] for norms in (source, engine))
    found = match_names(theirs, ours)
    rest = [k for k in range(len(source)) if k not in found.values()]
    left = [i for i in range(len(engine)) if i not in found]
    # What is left may be another kind of norm by mistake: its rows are as wide all the same.
    if [source[k].x.shape for k in rest] == [engine[i].x.shape for i in left]:
        found |= dict(zip(left, rest, strict=True))
    pairs = [(source[found[i]].name, [source[found[i]]], engine[i]) for i in sorted(found)]
    return _joined(pairs, source, engine)


def _look(norm: ObservedNorm) -> tuple[str, int]:
    return norm.formula.kind, norm.x.shape[-1]


def _joined(
    found: Iterable[Match],
    source: Sequence[ObservedNorm],
    engine: Sequence[ObservedNorm],
) -> Joined:
    pairs, skipped = [], []
    theirs, ours = set[int](), set[int]()
    order = {id(norm): i for i, norm in enumerate(engine)}
    for key, parts, norm in found:
        theirs.update(map(id, parts))
        ours.add(id(norm))
        try:
            pairs.append(_pair(key, parts, norm))
        except ValueError as error:
            skipped.append(Skipped(key, str(error)))
    return Joined(
        pairs=tuple(sorted(pairs, key=lambda p: order[id(p.engine)])),
        unmatched_source=tuple(n.name for n in source if id(n) not in theirs),
        unmatched_engine=tuple(n.name for n in engine if id(n) not in ours),
        skipped=tuple(skipped),
    )


def _pair(key: str, parts: list[ObservedNorm], engine: ObservedNorm) -> Pair:
    source = parts[0] if len(parts) == 1 else _stacked(parts)
    ours, theirs = engine.x.shape, source.x.shape
    if theirs != ours:
        raise ValueError(
            f"its rows are {_times(ours)} and in the source {_times(theirs)}"
            " (tokens, heads, channels)"
        )
    return Pair(key, source, engine)


def _stacked(parts: list[ObservedNorm]) -> ObservedNorm:
    """One norm of each head as one norm: StableLM has a module for each."""
    first = parts[0]

    def together(values: list[Array | None]) -> Array | None:
        present = [v for v in values if v is not None]
        return np.stack(present) if len(present) == len(values) else None

    return ObservedNorm(
        name=first.name,
        formula=first.formula,
        epsilon_stated=first.epsilon_stated,
        weight=together([p.weight for p in parts]),
        bias=together([p.bias for p in parts]),
        x=lambda: np.concatenate([p.x for p in parts], axis=1),
        y=lambda: np.concatenate([p.y for p in parts], axis=1),
        weight_name=first.weight_name,
        bias_name=first.bias_name,
    )


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
