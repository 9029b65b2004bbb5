"""Family V: how a vision encoder's file (``mmproj``) normalizes pixels and hidden states.

llama.cpp computes ``(pixel / 255 - mean) / std`` per channel with ``clip.vision.image_mean``
and ``clip.vision.image_std`` (``tools/mtmd/mtmd-image.cpp``), whatever they hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite

from ggufnorm.analysis.audit.config import same_float32, vision_epsilon
from ggufnorm.analysis.audit.pixels import (
    LARGEST,
    MEAN,
    STD,
    TRAINED_WITH,
    are_numbers,
    as_json,
    equal,
    in_words,
    possessive,
    three,
    whose,
)
from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.mend import Mend, set_key, undo
from ggufnorm.formats.gguf_constants import Keys
from ggufnorm.formats.naming.encoders import projector_type

_EPSILON: str = Keys.ClipVision.Attention.LAYERNORM_EPS

# Encoders without transformer blocks of the same make all through.
_OTHER_BLOCKS = frozenset({"gemma3nv"})


@rule("V101", "image-constants-missing", "error")
def missing(subject: Subject) -> Iterator[Problem]:
    """The file does not say how pixels are normalized.

    What it does:
        Looks for ``clip.vision.image_mean`` and ``clip.vision.image_std``.

    Why it matters:
        llama.cpp does not load an encoder without them.

    What to do:
        Convert again with the model's ``preprocessor_config.json`` beside it.

    Example:
        ``clip.vision.image_std is missing``
    """
    _vision(subject)
    for key in (MEAN, STD):
        if key not in subject.metadata:
            mend = _of_processor(subject, key)
            yield Problem(f"{key} is missing", evidence={"key": key}, mend=mend)


@rule("V102", "image-constants-shape", "error")
def shape(subject: Subject) -> Iterator[Problem]:
    """The mean or the deviation of pixels is not three numbers.

    What it does:
        Expects one number for each of red, green and blue.

    Why it matters:
        With fewer llama.cpp does not load the encoder; of more it takes the first three.

    What to do:
        Write the ``image_mean`` and ``image_std`` of the model's preprocessor config.

    Example:
        ``clip.vision.image_mean has 1 number, not 3``
    """
    _vision(subject)
    for key in (MEAN, STD):
        if key in subject.metadata and three(subject.metadata.get(key)) is None:
            value = subject.metadata[key]
            n = len(value) if isinstance(value, list) else 1
            numbers = f"{n} number" + "s" * (n != 1) if are_numbers(value) else "no numbers"
            mend = _of_processor(subject, key)
            yield Problem(f"{key} has {numbers}, not 3", evidence={"key": key, "n": n}, mend=mend)


@rule("V103", "image-std-not-positive", "error")
def not_positive(subject: Subject) -> Iterator[Problem]:
    """The deviation of pixels is not positive, or a constant is not finite.

    What it does:
        Looks at each of the six numbers.

    Why it matters:
        Pixels are divided by the deviation: by 0 they become infinite, by a negative number
        the picture becomes its negative.

    What to do:
        Write the ``image_std`` of the model's preprocessor config.

    Example:
        ``clip.vision.image_std is 0.5, 0, 0.5: every number must be above 0``
    """
    _vision(subject)
    mean, std = _constants(subject)
    if not all(isfinite(x) for x in mean):
        yield _of_key(subject, MEAN, mean, "every number must be finite")
    if not all(isfinite(x) and x > 0 for x in std):
        yield _of_key(subject, STD, std, "every number must be above 0")


@rule("V104", "image-std-is-mean", "error")
def std_is_mean(subject: Subject) -> Iterator[Problem]:
    """The deviation of pixels has the values of the mean.

    What it does:
        Compares the two. They are equal in no known model unless all are 0.5.

    Why it matters:
        A converter that wrote the mean twice went unseen with models whose two are equal,
        and spoilt the others (Pixtral, llama.cpp issue 13208).

    What to do:
        Write the ``image_std`` of the model's preprocessor config.

    Example:
        ``clip.vision.image_std is 0.4815, 0.4578, 0.4082: the values of the mean``
    """
    _vision(subject)
    mean, std = _constants(subject)
    if equal(mean, std) and not equal(mean, (0.5, 0.5, 0.5)):
        yield _of_key(subject, STD, std, "the values of the mean")


@rule("V105", "image-constants-range", "error")
def value_range(subject: Subject) -> Iterator[Problem]:
    """The mean or the deviation of pixels is meant for values from 0 to 255.

    What it does:
        llama.cpp divides pixels by 255 before it normalizes them; the rule looks for
        constants that only fit pixels that are not.

    Why it matters:
        Every picture becomes nearly one colour.

    What to do:
        Divide the constants by 255.

    Example:
        ``clip.vision.image_mean is 123.7, 116.3, 103.5: pixels are from 0 to 1 here``
    """
    _vision(subject)
    mean, std = _constants(subject)
    for key, numbers in ((MEAN, mean), (STD, std)):
        if any(isfinite(x) and abs(x) > LARGEST for x in numbers):
            found = _of_key(subject, key, numbers, "pixels are from 0 to 1 here")
            scaled = [x / 255 for x in numbers]
            own = set_key(key, "arr[f32]", scaled, list(numbers), from_source=False)
            yield replace(found, mend=found.mend or own)


@rule("V106", "image-constants-source", "error")
def from_source(subject: Subject) -> Iterator[Problem]:
    """The mean or the deviation of pixels is not the source's.

    What it does:
        Compares them with ``image_mean`` and ``image_std`` of ``preprocessor_config.json``
        or ``processor_config.json``, and says whose constants they are, if that is known.

    Why it matters:
        The encoder sees other pixels than it was trained on: CLIP's constants on an encoder
        trained with 0.5 stretch them by 1.9.

    What to do:
        Write the source's constants, or convert again.

    Example:
        ``clip.vision.image_mean is 0.4815, 0.4578, 0.4082 (CLIP's), the source has 0.5,
        0.5, 0.5``
    """
    _vision(subject)
    expected = _of_source(subject)
    if not expected:
        raise NotApplicableError("the source does not say how pixels are normalized")
    for key, there in expected.items():
        here = three(subject.metadata.get(key))
        if here is not None and not equal(here, there, within=1e-6):
            owner = whose(key, here)
            of = f" ({possessive(owner)})" if owner else ""
            message = f"{key} is {in_words(here)}{of}, the source has {in_words(there)}"
            evidence = {"key": key, "value": as_json(here), "expected": as_json(there), "of": owner}
            yield Problem(message, evidence=evidence, mend=_of_processor(subject, key))


@rule("V107", "image-constants-other", "warning")
def of_another(subject: Subject) -> Iterator[Problem]:
    """Pixels are normalized with another model's constants.

    What it does:
        Knows the constants of CLIP, ImageNet, SigLIP and MobileNet, and which of them the
        models of some projector types were trained with. A mean of one and a deviation of
        another are reported for every type. Not run where the source tells (V106).

    Why it matters:
        Models see something all the same, so wrong constants pass for a weak model.

    What to do:
        Compare with the ``preprocessor_config.json`` of the original model.

    Example:
        ``pixels are normalized with CLIP's constants, models of type qwen3vl_merger were
        trained with SigLIP's``
    """
    _vision(subject)
    if subject.source is not None and _of_source(subject):
        raise NotApplicableError("the source says how pixels are normalized (V106)")
    mean, std = _constants(subject)
    projector = projector_type(subject.metadata, "v.")
    of_mean, of_std = whose(MEAN, mean), whose(STD, std)
    usual = TRAINED_WITH.get(projector)
    evidence = {"mean_of": of_mean, "std_of": of_std, "projector": projector, "expected": usual}
    if of_mean and of_std and of_mean != of_std:
        message = f"the mean of pixels is {possessive(of_mean)}, the deviation {possessive(of_std)}"
        yield Problem(message, evidence=evidence)
    elif of_mean and of_std and usual and of_mean != usual:
        message = (
            f"pixels are normalized with {possessive(of_mean)} constants, models of type"
            f" {projector} were trained with {possessive(usual)}"
        )
        yield Problem(message, evidence=evidence)


@rule("V201", "vision-epsilon", "error")
def epsilon(subject: Subject) -> Iterator[Problem]:
    """The encoder's epsilon is not the one of the source's vision config.

    What it does:
        Compares ``clip.vision.attention.layer_norm_epsilon``, as float32, with the epsilon
        in the vision encoder's part of ``config.json``. Not run where llama.cpp's graph has
        a number of its own for all of the encoder's norms.

    Why it matters:
        All of the encoder's norms run with it.

    What to do:
        Set the key to the config's value.

    Example:
        ``clip.vision.attention.layer_norm_epsilon is 1e-05, config.json has
        vision_config.layer_norm_eps 1e-06``
    """
    _vision(subject)
    if subject.source is None:
        raise NotApplicableError("no source was given (--source)")
    sites = [s for s in subject.sites if s.epsilon_key == _EPSILON and s.role.startswith("v.")]
    site = next((s for s in sites if s.kind and s.epsilon is not None), None)
    if site is None or site.kind is None or site.epsilon is None:
        raise NotApplicableError("no norm of the encoder takes its epsilon from the file")
    expected = vision_epsilon(subject.source.config, site.kind)
    if expected is None:
        raise NotApplicableError("the source's vision config names no epsilon")
    key, value = expected
    if not same_float32(site.epsilon, value):
        message = f"{_EPSILON} is {site.epsilon:g}, config.json has {key} {value:g}"
        evidence = {"key": _EPSILON, "epsilon": site.epsilon, "config_key": key}
        evidence |= {"expected": value, "n_norms": len(sites)}
        mend = set_key(_EPSILON, "f32", value, site.epsilon, from_source=True)
        yield Problem(message, evidence=evidence, mend=mend)


@rule("V301", "vision-norm-missing", "error")
def norm_missing(subject: Subject) -> Iterator[Problem]:
    """A block of the encoder lacks a norm that the other blocks have.

    What it does:
        Expects the norms and biases that most blocks have in every block, and the norms
        before the attention and before the FFN together.

    Why it matters:
        llama.cpp leaves out what is not there, without a word.

    What to do:
        Convert again.

    Example:
        ``v.blk.5.ln2.weight is missing, 26 other blocks have it``
    """
    _vision(subject)
    if projector_type(subject.metadata, "v.") in _OTHER_BLOCKS:
        raise NotApplicableError("the encoder's blocks are not all of one make")
    blocks = _blocks(subject)
    if not blocks:
        raise NotApplicableError("the file has no blocks of a vision encoder")
    having: dict[str, set[int]] = defaultdict(set)
    for site in subject.sites:
        for name in (site.tensor, site.bias):
            if name is not None and site.layer in blocks and name.startswith("v.blk."):
                having[name.replace(f"v.blk.{site.layer}.", "", 1)].add(site.layer)
    for part, there in having.items():
        if 2 * len(there) > len(blocks):
            for block in sorted(blocks - there):
                name = f"v.blk.{block}.{part}"
                message = f"{name} is missing, {len(there)} other blocks have it"
                mend = undo("missing", name, f"add {name} from the source")
                known = None if subject.source is None else mend
                yield Problem(message, name, block, {"n_having": len(there)}, mend=known)
    yield from _unpaired(having)


RULES: tuple[Rule, ...] = (
    missing, shape, not_positive, std_is_mean, value_range, from_source, of_another, epsilon,
    norm_missing,
)  # fmt: skip


def _vision(subject: Subject) -> None:
    if subject.architecture != "clip":
        raise NotApplicableError("the file is no encoder's (mmproj)")
    if subject.metadata.get("clip.has_vision_encoder") is False:
        raise NotApplicableError("the file has no vision encoder")
    if not any(name.startswith("v.") for name in subject.file.tensors):
        raise NotApplicableError("the file has no vision encoder")


def _blocks(subject: Subject) -> set[int]:
    """Blocks of which the file has anything."""
    parts = (n.split(".", 3) for n in subject.file.tensors if n.startswith("v.blk."))
    return {int(p[2]) for p in parts if len(p) == 4 and p[2].isdecimal() and len(p[2]) < 10}


def _unpaired(having: dict[str, set[int]]) -> Iterator[Problem]:
    for here, other in (("ln1.weight", "ln2.weight"), ("ln2.weight", "ln1.weight")):
        if having.get(here) and not having.get(other):
            message = f"no block has {other}, {len(having[here])} have {here}"
            yield Problem(message, f"v.blk.0.{other}", evidence={"n_having": len(having[here])})


def _constants(subject: Subject) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = three(subject.metadata.get(MEAN)), three(subject.metadata.get(STD))
    if mean is None or std is None:
        raise NotApplicableError("the mean or the deviation is not three numbers (V101, V102)")
    return mean, std


def _of_source(subject: Subject) -> dict[str, tuple[float, ...]]:
    """Mean and deviation by the file's key, as far as the source has them."""
    if subject.source is None:
        raise NotApplicableError("no source was given (--source)")
    if projector_type(subject.metadata, "v.") == "gemma3nv":
        raise NotApplicableError("the converter writes 0 and 1 for MobileNetV5")
    config = subject.source.preprocessor or {}
    if config.get("do_normalize") is False:
        raise NotApplicableError("the source does not normalize pixels (do_normalize)")
    found = {}
    for key, name in ((MEAN, "image_mean"), (STD, "image_std")):
        value = config.get(name)
        numbers = three(value if isinstance(value, list) else [value] * 3)
        if numbers is not None:
            found[key] = numbers
    return found


def _of_processor(subject: Subject, key: str) -> Mend | None:
    """Write what the source's image processor has; None if it does not tell."""
    try:
        wanted = _of_source(subject).get(key)
    except NotApplicableError:
        return None
    if wanted is None:
        return None
    actual = subject.metadata.get(key)
    return set_key(key, "arr[f32]", list(wanted), actual, from_source=True)


def _of_key(subject: Subject, key: str, numbers: Sequence[float], problem: str) -> Problem:
    message = f"{key} is {in_words(numbers)}: {problem}"
    evidence = {"key": key, "value": as_json(numbers)}
    return Problem(message, evidence=evidence, mend=_of_processor(subject, key))
