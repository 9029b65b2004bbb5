"""Family L: LoRA adapters, alone and beside what PEFT saved (``--source ADAPTER_FOLDER``)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from ggufnorm.analysis.audit.adapters import (
    ALPHA,
    Likeness,
    Module,
    Pair,
    Peft,
    layer,
    left_over,
    likeness,
    pairs,
    targets,
    values,
)
from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.rules.source.common import source_of
from ggufnorm.analysis.audit.subject import Subject

_LISTED = 4


@rule("L101", "adapter-pair", "error")
def pair(subject: Subject) -> Iterator[Problem]:
    """A factor of an adapter is missing, of another rank, exchanged with the other, or foreign.

    What it does:
        Expects ``NAME.lora_a`` and ``NAME.lora_b`` of one rank for each tensor, and nothing
        else but norms, which llama.cpp passes by.

    Why it matters:
        llama.cpp refuses the adapter, or applies less than was trained.

    What to do:
        Convert the adapter again.

    Example:
        ``blk.3.attn_q.weight: lora_a has rank 8 and lora_b rank 16``
    """
    for p in pairs(subject.file).values():
        say = partial(Problem, tensor=p.name, layer=layer(p))
        if p.a is None or p.b is None:
            has, lacks = ("lora_b", "lora_a") if p.a is None else ("lora_a", "lora_b")
            yield say(f"{p.name} has {has} and no {lacks}")
        elif p.is_exchanged:
            yield say(f"{p.name}: lora_a and lora_b are exchanged: {_shapes(p)}")
        elif not p.fits:
            of_a = p.a[0 if p.is_embedding else -1]
            yield say(f"{p.name}: lora_a has rank {of_a:,} and lora_b rank {p.b[0]:,}")
    for name in left_over(subject.file):
        if name.endswith("_norm.weight"):
            words = f"{name} is in the adapter, and llama.cpp passes by norms: merge it instead"
            yield Problem(words, name, severity="warning")
        else:
            words = f"{name} is no factor of an adapter: llama.cpp refuses the file"
            yield Problem(words, name)


def _shapes(p: Pair) -> str:
    a, b = (" × ".join(map(str, shape or ())) for shape in (p.a, p.b))
    return f"lora_a is {a}, lora_b {b}"


@rule("L102", "adapter-alpha", "error")
def alpha(subject: Subject) -> Iterator[Problem]:
    """The adapter says nothing of its scale, or nothing that llama.cpp can use.

    What it does:
        Looks at ``adapter.lora.alpha``, ``general.type`` and ``adapter.type``.

    Why it matters:
        llama.cpp multiplies an update by alpha divided by its rank, and by 1 where alpha is
        missing or 0: the adapter is applied too strongly or too weakly, without a word.

    What to do:
        Convert the adapter again, or set the key to the ``lora_alpha`` that it was trained with.

    Example:
        ``adapter.lora.alpha is missing: llama.cpp applies the update as it is, of whatever rank``
    """
    metadata = subject.metadata
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if metadata.string(key) != wanted:
            actual = metadata.string(key)
            what = "is missing" if actual is None else f"is {actual!a}"
            evidence = {"key": key, "expected": wanted, "actual": actual}
            message = f"{key} {what}, not {wanted!a}: llama.cpp refuses the adapter"
            yield Problem(message, evidence=evidence)
    value = _alpha(subject)
    if value is None or value == 0:
        what = "missing" if value is None else "0"
        message = f"{ALPHA} is {what}: llama.cpp applies the update as it is, of whatever rank"
        yield Problem(message, evidence={"key": ALPHA, "actual": value})
    elif not math.isfinite(value) or value < 0:
        message = f"{ALPHA} is {value:g}: no training has such a scale"
        yield Problem(message, evidence={"key": ALPHA, "actual": str(value)})


def _alpha(subject: Subject) -> float | None:
    value = subject.metadata.get(ALPHA)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def _peft(subject: Subject) -> Peft:
    """What PEFT saved.

    Raises:
        NotApplicableError: it was not given.
    """
    source = source_of(subject)
    if not source.is_adapter:
        raise NotApplicableError("the source is no adapter's folder, with adapter_config.json")
    return Peft(source)


@rule("L201", "adapter-scale", "error")
def scale(subject: Subject) -> Iterator[Problem]:
    """llama.cpp scales the updates otherwise than PEFT did in training.

    What it does:
        Computes the scale of each update from ``lora_alpha``, ``alpha_pattern`` and
        ``use_rslora`` of adapter_config.json, and beside it llama.cpp's: ``adapter.lora.alpha``
        divided by the rank.

    Why it matters:
        An adapter at another strength is another model. With rsLoRA the scale is alpha by the
        root of the rank, which llama.cpp's converter does not heed: of rank 64 the adapter is
        8 times too weak.

    What to do:
        Set ``adapter.lora.alpha`` to the value in the message, or run with ``--lora-scaled``.

    Example:
        ``all 64 updates are scaled by 0.25, PEFT scales them by 2 (use_rslora): 8 times too
        weak; with adapter.lora.alpha 128 they are right``
    """
    peft, value = _peft(subject), _alpha(subject)
    known = targets(subject.file, peft.modules)
    have = pairs(subject.file)
    wrong: dict[tuple[float, float, float], list[Pair]] = {}
    n = 0
    for name, target in known.items():
        wanted, p = peft.scale(peft.modules[name]), have.get(target)
        if wanted is None or p is None or not p.is_usable or not p.rank:
            continue
        n += 1
        own = value / p.rank if value else 1.0
        # A scale may have been multiplied into the factors instead.
        actual = own * _baked(subject, peft, peft.modules[name], p)
        if not math.isclose(actual, wanted, rel_tol=_CLOSE):
            right = (value or p.rank) * wanted / actual
            wrong.setdefault((actual, wanted, round(right, 6)), []).append(p)
    if not n:
        raise NotApplicableError("no update could be joined with a module of the adapter's folder")
    for (actual, wanted, right), those in wrong.items():
        yield _scaled(peft, actual, wanted, right, those, len(those) == n)


_CLOSE = 5e-3
"""Relative difference of scales that rounding a factor to 8 bits explains."""


def _alike(
    subject: Subject, peft: Peft, module: Module, p: Pair
) -> tuple[Likeness, Likeness] | None:
    """Both factors beside PEFT's; None where they cannot be read."""
    ours, theirs = values(subject.file, p), peft.values(module)
    if ours is None or theirs is None:
        return None
    a, b = (
        likeness(subject.architecture, p.name, part, x, y)
        for part, x, y in zip("AB", ours, theirs, strict=True)
    )
    return a, b


def _baked(subject: Subject, peft: Peft, module: Module, p: Pair) -> float:
    """What the factors themselves are scaled by, beside PEFT's; 1 where they are others."""
    alike = _alike(subject, peft, module, p)
    a, b = (x.factor for x in alike) if alike else (None, None)
    return a * b if a and b else 1.0


def _scaled(
    peft: Peft, actual: float, wanted: float, right: float, those: list[Pair], is_all: bool
) -> Problem:
    who = f"all {len(those)} updates are" if is_all else f"{_names([p.name for p in those])}:"
    why = " (use_rslora)" if peft.is_rank_stabilized else ""
    ratio = actual / wanted if wanted else math.inf
    how = f"{ratio:.3g} times too strong" if ratio > 1 else f"{1 / ratio:.3g} times too weak"
    if wanted * actual <= 0:
        how = "another sign, or nothing"
    message = f"{who} scaled by {actual:.4g}, PEFT scales them by {wanted:.4g}{why}: {how}"
    if is_all:
        message += f"; with {ALPHA} {right:.6g} they are right"
    else:
        message += "; one alpha does not fit all updates: scale their lora_b, or merge the adapter"
    evidence = {"key": ALPHA, "scale": actual, "expected": wanted, "alpha": right, "n": len(those)}
    return Problem(message, None if is_all else those[0].name, evidence=evidence)


@rule("L202", "adapter-lost", "error")
def lost(subject: Subject) -> Iterator[Problem]:
    """Something that was trained is not in the adapter's file.

    What it does:
        Looks in the file for each update of adapter_model.safetensors, and names what no
        adapter of llama.cpp can hold: modules that were trained whole (``modules_to_save``),
        biases, DoRA's magnitudes, rows of trained tokens.

    Why it matters:
        The model is another than the one that was trained. New tokens without their rows, or
        a classifier without its weights, give nonsense.

    What to do:
        Convert the adapter again; what llama.cpp's adapters cannot hold needs the adapter merged
        into its base model, and that converted.

    Example:
        ``1 module that was trained whole is not in the file: lm_head; merge the adapter``
    """
    peft = _peft(subject)
    known, have = targets(subject.file, peft.modules), pairs(subject.file)
    missing = [target for name, target in known.items() if target not in have]
    if missing:
        message = (
            f"{len(missing)} of {len(peft.modules)} updates are not in the file: {_names(missing)}"
        )
        yield Problem(message, missing[0], evidence={"n": len(missing), "missing": missing[:64]})
    foreign = [name for name in have if name not in {*known.values()}]
    if foreign and len(known) == len(peft.modules):
        message = f"{_names(foreign)}: the source has no such update"
        yield Problem(message, foreign[0], evidence={"n": len(foreign)})
    kinds: dict[str, list[str]] = {}
    for name, what in peft.others.items():
        kinds.setdefault(what, []).append(name.removeprefix("base_model.model."))
    for what, names in kinds.items():
        message = f"{what} is not in the file: {_names(names)}; merge the adapter, and convert that"
        yield Problem(message, evidence={"n": len(names), "missing": names[:64]})
    if "DoRA's magnitudes" not in kinds and peft.config.get("use_dora") is True:
        yield Problem("the adapter is a DoRA, whose magnitudes llama.cpp does not know: merge it")
    unknown = sorted({*peft.modules} - {*known})
    if unknown:
        raise NotApplicableError(f"no tensor is known for {_names(unknown)}")


@rule("L203", "adapter-differs", "error")
def differs(subject: Subject) -> Iterator[Problem]:
    """A factor of an update has not the source's values.

    What it does:
        Compares ``A·Aᵀ`` and ``Bᵀ·B`` of each update with PEFT's, which no order of inputs
        and outputs changes; then the order, where it is known how the converter changes it.

    Why it matters:
        The update is another one than was trained.

    What to do:
        Convert the adapter again.

    Example:
        ``blk.2.attn_v.weight: lora_b is not the source's: it has the values of
        blk.1.attn_v.weight``
    """
    peft = _peft(subject)
    known, have = targets(subject.file, peft.modules), pairs(subject.file)
    seen = 0
    for name, target in known.items():
        alike = _alike(subject, peft, peft.modules[name], have[target]) if target in have else None
        if alike is None:
            continue  # L101, L202
        seen += 1
        bad = [i for i, x in enumerate(alike) if x.factor is None]
        if bad:
            yield _values(subject, peft, known, have[target], bad)
        elif unordered := [i for i, x in enumerate(alike) if x.in_order is False]:
            message = f"{target}: {_which(unordered)} in another order than llama.cpp's converter's"
            yield Problem(message, target, layer(have[target]), {"factors": _which(unordered)})
    if not seen:
        raise NotApplicableError("no update could be joined with a module of the adapter's folder")


def _which(places: list[int]) -> str:
    verb = "is" if len(places) == 1 else "are"
    return " and ".join(("lora_a", "lora_b")[i] for i in places) + f" {verb}"


def _values(
    subject: Subject, peft: Peft, known: dict[str, str], p: Pair, bad: list[int]
) -> Problem:
    message = f"{p.name}: {_which(bad)} not the source's"
    ours = values(subject.file, p)
    for name, target in known.items():
        theirs = peft.values(peft.modules[name])
        if ours is None or theirs is None or target == p.name:
            continue
        alike = [likeness(subject.architecture, target, "AB"[i], ours[i], theirs[i]) for i in bad]
        if all(x.factor is not None for x in alike):
            message += f": it has the values of {target}"
            break
    return Problem(message, p.name, layer(p), {"factors": _which(bad)})


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


RULES: tuple[Rule, ...] = (pair, alpha, scale, lost, differs)
