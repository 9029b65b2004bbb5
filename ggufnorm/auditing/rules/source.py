"""Family S: the file beside the checkpoint that it was converted from.

S101 comes first: where the source is another checkpoint, nothing that differs from it is
wrong, and the other rules that compare values are not run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ggufnorm.auditing.config import same_float32, text_epsilon
from ggufnorm.auditing.matching import Match, Matches
from ggufnorm.auditing.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.auditing.subject import Subject
from ggufnorm.core.model import NormSite
from ggufnorm.core.transforms import Kind
from ggufnorm.formats.hf import Source
from ggufnorm.formats.naming import layer_of

_FIXED_EPSILON = 1e-6
# Norms of a low-rank attention whose class in transformers is built without the config's
# epsilon (DeepseekV3RMSNorm and MiniCPMRMSNorm of q_a_layernorm and kv_a_layernorm).
_FIXED = {(a, r) for a in ("deepseek2", "minicpm3") for r in ("q_a", "kv_a")}


@rule("S101", "source-different", "error")
def different(subject: Subject) -> Iterator[Problem]:
    """The source is not the checkpoint that the file was made of.

    What it does:
        Looks at all norms together. If half of them or more have values or sizes that no
        transform explains, and the first rows of the token embedding do not show that it
        is the same checkpoint all the same, it is another one.

    Why it matters:
        Everything that is compared with another checkpoint differs. Reports of "corrupt
        norms" have turned out to be a base model beside its fine-tune.

    What to do:
        Give the checkpoint that was converted: check the repository, the revision and
        whether it is the base model or a fine-tune. The other rules of this family that
        compare values are not run.

    Example:
        ``the source is another checkpoint: 65 of 65 norm weights and biases have other
        values, which no transform explains``
    """
    matches = _matches(subject)
    if matches.different:
        evidence = {"source": _source(subject).path, "n_compared": len(matches.found)}
        kinds = Counter(m.explanation.kind for m in matches.found)
        message = f"the source is another checkpoint: {matches.different}"
        yield Problem(message, evidence={**evidence, "explanations": dict(kinds)})


@rule("S102", "source-norm-missing", "error")
def missing(subject: Subject) -> Iterator[Problem]:
    """The source has a norm that the file lacks.

    What it does:
        Looks up the name of each of the source's tensors in gguf-py's table for the
        architecture and expects every norm, weight and bias, in the file.

    Why it matters:
        A norm that was lost in conversion is not computed. The model may load and produce
        one character again and again (GLM-4-0414 without its post-norms).

    What to do:
        Convert again with a converter that knows the architecture.

    Example:
        ``blk.0.post_attention_norm.weight is missing: the source has
        model.layers.0.post_self_attn_layernorm.weight``
    """
    for origin in _same_checkpoint(subject).missing:
        message = f"{origin.tensor} is missing: the source has {origin.sources[0]}"
        evidence = {"sources": list(origin.sources)}
        yield Problem(message, origin.tensor, layer_of(origin.tensor), evidence)


@rule("S103", "source-norm-unknown", "warning")
def unknown(subject: Subject) -> Iterator[Problem]:
    """The file has a norm that nothing in the source becomes.

    What it does:
        Lists norms of the file whose origin was not found. It is a warning where the same
        norm of another layer has one, else an information: gguf-py's table does not have
        every name, and some converters make norms of their own.

    Why it matters:
        A norm that the source does not have should not be computed; and what has no known
        origin was not compared.

    What to do:
        Check that the source is complete and is the one that was converted.

    Example:
        ``blk.3.attn_q_norm.weight: nothing in the source becomes this norm``
    """
    matches = _same_checkpoint(subject)
    joined = {(m.site.role, m.is_bias) for m in matches.found}
    alone = [(n, s) for n, s in matches.unmatched if (s.role, n == s.bias) not in joined]
    for name, site in matches.unmatched:
        if (name, site) not in alone:
            message = f"{name}: nothing in the source becomes this norm"
            yield Problem(message, name, site.layer, {"role": site.role})
    if alone:
        names = [name for name, _ in alone]
        message = f"the origin of {len(alone)} tensors is not known, the first is {names[0]}"
        yield Problem(message, evidence={"tensors": names}, severity="info")


@rule("S104", "source-norm-size", "error")
def size(subject: Subject) -> Iterator[Problem]:
    """A norm has more or fewer elements than its source.

    What it does:
        Compares the number of elements; a conversion may reshape a norm, but keeps them.

    Why it matters:
        llama.cpp refuses a weight of the wrong size, or normalizes with the wrong width
        (OLMo2 32B's k_norm was written as wide as its q_norm).

    What to do:
        Convert again; if the converter is current, report it.

    Example:
        ``blk.0.attn_k_norm.weight has 5120 elements, its source 1024``
    """
    yield from _explained(subject, "size")


@rule("S201", "source-offset", "error")
def offset(subject: Subject) -> Iterator[Problem]:
    """A norm's weight is off from its source by a constant.

    What it does:
        Gemma's, Nemotron's and some other models' norms multiply by ``1 + w``, and the
        converter writes the sum. The rule finds a sum with another offset than the
        architecture's: missing, doubled, or added where none belongs.

    Why it matters:
        The model loads and computes finite nonsense.

    What to do:
        Convert the original checkpoint again. A source in MLX's format already has the
        offset in its values: then the file is right and the source is not the original.

    Example:
        ``output_norm.weight is the source's plus 0, where the conversion adds 1``
    """
    yield from _explained(subject, "offset")


@rule("S202", "source-scale", "error")
def scale(subject: Subject) -> Iterator[Problem]:
    """A norm's weight is its source's times a constant, with or without an offset.

    What it does:
        Finds the factor, or the factor and the offset, that explain every value.

    Why it matters:
        What the norm hands on is too large or too small by that factor.

    What to do:
        Convert again. A factor of the square root of the width, or of a rank, points to a
        scale that was folded into the weight twice, or not at all.

    Example:
        ``blk.0.attn_norm.weight is 2 times what the conversion gives``
    """
    yield from _explained(subject, "scale", "affine")


@rule("S203", "source-permuted", "error")
def permuted(subject: Subject) -> Iterator[Problem]:
    """A norm's weight has its source's values in another order.

    What it does:
        Compares the sorted values, and names the order if it is a usual one: halves
        interleaved as for rotary positions, or that undone.

    Why it matters:
        Every channel is multiplied with another one's weight. Norms of queries and keys
        must follow the permutation of the rows that they normalize.

    What to do:
        Convert again with a converter that knows the architecture.

    Example:
        ``blk.0.attn_k_norm.weight has the right values in another order (halves
        interleaved)``
    """
    yield from _explained(subject, "permutation")


@rule("S204", "source-swapped", "error")
def swapped(subject: Subject) -> Iterator[Problem]:
    """A norm's weight holds the values of another norm.

    What it does:
        Compares the values with what every other norm of the same size should hold, and
        says whether the two changed places.

    Why it matters:
        The names of norms before and after a block are easily taken for one another
        (``post_attention_layernorm`` has two meanings); the model loads all the same.

    What to do:
        Convert again with a converter that knows the architecture.

    Example:
        ``blk.0.attn_norm.weight holds the values of blk.0.ffn_norm.weight: the two changed
        places``
    """
    matches = _same_checkpoint(subject)
    shifted_ones = _shifted(matches)
    by_tensor = {m.tensor: m for m in matches.found}
    for match in _of_kind(matches, "elsewhere"):
        if match.tensor in shifted_ones:
            continue
        other = match.explanation.other or ""
        mutual = other in by_tensor and by_tensor[other].explanation.other == match.tensor
        message = f"{match.tensor} {match.explanation.message}"
        yield _problem(match, message + ": the two changed places" if mutual else message)


@rule("S205", "source-shifted", "error")
def shifted(subject: Subject) -> Iterator[Problem]:
    """Norms hold the values of the layer before or behind.

    What it does:
        Looks for two norms of one role or more that hold the values of the same norm so
        many layers away.

    Why it matters:
        Layers were counted from another number; every norm multiplies with the weight of
        another layer.

    What to do:
        Convert again. If the checkpoint was merged or pruned, check its layers' numbers.

    Example:
        ``blk.1.attn_norm.weight holds the values of blk.2.attn_norm.weight: shifted by 1``
    """
    matches = _same_checkpoint(subject)
    by = _shifted(matches)
    for match in matches.found:
        if match.tensor in by:
            layers = by[match.tensor]
            message = f"{match.tensor} {match.explanation.message}: shifted by {layers}"
            yield _problem(match, message, shift=layers)


@rule("S206", "source-rounded", "warning")
def rounded(subject: Subject) -> Iterator[Problem]:
    """A norm's weight lost precision on the way.

    What it does:
        Finds weights that are their source's, rounded to F16 or BF16. It is only an
        information if the source is F16 and the converter added its offset in half
        precision, as llama.cpp's does.

    Why it matters:
        Norms are kept in F32 because they are small and every channel passes through them.
        ``1 + w`` in BF16 is off by up to 0.004.

    What to do:
        Convert from the original checkpoint, not by way of a half-precision copy.

    Example:
        ``blk.0.attn_norm.weight was rounded to BF16 on the way, by up to 0.0039``
    """
    for match in _of_kind(_same_checkpoint(subject), "rounding", "half"):
        problem = _problem(match, f"{match.tensor} {match.explanation.message}")
        if match.explanation.kind == "half":
            problem = Problem(
                problem.message, problem.tensor, problem.layer, problem.evidence, "info"
            )
        yield problem


@rule("S207", "source-bytes", "error")
def byte_order(subject: Subject) -> Iterator[Problem]:
    """A norm's weight has the bytes of its values reversed.

    What it does:
        Compares the values with the source's in the other byte order.

    Why it matters:
        llama.cpp loads such a weight without a word; its values are noise.

    What to do:
        Convert on a little-endian machine, or with gguf-py's ``gguf_convert_endian.py``.

    Example:
        ``output_norm.weight has the bytes of each value reversed``
    """
    yield from _explained(subject, "bytes")


@rule("S208", "source-values", "error")
def values(subject: Subject) -> Iterator[Problem]:
    """A norm's weight has values that its source and the conversion do not explain.

    What it does:
        Compares the values with the source's after the conversion's known transform, up to
        the last bits. Speaks up where no other rule of the family does.

    Why it matters:
        The weight was damaged, edited, or comes from somewhere else.

    What to do:
        Download or convert the file again.

    Example:
        ``blk.2.ffn_norm.weight differs from its source in 1 of 4096 elements, first in
        element 17: 0 for 1.0625``
    """
    matches = _same_checkpoint(subject)
    yield from _explained(subject, "partial", "values")
    if matches.unreadable:
        name, reason = matches.unreadable[0]
        more = f" and {len(matches.unreadable) - 1} more" if matches.unreadable[1:] else ""
        raise NotApplicableError(f"{name}{more} could not be compared: {reason}")


@rule("S301", "source-bias", "error")
def bias(subject: Subject) -> Iterator[Problem]:
    """A norm's bias is not its source's.

    What it does:
        Compares the biases of LayerNorms, which no converter changes, and says what
        explains a difference: an offset, a scale, an order, another norm.

    Why it matters:
        The bias is added to every token's hidden state.

    What to do:
        Convert again.

    Example:
        ``blk.0.attn_norm.bias is the source's plus 1, where the conversion adds 0``
    """
    for match in _same_checkpoint(subject).found:
        if match.is_bias and match.explanation.kind != "equal":
            yield _problem(match, f"{match.tensor} {match.explanation.message}")


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
    _source(subject)
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


RULES: tuple[Rule, ...] = (
    different, missing, unknown, size, offset, scale, permuted, swapped, shifted, rounded,
    byte_order, values, bias, epsilon, epsilon_fixed,
)  # fmt: skip


def _source(subject: Subject) -> Source:
    if subject.source is None:
        raise NotApplicableError("no source was given (--source)")
    return subject.source


def _matches(subject: Subject) -> Matches:
    _source(subject)
    if subject.matches.problem:
        raise NotApplicableError(subject.matches.problem)
    return subject.matches


def _same_checkpoint(subject: Subject) -> Matches:
    matches = _matches(subject)
    if matches.different:
        raise NotApplicableError("the source is another checkpoint (S101)")
    return matches


def _of_kind(matches: Matches, *kinds: Kind) -> Iterator[Match]:
    return (m for m in matches.found if m.explanation.kind in kinds and not m.is_bias)


def _explained(subject: Subject, *kinds: Kind) -> Iterator[Problem]:
    for match in _of_kind(_same_checkpoint(subject), *kinds):
        yield _problem(match, f"{match.tensor} {match.explanation.message}")


def _problem(match: Match, message: str, **more: int) -> Problem:
    evidence = {
        "sources": list(match.origin.sources),
        "source_dtype": match.source_dtype,
        **match.explanation.evidence,
        **more,
    }
    return Problem(message, match.tensor, match.site.layer, evidence)


def _shifted(matches: Matches) -> dict[str, int]:
    """Tensors that hold another layer's values, with a fellow, and how far away that is."""
    by_tensor = {m.tensor: m for m in matches.found}
    away: dict[str, int] = {}
    for match in _of_kind(matches, "elsewhere"):
        other = by_tensor.get(match.explanation.other or "")
        if other is None:
            continue
        here, there = match.site, other.site
        mutual = other.explanation.other == match.tensor
        if here.role == there.role and None not in (here.layer, there.layer) and not mutual:
            away[match.tensor] = (there.layer or 0) - (here.layer or 0)
    common = Counter((by_tensor[name].site.role, by) for name, by in away.items())
    roles = {role for (role, _), n in common.items() if n > 1}
    return {name: by for name, by in away.items() if by_tensor[name].site.role in roles}


def _text_config(subject: Subject) -> dict[str, object]:
    source = _source(subject)
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
    return Problem(message, None, site.layer if per_layer else None, evidence)
