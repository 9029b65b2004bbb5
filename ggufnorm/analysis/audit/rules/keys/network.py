"""K1xx and K2xx: keys of the forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.rules.source.common import source_of
from ggufnorm.analysis.audit.source.keys.encoders import encoder_keys
from ggufnorm.analysis.audit.source.keys.facts import (
    Configs,
    Expected,
    KeyDifference,
    difference,
)
from ggufnorm.analysis.audit.source.keys.fixed import fixed_options
from ggufnorm.analysis.audit.source.keys.modules import dense_modules, lost_modules
from ggufnorm.analysis.audit.source.keys.network import network_keys
from ggufnorm.analysis.audit.source.keys.rope import frequency_factors, rope_keys
from ggufnorm.analysis.audit.source.keys.tokens import vocabulary_key
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.audit import Severity
from ggufnorm.core.mend import Mend, set_key
from ggufnorm.formats.dequantize import read_tensor

_ROPE = ("rope.",)


def configs(subject: Subject, *, encoders: bool = False) -> Configs:
    """The source's configs.

    Args:
        subject: the file and its source.
        encoders: whether encoders have such keys, too.

    Raises:
        NotApplicableError: there is no source, or the file has no such keys.
    """
    source = source_of(subject)
    if not subject.architecture or (subject.architecture == "clip" and not encoders):
        raise NotApplicableError("the file is no language model")
    return Configs(subject.file, source)


def _all(c: Configs) -> list[Expected]:
    if c.architecture == "clip":
        return list(encoder_keys(c))
    found = [*network_keys(c), *vocabulary_key(c), *rope_keys(c)]
    return list({e.key: e for e in reversed(found)}.values())[::-1]


def _is_rope(expected: Expected) -> bool:
    return ".rope." in expected.key


def _differences(subject: Subject, *, rope: bool, missing: bool) -> Iterator[Problem]:
    c = configs(subject, encoders=not rope)
    for expected in _all(c):
        if _is_rope(expected) != rope:
            continue
        found = difference(expected, c.file)
        if found is not None and (found.actual is None) == missing:
            yield _problem(found)


def _problem(found: KeyDifference) -> Problem:
    e = found.expected
    wanted = _shown(e.value)
    if found.actual is not None:
        said = f"{e.key} is {_shown(found.actual)}, {e.origin}: {e.does} should be {wanted}"
    elif found.effective is None:
        said = f"{e.key} is missing, {e.origin}: {e.does} should be {wanted}"
    else:
        said = (
            f"{e.key} is missing, so llama.cpp takes {_shown(found.effective)}, {e.origin}:"
            f" {e.does} should be {wanted}"
        )
    mend = set_key(e.key, e.type, e.value, found.actual, from_source=True)
    severity: Severity | None = "warning" if e.warn else None
    return Problem(said, evidence=_evidence(found), severity=severity, mend=mend)


def _evidence(found: KeyDifference) -> dict[str, Any]:
    """What the message says, as data."""
    e = found.expected
    return {
        "key": e.key,
        "type": e.type,
        "expected": e.value,
        "actual": found.actual,
        "effective": found.effective,
        "origin": e.origin,
    }


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value[:6]))}{', …' if len(value) > 6 else ''}]"
    return str(value)


@rule("K101", "key-differs", "error")
def differs(subject: Subject) -> Iterator[Problem]:
    """A key of the network is not what the source's config says.

    What it does:
        Derives from ``config.json`` and ``1_Pooling/config.json``, as llama.cpp's converter
        does, every key that the forward pass depends on: numbers of blocks, heads and
        experts, head sizes, expert routing, soft caps, scales of attention, residuals,
        embeddings and logits, windows, pooling, causality; of encoders of pictures and sounds
        their dimensions, projector and activation. Keys that llama.cpp does not
        read for this architecture are left out.

    Why it matters:
        The model loads and computes something else.

    What to do:
        Set the key to the value that the finding names, or convert again.

    Example:
        ``deepseek2.expert_gating_func is 1, config.json has scoring_func sigmoid: how
        experts are weighted (sigmoid) should be 2``
    """
    yield from _differences(subject, rope=False, missing=False)


@rule("K102", "key-missing", "error")
def missing(subject: Subject) -> Iterator[Problem]:
    """A key is missing that the source's config asks for.

    What it does:
        The same for keys that the file lacks. It is quiet where what llama.cpp takes then
        is what the config says.

    Why it matters:
        llama.cpp takes its default, and says nothing. Files that were made before a key
        existed are such.

    What to do:
        Add the key with the value that the finding names, or convert again.

    Example:
        ``gemma2.attn_logit_softcapping is missing, so llama.cpp takes 50, config.json has
        attn_logit_softcapping 5: the soft cap of attention scores should be 5``
    """
    yield from _differences(subject, rope=False, missing=True)


@rule("K103", "option-ignored", "error")
def ignored(subject: Subject) -> Iterator[Problem]:
    """The config asks for what llama.cpp's graph of the architecture does not compute.

    What it does:
        Compares the activation function, and whether attention has a window, with what the
        graph of the file's architecture computes whatever the keys say.

    Why it matters:
        No key mends it: the model loads and computes something else. A window that is left
        out changes long texts alone, and is a warning.

    What to do:
        Convert to an architecture that computes it, or take another engine.

    Example:
        ``config.json has hidden_act gelu: llama.cpp's llama computes SiLU``
    """
    for found in fixed_options(configs(subject)):
        evidence = {"option": found.option, "architecture": subject.architecture}
        severity: Severity = "error" if found.is_grave else "warning"
        yield Problem(found.message, evidence=evidence, severity=severity)


@rule("K104", "modules-lost", "error")
def modules(subject: Subject) -> Iterator[Problem]:
    """Dense layers behind the pooling of the source are not in the file.

    What it does:
        Compares the modules of ``modules.json`` with the file's tensors ``dense_2`` and
        ``dense_3``.

    Why it matters:
        Embeddings are those before these layers: another vector, often of another length.

    What to do:
        Convert again with ``--sentence-transformers-dense-modules``.

    Example:
        ``modules.json has 2_Dense and 3_Dense behind the pooling, and the file holds none of
        them: embeddings are those before these layers``
    """
    c = configs(subject)
    paths = dense_modules(c)
    if paths is None:
        raise NotApplicableError("the source has no modules.json")
    lost = lost_modules(c, paths)
    if lost is not None:
        yield Problem(lost.message, evidence={"modules": list(lost.paths)})


@rule("K201", "rope-differs", "error")
def rope_differs(subject: Subject) -> Iterator[Problem]:
    """A key of rotary positions is not what the source's config says.

    What it does:
        Compares the base, the number of rotated channels, and the kind and factors of
        scaling (linear, YaRN, longrope, HunYuan's dynamic) with the config's.

    Why it matters:
        With another base or scale every position is another angle; short texts may still
        look right.

    What to do:
        Set the key to the value that the finding names, or convert again.

    Example:
        ``llama.rope.freq_base is 10000, config.json has rope_theta 500000: the base of
        rotary positions should be 500000``
    """
    yield from _differences(subject, rope=True, missing=False)


@rule("K202", "rope-missing", "error")
def rope_missing(subject: Subject) -> Iterator[Problem]:
    """A key of rotary positions is missing that the source's config asks for.

    What it does:
        The same for keys that the file lacks, where llama.cpp's default is not what the
        config says.

    Why it matters:
        llama.cpp takes its default, and says nothing.

    What to do:
        Add the key with the value that the finding names, or convert again.

    Example:
        ``gemma3.rope.scaling.factor is missing, so llama.cpp takes 1, config.json has
        linear scaling by 8: the factor that rotary positions are scaled by should be 8``
    """
    yield from _differences(subject, rope=True, missing=True)


@rule("K203", "rope-factors", "error")
def factors(subject: Subject) -> Iterator[Problem]:
    """The tensors of rotary factors are missing, or are not what the config gives.

    What it does:
        Llama 3's scaling becomes the tensor ``rope_freqs.weight``, and longrope becomes
        ``rope_factors_long.weight`` and ``rope_factors_short.weight``. Computes them from
        the config, and compares.

    Why it matters:
        Without them positions are not scaled: long texts fall apart.

    What to do:
        Convert again.

    Example:
        ``rope_freqs.weight is missing: config.json has llama3 scaling by 8``
    """
    c = configs(subject)
    wanted = frequency_factors(c)
    if not wanted:
        raise NotApplicableError("config.json asks for no tensors of rotary factors")
    kind = c.rope.get("rope_type")
    for name, values in wanted.items():
        names = [n for n in subject.file.tensors if n.endswith(name)]
        if not names:
            message = f"{name} is missing: config.json has {kind} scaling"
            action = f"add {name}, computed from config.json"
            mend = Mend("missing", name, action, True, value=list(values))
            evidence = {"tensor": name, "expected": values[:512]}
            yield Problem(message, evidence=evidence, mend=mend)
            continue
        found = read_tensor(subject.file, names[0]).ravel()
        right = np.array(values, np.float32)
        if found.shape != right.shape or not np.allclose(found, right, rtol=1e-4):
            message = f"{names[0]} does not have the factors that config.json gives"
            action = f"write {names[0]} as config.json gives it"
            mend = Mend("values", names[0], action, True, value=list(values))
            yield Problem(message, names[0], None, {"expected": values[:512]}, mend=mend)


@rule("K301", "keys-compared", "info")
def coverage(subject: Subject) -> Iterator[Problem]:
    """How many keys were compared with the source's configs.

    What it does:
        Lists the keys for which the config says what they should be.

    Why it matters:
        An all-clear covers what was looked at, and nothing else.

    What to do:
        Nothing.

    Example:
        ``14 keys were compared with the source's configs``
    """
    c = configs(subject, encoders=True)
    keys = [e.key for e in _all(c) if difference(e, c.file) is not None or e.key in c.file.metadata
            or e.default is not None]  # fmt: skip
    message = f"{len(keys)} keys were compared with the source's configs"
    yield Problem(message, evidence={"keys": keys})


RULES: tuple[Rule, ...] = (
    differs, missing, ignored, modules, rope_differs, rope_missing, factors, coverage,
)  # fmt: skip
