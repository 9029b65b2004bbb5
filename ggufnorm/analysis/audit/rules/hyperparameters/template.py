"""H2xx: the chat template, tried on plain chats."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

from ggufnorm.analysis.audit.chat import CHATS, troubles
from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
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
        sandbox, as Transformers and llama.cpp do. Failures are told with their line: syntax,
        undefined values, loops without end. So are messages that are left out, undefined names
        that are printed as nothing, and texts such as ``<|im_start|>`` that are no control
        tokens of the file.

    Why it matters:
        Chats are refused by servers, or the model is put other questions than the user's.

    What to do:
        Take the template of the source, or give a corrected one with llama.cpp's
        ``--chat-template-file``.

    Example:
        ``tokenizer.chat_template fails at line 12 on a question with its answer: 'dict object'
        has no attribute 'text'``
    """
    text = subject.metadata.string(CHAT_TEMPLATE)
    if text is None:
        raise NotApplicableError("the file has no chat template")
    try:
        rendered = _rendered(text, tuple(special_tokens(subject.metadata).items()))
    except MissingPackageError as error:
        raise NotApplicableError(str(error)) from None
    kinds = partial(are_special, subject.metadata)
    for trouble in troubles(rendered, kinds):
        evidence = {"key": CHAT_TEMPLATE, "line": trouble.line}
        yield Problem(
            f"{CHAT_TEMPLATE} {trouble.message}", evidence=evidence, severity=trouble.severity
        )


@lru_cache(maxsize=64)
def _rendered(text: str, tokens: tuple[tuple[str, str], ...]) -> tuple[Rendered, ...]:
    """The plain chats by a template: all quantizations of a model have the same."""
    return render(text, dict(tokens), [c.request for c in CHATS])


RULES: tuple[Rule, ...] = (template_fails,)
