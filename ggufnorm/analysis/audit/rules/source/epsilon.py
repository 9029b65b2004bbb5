"""S4xx: are the epsilons the source's?"""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.analysis.audit.config import same_float32, text_epsilon
from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.rules.source.common import source_of
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.mend import set_key
from ggufnorm.core.model import NormSite

_FIXED_EPSILON = 1e-6
# Norms of a low-rank attention whose class in transformers is built without the config's
# epsilon (DeepseekV3RMSNorm and MiniCPMRMSNorm of q_a_layernorm and kv_a_layernorm).
_FIXED = {(a, r) for a in ("deepseek2", "minicpm3") for r in ("q_a", "kv_a")}


@rule("S401", "source-epsilon", "error")
def epsilon(subject: Subject) -> Iterator[Problem]:
    """The file's epsilon is not the one of the source's config.

    What it does:
        Compares every norm's epsilon, as float32, with the one in ``config.json``, by any
        of its usual names, in the language model's part of a config that has several.

    Why it matters:
        llama.cpp uses the file's. Where the hidden state is small an epsilon ten times too
        large changes it visibly (LLaMA 2 with 1e-6 for 1e-5: perplexity 5.90 for 5.83).

    What to do:
        Set the key to the config's value, or find out which of them is right: some
        converters write a constant (OLMoE 1e-5, GLM 1e-5 for 1.5625e-7).

    Example:
        ``llama.attention.layer_norm_rms_epsilon is 1e-06, config.json has rms_norm_eps 1e-05``
    """
    config = _text_config(subject)
    seen: set[tuple[str, float, float]] = set()
    compared = False
    for site in subject.sites:
        if site.kind is None or site.epsilon is None or site.epsilon_key is None:
            continue
        expected = text_epsilon(config, site.kind, site.layer)
        if expected is None:
            continue
        compared = True
        key, value = expected
        case = (site.epsilon_key, site.epsilon, value)
        if not same_float32(site.epsilon, value) and case not in seen:
            seen.add(case)
            yield _epsilon_problem(subject, site, key, value)
    if not compared:
        raise NotApplicableError("config.json names no epsilon of the file's norms")


@rule("S402", "source-epsilon-fixed", "warning")
def epsilon_fixed(subject: Subject) -> Iterator[Problem]:
    """A norm's epsilon is not the one that the source's code has for it.

    What it does:
        The low-rank norms of DeepSeek's and MiniCPM3's attention run with 1e-6 in
        transformers, whatever the config says; a GGUF file has one epsilon for all.

    Why it matters:
        With another epsilon in the config these norms are not quite the source's. The
        difference is small unless the latent is.

    What to do:
        Nothing can be set in the file for them alone. Know it when comparing with
        transformers.

    Example:
        ``blk.0.attn_kv_a_norm.weight: 1e-05 in the file, 1e-06 in transformers' code``
    """
    source_of(subject)
    fixed = [s for s in subject.sites if (subject.architecture, s.role) in _FIXED]
    if not fixed:
        raise NotApplicableError("no norm's epsilon is known to be fixed in the source's code")
    for site in fixed:
        if site.epsilon is not None and not same_float32(site.epsilon, _FIXED_EPSILON):
            message = (
                f"{site.tensor}: {site.epsilon:g} in the file, {_FIXED_EPSILON:g} in"
                " transformers' code"
            )
            evidence = {"epsilon": site.epsilon, "expected": _FIXED_EPSILON}
            yield Problem(message, site.tensor, site.layer, evidence)


RULES: tuple[Rule, ...] = (epsilon, epsilon_fixed)


def _text_config(subject: Subject) -> dict[str, object]:
    source = source_of(subject)
    if subject.architecture == "clip":
        raise NotApplicableError("an encoder's epsilon is V201's")
    return dict(source.config)


def _epsilon_problem(subject: Subject, site: NormSite, key: str, value: float) -> Problem:
    assert site.epsilon_key is not None
    per_layer = isinstance(subject.metadata[site.epsilon_key], list)
    message = f"{site.epsilon_key} is {site.epsilon:g}, config.json has {key} {value:g}"
    evidence = {
        "key": site.epsilon_key,
        "epsilon": site.epsilon,
        "config_key": key,
        "expected": value,
        "n_norms": sum(s.epsilon_key == site.epsilon_key for s in subject.sites),
    }
    mend = None
    if not per_layer and _is_same_for_all(subject, site.epsilon_key):
        mend = set_key(site.epsilon_key, "f32", value, site.epsilon, from_source=True)
    return Problem(message, None, site.layer if per_layer else None, evidence, mend=mend)


def _is_same_for_all(subject: Subject, epsilon_key: str) -> bool:
    """Whether the config has one epsilon for all norms whose epsilon stands under a key."""
    config = _text_config(subject)
    wanted = {
        text_epsilon(config, s.kind, s.layer)
        for s in subject.sites
        if s.kind is not None and s.epsilon_key == epsilon_key
    }
    return len(wanted) == 1
