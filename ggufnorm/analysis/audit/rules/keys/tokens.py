"""K4xx: keys of the tokenizer and the chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.rules.keys.network import configs
from ggufnorm.analysis.audit.source.keys.added import (
    TOKENS,
    TYPES,
    end_differences,
    normalizer_differences,
    special_tokens,
    type_differences,
)
from ggufnorm.analysis.audit.source.keys.facts import Configs
from ggufnorm.analysis.audit.source.keys.tokenizer import Tokenizer
from ggufnorm.analysis.audit.source.keys.tokens import template, token_differences
from ggufnorm.analysis.audit.source.keys.vocabulary import vocabulary_differences
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.audit import Severity
from ggufnorm.core.mend import Mend, set_key
from ggufnorm.formats.sentencepiece import CONTROL, UNKNOWN, USER_DEFINED

_TEMPLATE = "tokenizer.chat_template"
SPECIAL_TYPES = (UNKNOWN, CONTROL, USER_DEFINED)


@rule("K401", "tokenizer-key", "error")
def tokenizer(subject: Subject) -> Iterator[Problem]:
    """A key of the tokenizer is not what the source's files say.

    What it does:
        Compares the ids of BOS, EOS, CLS and SEP, whether BOS and EOS are added, at which
        tokens a generation ends, whether a space is put before a text, how letters and spaces
        are normalized, and how texts are split
        before merging (digits, contractions, words, line ends, accents, Chinese and Japanese),
        with ``tokenizer_config.json``, ``tokenizer.json``, ``config.json`` and
        ``generation_config.json``, as far as these tell.

    Why it matters:
        The model gets other token ids than in training. An embedding model without its
        BOS and EOS gives other embeddings; a generation without its EOS never ends.

    What to do:
        Set the key to the value that the finding names, or convert again.

    Example:
        ``tokenizer.ggml.add_bos_token is missing, so llama.cpp does not add BOS, but
        model_type xlm-roberta``
    """
    c = configs(subject)
    source = Tokenizer(c)
    for d in (
        *token_differences(c), *end_differences(c, source), *normalizer_differences(c, source),
    ):  # fmt: skip
        evidence = {"key": d.key, "type": d.type, "expected": d.expected, "actual": d.actual}
        known = d.expected is not None
        mend = set_key(d.key, d.type, d.expected, d.actual, from_source=True) if known else None
        severity = cast(Severity, d.severity)
        yield Problem(d.message, evidence=evidence, severity=severity, mend=mend)


@rule("K402", "chat-template", "warning")
def chat_template(subject: Subject) -> Iterator[Problem]:
    """The source has a chat template that the file lacks, or another one.

    What it does:
        Compares ``tokenizer.chat_template`` with ``chat_template.jinja`` or
        ``tokenizer_config.json``. A template that differs is an information: publishers
        mend templates.

    Why it matters:
        Without its template a chat is not put to the model as in training.

    What to do:
        Convert again, or give the template when the model is run.

    Example:
        ``tokenizer.chat_template is missing, and the source has one``
    """
    wanted = template(configs(subject))
    if wanted is None:
        raise NotApplicableError("the source has no chat template")
    actual = subject.metadata.text(_TEMPLATE)
    evidence = {"key": _TEMPLATE, "type": "str", "expected": wanted[:20_000]}
    if actual is None:
        message = f"{_TEMPLATE} is missing, and the source has one"
        mend = set_key(_TEMPLATE, "str", wanted, None, from_source=True)
        yield Problem(message, evidence={**evidence, "actual": None}, mend=mend)
    elif actual.strip() != wanted.strip():
        message = f"{_TEMPLATE} is not the source's"
        evidence |= {"actual": actual[:20_000]}
        yield Problem(message, evidence=evidence, severity="info")


@rule("K403", "vocabulary", "error")
def vocabulary(subject: Subject) -> Iterator[Problem]:
    """Tokens or merges are not those of the source's tokenizer.

    What it does:
        Compares ``tokenizer.ggml.tokens`` and ``tokenizer.ggml.scores`` with the vocabulary
        of ``tokenizer.json``, or of the SentencePiece model, id by id, and
        ``tokenizer.ggml.merges`` with its merges, in order. Added tokens must be there; a
        conversion may write them in other words.

    Why it matters:
        A row of the embedding is another token's: texts are read and written in other
        words. With other merges, words fall into other pieces than in training.

    What to do:
        Convert again with the tokenizer's files of that checkpoint.

    Example:
        ``tokenizer.ggml.tokens: 31,997 of 32,000 tokens are not the source's, the first
        is token 3: 'a' for 'the'``
    """
    found = vocabulary_differences(configs(subject))
    if found is None:
        raise NotApplicableError("the source has no such lists")
    for d in found:
        evidence = {"key": d.key, "n": d.n, "n_compared": d.total, "first": d.first}
        yield Problem(d.message, evidence={**evidence, "actual": d.here, "expected": d.there})


@rule("K404", "token-type", "error")
def token_type(subject: Subject) -> Iterator[Problem]:
    """Special tokens are typed as ordinary text, or ordinary tokens as special.

    What it does:
        Compares ``tokenizer.ggml.token_type`` with the added tokens of ``tokenizer.json`` and
        ``tokenizer_config.json``: those that are special must be control or user-defined
        tokens, and words of the vocabulary must not.

    Why it matters:
        llama.cpp finds a special token in a prompt by its type. A turn marker that is typed
        as text falls into pieces, and the model sees no chat; a word that is typed as a
        control token is not shown.

    What to do:
        Convert again with the tokenizer's files of that checkpoint.

    Example:
        ``tokenizer.ggml.token_type: 2 of 6 special tokens of the source are typed as ordinary
        text, the first '<start_of_turn>' (105): in a prompt they fall into pieces``
    """
    c = configs(subject)
    found = type_differences(c)
    if found is None:
        raise NotApplicableError("the source names no special tokens")
    for d in found:
        evidence = {"key": TYPES, "n": d.n, "first": d.first}
        mend = _types_mend(c) if d.expected == CONTROL else None
        more = {"actual": d.actual, "expected": d.expected}
        yield Problem(d.message, evidence=evidence | more, mend=mend)


def _types_mend(c: Configs) -> Mend | None:
    """The types with those of the source's special tokens put right."""
    types, tokens = c.file.metadata.get(TYPES), c.file.metadata.get(TOKENS)
    if not isinstance(types, list) or not isinstance(tokens, list):
        return None
    if len(types) != len(tokens):
        return None
    special = special_tokens(c)
    right = [CONTROL if i in special and t not in SPECIAL_TYPES else t for i, t in enumerate(types)]
    return set_key(TYPES, "arr[i32]", right, types, from_source=True)


RULES: tuple[Rule, ...] = (tokenizer, chat_template, vocabulary, token_type)
