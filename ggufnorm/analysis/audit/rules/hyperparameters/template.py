"""H2xx: the chat template, tried on plain chats."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

from ggufnorm.analysis.audit.chat import CHATS, troubles, typed
from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.source.keys.facts import Configs
from ggufnorm.analysis.audit.source.keys.tokens import template as source_template
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.engines.chat import CHAT_TEMPLATE, Rendered, render
from ggufnorm.errors import MissingPackageError
from ggufnorm.formats.special_tokens import are_special, special_tokens


@rule("H304", "chat-template-fails", "error")
def template_fails(subject: Subject) -> Iterator[Problem]:
    """The chat template fails, or loses what is said.

    What it does:
        Renders plain chats (a question, its answer, a second question; a system message and
        tools, which a template may refuse) with ``tokenizer.chat_template`` in Jinja2's
        sandbox, as Transformers and llama.cpp do: contents as texts, or as lists of parts where
        the template reads nothing else. Failures are told with their line: syntax, undefined
        values, loops without end. So are messages that are left out, undefined names that are
        printed as nothing, and texts such as ``<|im_start|>`` that are no control tokens of the
        file. A template that is the source's is an information.

    Why it matters:
        Chats are refused by servers, or the model is put other questions than the user's.

    What to do:
        Take the template of the source, or give a corrected one with llama.cpp's
        ``--chat-template-file``.

    Example:
        ``tokenizer.chat_template fails at line 12 on a question with its answer: 'dict object'
        has no attribute 'text'``
    """
    text = subject.metadata.text(CHAT_TEMPLATE)
    if text is None:
        raise NotApplicableError("the file has no chat template")
    tokens = tuple(special_tokens(subject.metadata).items())
    kinds = partial(are_special, subject.metadata)
    try:
        found = list(troubles(_rendered(text, tokens), kinds))
        if any(t.severity != "info" for t in found):
            in_parts = list(troubles(_rendered(text, tokens, in_parts=True), kinds))
            found = min(found, in_parts, key=lambda ts: sum(t.severity != "info" for t in ts))
    except MissingPackageError as error:
        raise NotApplicableError(str(error)) from None
    is_the_sources = _is_the_sources(subject, text)
    for trouble in found:
        evidence = {"key": CHAT_TEMPLATE, "line": trouble.line}
        message = f"{CHAT_TEMPLATE} {trouble.message}"
        if is_the_sources:  # nothing went wrong on the way
            yield Problem(f"{message}; so does the source's", evidence=evidence, severity="info")
        elif "messages" not in text and trouble.line is None:  # no template of chats at all
            yield Problem(message, evidence=evidence, severity="warning")
        else:
            yield Problem(message, evidence=evidence, severity=trouble.severity)


def _is_the_sources(subject: Subject, text: str) -> bool:
    """Whether the checkpoint has the same template."""
    if subject.source is None:
        return False
    wanted = source_template(Configs(subject.file, subject.source))
    return wanted is not None and wanted.strip() == text.strip()


@lru_cache(maxsize=64)
def _rendered(
    text: str, tokens: tuple[tuple[str, str], ...], in_parts: bool = False
) -> tuple[Rendered, ...]:
    """The plain chats by a template: all quantizations of a model have the same."""
    requests = [typed(c.request) if in_parts else c.request for c in CHATS]
    return render(text, dict(tokens), requests)


RULES: tuple[Rule, ...] = (template_fails,)
