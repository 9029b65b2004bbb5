"""Where an engine first goes wrong, and what there is to say of it in a sentence or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ggufnorm.analysis.crosscheck.examined import Examined
from ggufnorm.analysis.crosscheck.output import EMBEDDING, SCORE, STATES, OutputComparison
from ggufnorm.core.frameworks import (
    Cause,
    EngineDifference,
    FirstWrong,
    SiteComparison,
    WrongOperation,
)
from ggufnorm.core.tolerances import SAME_DOWNSTREAM
from ggufnorm.formats.naming.names import part_of

LOGITS = "logits"
"""In the place of a site's key, where the norms are right and the predictions are not."""

RESULTS = (LOGITS, EMBEDDING, STATES, SCORE)
"""Likewise: what comes out behind the last norm."""


def first_wrong(
    sites: Sequence[SiteComparison],
    engine: str,
    logits_off: float | None = None,
    costs: Mapping[str, float] | None = None,
) -> FirstWrong | None:
    """The first site that is wrong by itself, or that something wrong arrives at.

    Args:
        sites: in the engine's order.
        engine: what the engine is called.
        logits_off: relative L2 distance of the logits where rounding does not explain it.
        costs: what the types of the engine's matrices do to the input of each norm in the
            source itself; None where it was not measured.
    """
    for i, site in enumerate(sites):
        if site.status not in ("mistake", "before"):
            continue
        good = [s for s in sites[:i] if s.status in ("agrees", "precision", "engine", "harmless")]
        after = good[-1].key if good else None
        real = tuple(c for c in site.causes if c.is_mistake)
        if site.status == "mistake":
            reason = (
                _why(real)
                or f"its result is off by {_number(site.local)}, and nothing tried explains it"
            )
            return FirstWrong(
                site.key, site.layer, "norm", after, reason, tuple(c.kind for c in real)
            )
        where = f"after {after}" if after else "before the first norm"
        cost = (costs or {}).get(site.key)
        beside = "" if cost is None else f", where the file's types cost {_number(cost)}"
        off = site.input.rel_l2 if site.before_allowed is None else site.before
        reason = (
            f"what reaches it is off by {_number(off)}{beside}, and the norm itself"
            f" is right: {engine} does something else {where}"
        )
        return FirstWrong(site.key, site.layer, "before", after, reason, ())
    if logits_off is None:
        return None
    reason = f"they are off by {_number(logits_off)}, and the last norm is right"
    after = sites[-1].key if sites else None
    return FirstWrong(LOGITS, None, "before", after, reason, ())


def wrong_output(output: OutputComparison | None, explained: float) -> FirstWrong | None:
    """An embedding or a score that is not the source's, where all before it is right.

    Args:
        output: None without one.
        explained: largest relative L2 distance that rounding explains.
    """
    if output is None or output.skipped is not None:
        return None
    off = output.off
    if not output.is_wrong and off is not None and off <= explained:
        return None
    unknown = off is None and output.is_wrong
    reason = output.reason if unknown or output.what == SCORE else f"it is off by {_number(off)}"
    if not unknown and output.what != SCORE and output.reason:
        reason += f": {output.reason}"
    return FirstWrong(output.what, None, "before", None, reason, ())


def _why(causes: Sequence[Cause]) -> str:
    """The causes that show, or else all."""
    most = max((c.size for c in causes), default=0.0)
    return "; ".join(c.message for c in causes if c.size >= 0.01 * most)


def verdict(
    sites: Sequence[SiteComparison],
    wrong: FirstWrong | None,
    rounding: float,
    examined: Examined,
    costs: Mapping[str, float] | None = None,
    known: Sequence[EngineDifference] = (),
) -> str:
    """All of it in a sentence or two; empty without sites, if nothing is wrong."""
    said = _of_network(sites, wrong, rounding, bool(examined.not_compared))
    if wrong is None and costs and max(costs.values()) > SAME_DOWNSTREAM:
        said += (
            " Stored in the types of the file, the source's own matrices move these norms by up to"
            f" {_number(max(costs.values()))}: a mistake smaller than that is not"
            " distinguishable here (compare a file in F32)."
        )
    said = " ".join([said, *map(_known, known)]).strip()
    part = examined.token_ids
    if part is None:
        return said
    if part.is_engines:
        own = f"A known difference of llama.cpp, no mistake of the file: {part.message}."
        return f"{said} {own}".strip()
    ids = f"Token ids are not the source's: {part.message}."
    if wrong is not None:
        return f"{said} {ids}"
    return f"{ids} With the same ids: {said}" if said else ids


def _known(difference: EngineDifference) -> str:
    n = difference.n_sites
    places = f" before {n} norm{'s' if n > 1 else ''}" if n else ""
    effect = f", what follows by {_number(difference.effect)} at most" if difference.effect else ""
    return (
        f"A known difference of the engines, no mistake of the file{places}: {difference.name}"
        f" ({difference.op}) is off by {_number(difference.size)}{effect}: {difference.reason}."
    )


def _of_network(
    sites: Sequence[SiteComparison], wrong: FirstWrong | None, rounding: float, in_part: bool
) -> str:
    n = f"{len(sites)} norms" if len(sites) > 1 else "1 norm"
    if wrong is not None:
        part = next((part_of(s.role) for s in sites if s.key == wrong.key), None)
        place = " ".join(
            filter(None, (part, "" if wrong.layer is None else f"layer {wrong.layer}"))
        )
        where = f" ({place})" if place else ""
        others = sum(s.status == "mistake" for s in sites) - (wrong.where == "norm")
        more = f" {others} more of {n} are wrong by themselves." if others else ""
        return f"First wrong at {wrong.key}{where}: {wrong.reason}.{more}"
    if not sites:
        return ""
    worst = max(sites, key=lambda s: s.output.rel_l2 or 0.0)
    size = f"{_number(worst.output.rel_l2)} at {worst.key}"
    harmless = [s for s in sites if s.status == "harmless"]
    beside = ""
    if harmless:
        causes = [c for c in harmless[0].causes if c.is_mistake]
        beside = (
            f" Not as in the source, though it does not show here: {_why(causes)}"
            f" ({harmless[0].key}{f' and {len(harmless) - 1} more' if len(harmless) > 1 else ''})."
        )
    if (
        all(s.status in ("agrees", "harmless") for s in sites)
        and (worst.output.rel_l2 or 0) <= SAME_DOWNSTREAM
    ):
        return f"All {n} agree within float32 rounding: the largest difference is {size}.{beside}"
    start = f"a rounding of {_number(rounding)}" if rounding else "float32 rounding"
    none = "No mistake in what was compared" if in_part else "No mistake"
    alone = [s.before for s in sites if s.before is not None]
    own = f", and {_number(max(alone))} given the source's values" if alone else ""
    return f"{none}: differences grow gradually from {start}; the largest is {size}{own}.{beside}"


def with_operation(
    wrong: FirstWrong | None, operation: WrongOperation | None, engine: str
) -> FirstWrong | None:
    """The finding with the operation that it comes from."""
    if wrong is None or operation is None:
        return wrong
    of = f" of {operation.tensor}" if operation.tensor else ""
    reason = (
        f"{engine} goes wrong on the way to it, in {operation.name} ({operation.op}{of}):"
        f" {operation.reason}"
    )
    return replace(wrong, reason=reason, operation=operation)


def _number(value: float | None) -> str:
    return "NaN or infinity" if value is None else f"{value:.3g}"
