"""What is wrong with a chat template, by what it makes of plain chats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ggufnorm.core.audit import Severity
from ggufnorm.engines.chat import ChatRequest, Rendered

QUESTION, ANSWER, SYSTEM = "What is nine plus four?", "It is thirteen.", "Answer in short."
"""Contents of messages, which must be in the text that is made of them."""

_USER = {"role": "user", "content": QUESTION}
_ASSISTANT = {"role": "assistant", "content": ANSWER}
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number", "description": "The first."}},
            "required": ["a"],
        },
    },
}


@dataclass(frozen=True)
class Plain:
    """A chat that is tried.

    Attributes:
        words: what it is, for a person.
        request: to be rendered.
        refusable: whether a template may refuse it by ``raise_exception``.
        holds: contents that the text must hold.
        failing: how grave it is if the template fails.
    """

    words: str
    request: ChatRequest
    refusable: bool
    holds: tuple[str, ...]
    failing: Severity


CHATS: tuple[Plain, ...] = (
    Plain("a question", ChatRequest((_USER,), True), False, (QUESTION,), "error"),
    Plain("a question with its answer", ChatRequest((_USER, _ASSISTANT)), False,
          (QUESTION, ANSWER), "error"),
    Plain("a second question", ChatRequest((_USER, _ASSISTANT, _USER), True), False,
          (QUESTION,), "error"),
    Plain("a system message", ChatRequest(({"role": "system", "content": SYSTEM}, _USER), True),
          True, (QUESTION, SYSTEM), "error"),
    Plain("tools", ChatRequest((_USER,), True, {"tools": [_TOOL]}), True, (QUESTION,), "info"),
)  # fmt: skip
"""The plain ones first. Those of the last two a template may refuse, or pass over."""


def typed(request: ChatRequest) -> ChatRequest:
    """The same chat with each content as a list of parts.

    Templates of models that take pictures may read nothing else; llama.cpp finds out by trying
    (``requires_typed_content`` in common/jinja/caps.cpp).
    """
    messages = tuple(
        {**m, "content": [{"type": "text", "text": m["content"]}]} for m in request.messages
    )
    return replace(request, messages=messages)


@dataclass(frozen=True)
class Trouble:
    """Something wrong with a template.

    Attributes:
        severity: how grave it is.
        message: one sentence.
        line: of the template, None if it is not known.
    """

    severity: Severity
    message: str
    line: int | None


TokenKind = Callable[[Sequence[str]], Mapping[str, bool | None]]
"""Of tokens by their text: whether each is special, None if there is no such token."""

_LOOKS_SPECIAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_[a-z]+>")


def troubles(rendered: Sequence[Rendered], kinds: TokenKind) -> Iterator[Trouble]:
    """What is wrong with a template, each thing once, the first chat that shows it named.

    Args:
        rendered: of :data:`CHATS`, in their order.
        kinds: of the file's tokens.
    """
    told: set[tuple[str, int | None]] = set()
    for chat, found in zip(CHATS, rendered, strict=True):
        for trouble, key in _of_chat(chat, found):
            if key not in told:
                told.add(key)
                yield trouble
    yield from _special(rendered, kinds)


_Key = tuple[str, int | None]


def _of_chat(chat: Plain, found: Rendered) -> Iterator[tuple[Trouble, _Key]]:
    key = found.message, found.line
    if found.text is None:
        if found.failure != "raised":
            message = f"fails{_at(found.line)} on {chat.words}: {found.message}"
            # A variable of the template's own is given by a program that knows it.
            severity = "warning" if found.failure == "name" else chat.failing
            yield Trouble(severity, message, found.line), key
        elif not chat.refusable:
            message = f"refuses {chat.words}{_at(found.line)}: {found.message}"
            yield Trouble("warning", message, found.line), key
        return
    for content in chat.holds:
        if content not in found.text:
            optional = chat.refusable and content == SYSTEM
            message = f"leaves out what was said, {content!r}, of {chat.words}"
            lost: Severity = "info" if optional else "error" if chat is CHATS[0] else "warning"
            yield Trouble(lost, message, None), (content, None)
    for name, line in found.unknown if chat.failing == "error" else ():
        message = f"prints {name or 'a value'}, which is not defined, as nothing{_at(line)}"
        yield Trouble("warning", message, line), (f"{name} printed", line)


def _at(line: int | None) -> str:
    return "" if line is None else f" at line {line}"


def _special(rendered: Sequence[Rendered], kinds: TokenKind) -> Iterator[Trouble]:
    """Texts that look like special tokens and are none."""
    texts = [r.text for r in rendered if r.text is not None]
    names = list(dict.fromkeys(n for text in texts for n in _LOOKS_SPECIAL.findall(text)))
    if not names:
        return
    found = kinds(names)
    plain = [n for n in names if found[n] is False]
    if plain:
        message = (
            f"prints {', '.join(plain)}, which the file has as tokens of text and not as control"
            " tokens: llama.cpp cuts them into pieces"
        )
        yield Trouble("warning", message, None)
    unknown = [n for n in names if found[n] is None]
    if unknown:
        message = (
            f"prints {', '.join(unknown)}, for which the file has no token: the model reads them"
            " as text"
        )
        yield Trouble("info", message, None)
