"""K4xx: keys of the tokenizer and the chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.rules.keys.network import configs
from ggufnorm.analysis.audit.source.keys.tokens import template, token_differences
from ggufnorm.analysis.audit.source.keys.vocabulary import vocabulary_differences
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.audit import Severity
from ggufnorm.core.mend import set_key

_TEMPLATE = "tokenizer.chat_template"


@rule("K401", "tokenizer-key", "error")
def tokenizer(subject: Subject) -> Iterator[Problem]:
    """A key of the tokenizer is not what the source's files say.

    What it does:
        Compares the ids of BOS, EOS, CLS and SEP, whether BOS and EOS are added, and how
        digits are split off, with ``tokenizer_config.json``, ``tokenizer.json``,
        ``config.json`` and ``generation_config.json``, as far as these tell.

    Why it matters:
        The model gets other token ids than in training. An embedding model without its
        BOS and EOS gives other embeddings; a generation without its EOS never ends.

    What to do:
        Set the key to the value that the finding names, or convert again.

    Example:
        ``tokenizer.ggml.add_bos_token is missing, so llama.cpp does not add BOS, but
        model_type xlm-roberta``
    """
    for d in token_differences(configs(subject)):
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
    actual = subject.metadata.string(_TEMPLATE)
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
        Compares ``tokenizer.ggml.tokens`` with the vocabulary of ``tokenizer.json``, id by
        id, and ``tokenizer.ggml.merges`` with its merges, in order. Added tokens are left
        out: a conversion may write them in other words.

    Why it matters:
        A row of the embedding is another token's: texts are read and written in other
        words. With other merges, words fall into other pieces than in training.

    What to do:
        Convert again with the tokenizer's files of that checkpoint.

    Example:
        ``tokenizer.ggml.tokens: 31,997 of 32,000 tokens are not tokenizer.json's, the first
        is token 3: 'a' for 'the'``
    """
    found = vocabulary_differences(configs(subject))
    if found is None:
        raise NotApplicableError("the source has no tokenizer.json with such a list")
    for d in found:
        evidence = {"key": d.key, "n": d.n, "n_compared": d.total, "first": d.first}
        yield Problem(d.message, evidence={**evidence, "actual": d.here, "expected": d.there})


RULES: tuple[Rule, ...] = (tokenizer, chat_template, vocabulary)
