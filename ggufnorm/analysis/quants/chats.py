"""Chats from a file, rendered with a model's own template."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ggufnorm.engines.chat import CHAT_TEMPLATE, ChatRequest, Rendered, render
from ggufnorm.errors import InputError, TextError
from ggufnorm.formats.files import read_text
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.special_tokens import special_tokens


@dataclass(frozen=True)
class Turn:
    """What the assistant said.

    Attributes:
        before: the chat up to there, with the prompt for its answer.
        after: the same with the answer.
    """

    before: str
    after: str


def read_chats(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Chats of a JSON Lines file: objects with ``messages``, or arrays of messages.

    Raises:
        InputError: the file cannot be read, or a line is no chat.
        TextError: it holds none, or none with an answer.
    """
    chats: list[dict[str, Any]] = []
    for n, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            chat = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{os.fspath(path)}, line {n}: not JSON: {error}") from None
        chat = {"messages": chat} if isinstance(chat, list) else chat
        if not _is_chat(chat):
            raise InputError(
                f'{os.fspath(path)}, line {n}: no chat: give {{"messages": [{{"role": "user",'
                ' "content": "…"}, {"role": "assistant", "content": "…"}]}'
            )
        chats.append(chat)
    if not any(m["role"] == "assistant" for chat in chats for m in chat["messages"]):
        raise TextError(f"{os.fspath(path)}: no chat has an answer of the assistant to score")
    return chats


def _is_chat(chat: Any) -> bool:
    if not isinstance(chat, dict):
        return False
    messages = chat.get("messages")
    return isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages
    )


def rendered_chats(
    file: ModelFile, chats: Sequence[dict[str, Any]], name: str
) -> tuple[tuple[Turn, ...], ...]:
    """The turns of each chat, by the file's own template.

    Raises:
        InputError: the file has no template, or it fails.
        MissingPackageError: Jinja2 is not installed.
    """
    template = file.metadata.text(CHAT_TEMPLATE)
    if template is None:
        raise InputError(f"{file.path} has no chat template ({CHAT_TEMPLATE}): run a text with -f")
    requests = [list(_requests(chat)) for chat in chats]
    flat = [request for of_chat in requests for request in of_chat]
    answers = iter(render(template, special_tokens(file.metadata), flat))
    found = []
    for n, of_chat in enumerate(requests, 1):
        texts = [_text(next(answers), file.path, f"{name}, chat {n}") for _ in of_chat]
        pairs = zip(texts[::2], texts[1::2], strict=True)
        found.append(tuple(Turn(before, after) for before, after in pairs))
    return tuple(turns for turns in found if turns)


def _requests(chat: dict[str, Any]) -> Iterator[ChatRequest]:
    """Two for each answer of the assistant: up to it, and with it."""
    messages = chat["messages"]
    more = {k: v for k, v in chat.items() if k in ("tools", "documents")}
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            yield ChatRequest(tuple(messages[:i]), True, more)
            yield ChatRequest(tuple(messages[: i + 1]), False, more)


def _text(rendered: Rendered, path: str, where: str) -> str:
    if rendered.text is None:
        line = "" if rendered.line is None else f", line {rendered.line}"
        raise InputError(f"{path}: its chat template fails{line}: {rendered.message} ({where})")
    return rendered.text
