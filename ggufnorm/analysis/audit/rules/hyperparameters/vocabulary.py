"""H3xx: the lists of the vocabulary beside each other, as llama.cpp reads them.

Facts of ``llama_vocab::impl::load`` in ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.source.keys.facts import Configs
from ggufnorm.analysis.audit.source.keys.tokens import template
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.formats.sentencepiece import BYTE, CONTROL, NORMAL

_KEY = "tokenizer.ggml."
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask")
_WITHOUT_MERGES = "kimi-k2"
_STRAY = 0.02
"""Share of the merges that may make no token."""
_FEW = 16
"""Fewer tokens than that say nothing of their scores."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>|<｜[^<>\s]{1,40}｜>")
"""Texts that only a special token has."""


_NO_TOKEN = (-1, 2**32 - 1)
"""``LLAMA_TOKEN_NULL`` (include/llama.h), as it is and as an unsigned integer: there is none."""


@rule("H301", "vocabulary-lists", "error")
def lists(subject: Subject) -> Iterator[Problem]:
    """The vocabulary's lists contradict each other.

    What it does:
        Compares the lengths of tokens, types and scores; looks whether ids of special tokens
        are within them, whether merges make tokens, whether bytes are typed as bytes, whether
        a token stands twice, and whether scores say which pieces come first.

    Why it matters:
        llama.cpp refuses the file, takes other special tokens than were meant, or cuts words
        into other pieces than in training.

    What to do:
        Convert again with the tokenizer's files of the checkpoint.

    Example:
        ``tokenizer.ggml.merges: 812 of 50,000 merges make no token, the first is merge 17:
        'a b'``
    """
    metadata = subject.metadata
    tokens = metadata.get(_KEY + "tokens")
    if not isinstance(tokens, list) or not tokens:
        raise NotApplicableError("the file has no vocabulary")
    model = metadata.string(_KEY + "model") or ""
    for name in ("token_type", "scores"):
        values = metadata.get(_KEY + name)
        if isinstance(values, list) and len(values) != len(tokens):
            message = f"{_KEY}{name} has {len(values):,} entries for {len(tokens):,} tokens"
            yield Problem(message, evidence={"key": _KEY + name, "actual": len(values)})
    for name in _SPECIAL:
        key = f"{_KEY}{name}_token_id"
        value = metadata.integer(key)
        if value is not None and value not in _NO_TOKEN and not 0 <= value < len(tokens):
            message = f"{key} is {value}, and there are {len(tokens):,} tokens: llama.cpp takes its"
            yield Problem(message + " default", evidence={"key": key, "actual": value})
    yield from _merges(subject, model, tokens)
    yield from _pieces(subject, model, tokens)
    yield from _repeated(tokens)


def _merges(subject: Subject, model: str, tokens: list[Any]) -> Iterator[Problem]:
    key = _KEY + "merges"
    merges = subject.metadata.get(key)
    if model != "gpt2":
        return
    if not isinstance(merges, list):
        if subject.metadata.string(_KEY + "pre") != _WITHOUT_MERGES:
            yield Problem(f"{key} is missing: llama.cpp refuses the file", evidence={"key": key})
        return
    known = set(map(str, tokens))
    stray = [i for i, m in enumerate(merges) if not _makes_token(str(m), known)]
    if len(stray) > _STRAY * len(merges):
        first = stray[0]
        message = (
            f"{key}: {len(stray):,} of {len(merges):,} merges make no token, the first is merge"
            f" {first:,}: {str(merges[first])[:40]!a}: they are another tokenizer's"
        )
        yield Problem(message, evidence={"key": key, "n": len(stray), "first": first})


def _makes_token(merge: str, known: set[str]) -> bool:
    a, _, b = merge[1:].partition(" ")
    return bool(b) and merge[:1] + a + b in known


def _pieces(subject: Subject, model: str, tokens: list[Any]) -> Iterator[Problem]:
    types, scores = (subject.metadata.get(_KEY + k) for k in ("token_type", "scores"))
    if model != "llama" or not isinstance(types, list) or len(types) != len(tokens):
        return
    texts = map(str, tokens)
    bytes_ = [i for i, t in enumerate(texts) if t.startswith("<0x") and _BYTE.fullmatch(t)]
    wrong = [i for i in bytes_ if types[i] != BYTE]
    if wrong:
        message = (
            f"{_KEY}token_type: {len(wrong)} of {len(bytes_)} byte tokens are typed otherwise, the"
            f" first {tokens[wrong[0]]!a} ({wrong[0]}): letters without a token are lost"
        )
        evidence = {"key": _KEY + "token_type", "n": len(wrong), "first": wrong[0]}
        yield Problem(message, evidence=evidence)
    if not isinstance(scores, list) or len(scores) != len(tokens):
        return
    normal = (s for s, t in zip(scores, types, strict=True) if t == NORMAL)
    first = next(normal, None)
    if all(s == first for s in normal) and types.count(NORMAL) > _FEW:
        message = (
            f"{_KEY}scores are all {first:g}: nothing tells which pieces of a word are joined first"
        )
        yield Problem(message, evidence={"key": _KEY + "scores"})


def _repeated(tokens: list[Any]) -> Iterator[Problem]:
    if len(set(map(str, tokens))) < len(tokens):
        twice = [text for text, n in Counter(map(str, tokens)).items() if n > 1]
        first = str(twice[0])
        places = [i for i, t in enumerate(tokens) if str(t) == first][:2]
        message = (
            f"{_KEY}tokens: {len(twice):,} tokens stand there more than once, the first {first!a}"
            f" at {places[0]} and {places[1]}: only one of them is ever used"
        )
        evidence = {"key": _KEY + "tokens", "n": len(twice), "first": places[0]}
        yield Problem(message, evidence=evidence, severity="warning")


@rule("H302", "pre-tokenizer-missing", "warning")
def pre_tokenizer(subject: Subject) -> Iterator[Problem]:
    """A byte-pair vocabulary does not say how texts are split before merging.

    What it does:
        Looks for ``tokenizer.ggml.pre``.

    Why it matters:
        llama.cpp splits in a way of its own then, and warns of worse texts: numbers,
        contractions and line ends get other ids than in training. Files that were made before
        May 2024 are such.

    What to do:
        Convert again, or set the key to the name for the model's tokenizer.

    Example:
        ``tokenizer.ggml.pre is missing: llama.cpp splits texts in a way of its own before
        merging``
    """
    if subject.metadata.string(_KEY + "model") != "gpt2":
        raise NotApplicableError("the vocabulary is not of byte pairs")
    pre = subject.metadata.string(_KEY + "pre")
    if pre in (None, "", "default"):
        what = "missing" if pre is None else ascii(pre)
        message = f"{_KEY}pre is {what}: llama.cpp splits texts in a way of its own before merging"
        yield Problem(message, evidence={"key": _KEY + "pre", "actual": pre})


@rule("H303", "template-tokens", "warning")
def template_tokens(subject: Subject) -> Iterator[Problem]:
    """The chat template marks turns with what is no token of the vocabulary.

    What it does:
        Looks up the markers of ``tokenizer.chat_template`` (``<|im_start|>``,
        ``<start_of_turn>``) in the vocabulary. It is quiet where the vocabulary has no such
        tokens at all, and where the source has the same template.

    Why it matters:
        The template is another model's: markers fall into pieces, and the model sees no chat.

    What to do:
        Take the template of the model's checkpoint.

    Example:
        ``tokenizer.chat_template marks turns with '<|im_start|>' and 1 more, which are no
        tokens of the vocabulary; '<|eot_id|>' and 5 more are``
    """
    text = subject.metadata.get("tokenizer.chat_template")
    if not isinstance(text, str) or subject.metadata.n_elements(_KEY + "tokens") is None:
        raise NotApplicableError("the file has no chat template, or no vocabulary")
    used = sorted(set(_MARKER.findall(text)))
    if not used:
        return
    tokens, types = (subject.metadata.get(_KEY + k) for k in ("tokens", "token_type"))
    assert isinstance(tokens, list)
    known = {str(t) for t in tokens}
    if any(marker in known for marker in used):
        return
    if not isinstance(types, list):
        raise NotApplicableError("the file does not say which tokens are markers")
    own = [str(t) for t, kind in zip(tokens, types, strict=False)
           if kind == CONTROL and _MARKER.fullmatch(str(t))]  # fmt: skip
    if not own:
        return  # a model that was trained with markers in plain text
    if subject.source is not None and template(Configs(subject.file, subject.source)) == text:
        return
    message = (
        f"tokenizer.chat_template marks turns with {_some(used)}, which are no tokens of the"
        f" vocabulary; {_some(own)} are"
    )
    evidence = {"key": "tokenizer.chat_template", "markers": used[:20], "tokens": own[:20]}
    yield Problem(message, evidence=evidence)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!a}{more}"


RULES: tuple[Rule, ...] = (lists, pre_tokenizer, template_tokens)
