"""Family E: the epsilons of the metadata, by themselves.

Beside the source's config they are family S's, in llama.cpp's graph family C's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np

from ggufnorm.analysis.audit.config import text_epsilon
from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.floats import shortest_float32
from ggufnorm.core.mend import Mend, override_kv, set_key
from ggufnorm.core.model import NormSite
from ggufnorm.formats.gguf_constants import Keys
from ggufnorm.formats.naming.language import expected_kind
from ggufnorm.formats.naming.rules import NO_KEY

_SMALLEST, _LARGEST = 1e-12, 1e-2
"""Between these lie the epsilons of all published models."""

# The epsilons of published models; 1.5625e-07 is GLM-4's, 0.00064 RWKV's.
_KNOWN = frozenset(
    {1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1.5625e-7, 5e-7, 1e-6, 5e-6, 1e-5, 1e-4, 6.4e-4, 1e-3}
)

# Architectures of which llama.cpp takes the RMSNorm's epsilon from either key
# (src/models/nemotron-h.cpp, cohere2moe.cpp).
_EITHER_KEY = frozenset({"nemotron_h", "nemotron_h_moe", "cohere2moe"})

_NAMES = {"rms": "RMSNorm", "layer": "LayerNorm"}


@dataclass(frozen=True)
class _Epsilon:
    """An epsilon of the metadata.

    Attributes:
        key: that holds it.
        value: as a float32.
        layer: whose it is, where the key holds one for each; else None.
    """

    key: str
    value: float
    layer: int | None = None

    @property
    def name(self) -> str:
        """The key, with the layer if it has several values."""
        return self.key if self.layer is None else f"{self.key}[{self.layer}]"


@rule("E101", "epsilon-missing", "error")
def missing(subject: Subject) -> Iterator[Problem]:
    """No key holds the epsilon of a norm that needs one.

    What it does:
        Expects the key of each norm's formula, but for norms whose epsilon stands in
        llama.cpp's code.

    Why it matters:
        llama.cpp refuses the file. For a few architectures (RWKV, Nemotron-H) it takes 0
        without a word.

    What to do:
        Write the epsilon of the source's config under the key.

    Example:
        ``llama.attention.layer_norm_rms_epsilon is missing: 65 norms need it``
    """
    sites = [s for s in subject.sites if s.epsilon is None and NO_KEY not in s.note]
    if not subject.sites:
        raise NotApplicableError("the file has no norm")
    unknown = expected_kind(subject.architecture) is None and subject.architecture != "clip"
    lacking: dict[str, list[NormSite]] = {}
    for site in sites:
        key = _wanted_key(subject, site)
        if key is not None and key not in subject.metadata and not _is_wrong_key(subject):
            lacking.setdefault(key, []).append(site)
    for key, those in lacking.items():
        norms = "norm needs" if len(those) == 1 else "norms need"
        message = f"{key} is missing: {len(those)} {norms} it"
        evidence = {"key": key, "n_norms": len(those)}
        yield Problem(message, evidence=evidence, mend=_of_source(subject, key, those))
    if unknown:
        raise NotApplicableError(
            f"the formula of the architecture {subject.architecture!a} is not known"
        )


@rule("E102", "epsilon-zero", "error")
def zero(subject: Subject) -> Iterator[Problem]:
    """A norm's epsilon is 0.

    What it does:
        Looks at every epsilon in the metadata.

    Why it matters:
        A hidden state of zeros, such as a padding token's, becomes NaN; all others are
        scaled a little wrong, and nothing else tells.

    What to do:
        Write the epsilon of the source's config under the key.

    Example:
        ``llama.attention.layer_norm_rms_epsilon is 0``
    """
    yield from _where(subject, lambda e: e.value == 0)


@rule("E103", "epsilon-negative", "error")
def negative(subject: Subject) -> Iterator[Problem]:
    """A norm's epsilon is negative.

    What it does:
        Looks at every epsilon in the metadata.

    Why it matters:
        llama.cpp loads such a file and aborts at the first token
        (``GGML_ASSERT(eps >= 0.0f)``).

    What to do:
        Write the epsilon of the source's config under the key.

    Example:
        ``llama.attention.layer_norm_rms_epsilon is -1e-05``
    """
    yield from _where(subject, lambda e: isfinite(e.value) and e.value < 0)


@rule("E104", "epsilon-non-finite", "error")
def non_finite(subject: Subject) -> Iterator[Problem]:
    """A norm's epsilon is NaN or infinite, or is no number.

    What it does:
        Looks at every epsilon in the metadata.

    Why it matters:
        With NaN llama.cpp aborts at the first token. With infinity every norm's output is 0,
        and the logits are finite and constant.

    What to do:
        Write the epsilon of the source's config under the key.

    Example:
        ``llama.attention.layer_norm_rms_epsilon is inf``
    """
    yield from _where(subject, lambda e: not isfinite(e.value))
    for key in _keys(subject):
        value = subject.metadata[key]
        numbers = value if isinstance(value, list) else [value]
        if not numbers or any(isinstance(n, (bool, str, list)) for n in numbers):
            yield Problem(f"{key} holds no number", evidence={"key": key})


@rule("E105", "epsilon-implausible", "warning")
def implausible(subject: Subject) -> Iterator[Problem]:
    """A norm's epsilon is far from that of any published model.

    What it does:
        Warns of epsilons below 1e-12 and above 1e-2. One between them that no published
        model is known to have is an information.

    Why it matters:
        The epsilon is added to the mean square of the hidden state. If it is as large as
        that, the norm no longer normalizes; if it is much too small, states near zero blow
        up.

    What to do:
        Compare with the source's config (``--source``).

    Example:
        ``llama.attention.layer_norm_rms_epsilon is 0.1: published models have 1e-12 to 0.01``
    """
    for epsilon in _epsilons(subject):
        if not isfinite(epsilon.value) or epsilon.value <= 0:
            continue  # E102 to E104
        shown = shortest_float32(epsilon.value) or 0.0
        evidence = {"key": epsilon.key, "epsilon": shown}
        if not _SMALLEST <= shown <= _LARGEST:
            message = f"{epsilon.name} is {shown:g}: published models have 1e-12 to 0.01"
            yield Problem(message, None, epsilon.layer, evidence)
        elif not any(np.float32(known) == np.float32(shown) for known in _KNOWN):
            message = f"{epsilon.name} is {shown:g}: no published model is known to have it"
            yield Problem(message, None, epsilon.layer, evidence, "info")


@rule("E106", "epsilon-wrong-key", "error")
def wrong_key(subject: Subject) -> Iterator[Problem]:
    """The epsilon stands under the other formula's key.

    What it does:
        Compares the key, ``layer_norm_rms_epsilon`` or ``layer_norm_epsilon``, with the norm
        that llama.cpp builds for the architecture.

    Why it matters:
        llama.cpp does not find the epsilon: it refuses the file, or takes 0.

    What to do:
        Write the value under the key that the architecture needs; names in the source's
        config do not tell (Orion's LayerNorm has its epsilon under ``rms_norm_eps``).

    Example:
        ``llama builds RMSNorm and needs llama.attention.layer_norm_rms_epsilon, the file has
        llama.attention.layer_norm_epsilon``
    """
    kind = expected_kind(subject.architecture)
    if kind is None:
        raise NotApplicableError(
            f"the formula of the architecture {subject.architecture!a} is not known"
        )
    if _is_wrong_key(subject):
        needed, other = _both_keys(subject)
        message = (
            f"{subject.architecture} builds {_NAMES[kind]} and needs {needed}, the file has {other}"
        )
        action = f"rename {other} to {needed}"
        mend = Mend("key", needed, action, False, renames=other)
        value = subject.metadata.number(other)
        if value is not None:
            mend = replace(mend, override_kv=override_kv(needed, "f32", value, None))
        yield Problem(message, evidence={"key": other, "needed": needed}, mend=mend)


def _of_source(subject: Subject, key: str, sites: list[NormSite]) -> Mend | None:
    """Add a missing key as the source's config has it, if it has one epsilon for all norms."""
    if subject.source is None or subject.architecture == "clip":
        return None
    kinds = {(s.kind or expected_kind(subject.architecture), s.layer) for s in sites}
    config = dict(subject.source.config)
    found = {text_epsilon(config, kind, layer) for kind, layer in kinds if kind is not None}
    epsilon = found.pop() if len(found) == 1 else None
    return None if epsilon is None else set_key(key, "f32", epsilon[1], None, from_source=True)


def _is_wrong_key(subject: Subject) -> bool:
    if expected_kind(subject.architecture) is None or subject.architecture in _EITHER_KEY:
        return False
    needed, other = _both_keys(subject)
    return needed not in subject.metadata and other in subject.metadata


def _both_keys(subject: Subject) -> tuple[str, str]:
    """The key of the architecture's formula, and that of the other."""
    arch = subject.architecture
    rms: str = Keys.Attention.LAYERNORM_RMS_EPS.format(arch=arch)
    layer: str = Keys.Attention.LAYERNORM_EPS.format(arch=arch)
    return (layer, rms) if expected_kind(arch) == "layer" else (rms, layer)


def _wanted_key(subject: Subject, site: NormSite) -> str | None:
    """The key that would hold a norm's epsilon, None if that is not known."""
    if subject.architecture == "clip":
        # inspect names the encoder's key where it is missing: there is one per modality.
        key, absent, _ = site.note.partition(" is not present")
        return key.rpartition("; ")[2] if absent else None
    kind = site.kind or expected_kind(subject.architecture)
    keys = {
        "rms": Keys.Attention.LAYERNORM_RMS_EPS,
        "l2": Keys.Attention.LAYERNORM_RMS_EPS,
        "layer": Keys.Attention.LAYERNORM_EPS,
        "group": Keys.Attention.GROUPNORM_EPS,
    }
    return keys[kind].format(arch=subject.architecture) if kind else None


def _where(subject: Subject, holds: Callable[[_Epsilon], bool]) -> Iterator[Problem]:
    for epsilon in _epsilons(subject):
        if holds(epsilon):
            value = epsilon.value if isfinite(epsilon.value) else str(epsilon.value)
            evidence = {"key": epsilon.key, "epsilon": value}
            yield Problem(f"{epsilon.name} is {epsilon.value:g}", None, epsilon.layer, evidence)


def _keys(subject: Subject) -> list[str]:
    """The keys that hold epsilons of norms.

    Raises:
        NotApplicableError: there is none.
    """
    names = (
        Keys.Attention.LAYERNORM_RMS_EPS,
        Keys.Attention.LAYERNORM_EPS,
        Keys.Attention.GROUPNORM_EPS,
    )
    keys = [name.format(arch=subject.architecture) for name in names]
    vision: str = Keys.ClipVision.Attention.LAYERNORM_EPS
    keys += [vision.replace("vision", part) for part in ("vision", "audio", "gen.audio")]
    present = [key for key in keys if key in subject.metadata]
    if not present:
        raise NotApplicableError("the file holds no epsilon (E101)")
    return present


def _epsilons(subject: Subject) -> Iterator[_Epsilon]:
    """Every epsilon of the metadata, those of a list one by one."""
    for key in _keys(subject):
        value = subject.metadata[key]
        if isinstance(value, list):
            for layer, number in enumerate(value):
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    yield _Epsilon(key, float(number), layer)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield _Epsilon(key, float(value))


RULES: tuple[Rule, ...] = (missing, zero, negative, non_finite, implausible, wrong_key)
