"""Chats as text, by the template of a model's own file.

Templates are programs from downloaded files. They run in Jinja2's sandbox, in a child process,
and not for ever. The environment is that of Transformers (``_compile_jinja_template`` in
``utils/chat_template_utils.py``), which llama.cpp follows (``common/chat.cpp``): blocks are
trimmed, loops can be left, ``raise_exception``, ``strftime_now`` and ``{% generation %}`` are
there, and ``tojson`` escapes nothing. As in llama.cpp, tools that were not given are not defined.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ggufnorm.engines import worker
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import EngineError, MissingPackageError

CHAT_TEMPLATE = "tokenizer.chat_template"
"""The key that holds it."""

PATIENCE = 10.0
"""Seconds that one chat may take: a template that takes longer does not end."""

Failure = Literal["", "syntax", "name", "undefined", "raised", "endless", "other"]
"""Why a chat could not be rendered.

``name`` is a variable that nobody gave, ``undefined`` an attribute or item that is not there;
``raised`` is the template's own doing.
"""


@dataclass(frozen=True)
class ChatRequest:
    """A chat to be rendered.

    Attributes:
        messages: each with ``role``, ``content`` and what else its template reads.
        prompt: whether the assistant's next message is to be begun (``add_generation_prompt``).
        more: other variables: ``tools``, ``documents``.
    """

    messages: tuple[Any, ...]
    prompt: bool = False
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RenderJob:
    """What the child renders."""

    template: str
    tokens: dict[str, str]
    requests: tuple[ChatRequest, ...]
    patience: float


@dataclass(frozen=True)
class Rendered:
    """A chat as text.

    Attributes:
        text: of it, None where the template failed.
        failure: why it did.
        message: what Jinja2 or the template says of that.
        line: of the template, None if it is not known.
        unknown: names that were printed, as nothing, because they are not defined, and the
            lines where they were.
    """

    text: str | None
    failure: Failure = ""
    message: str = ""
    line: int | None = None
    unknown: tuple[tuple[str, int | None], ...] = ()


@dataclass(frozen=True)
class RenderedChats:
    """One for each request."""

    chats: tuple[Rendered, ...]


def render(
    template: str,
    tokens: dict[str, str],
    requests: Sequence[ChatRequest],
    patience: float = PATIENCE,
) -> tuple[Rendered, ...]:
    """Render chats in a child process.

    Args:
        template: the file's ``tokenizer.chat_template``.
        tokens: ``bos_token``, ``eos_token`` …, as text.
        requests: the chats.
        patience: seconds that each may take; after one that took longer no other is tried.

    Raises:
        MissingPackageError: Jinja2 is not installed.
    """
    require_jinja()
    job = RenderJob(template, tokens, tuple(requests), patience)
    try:
        return worker.call(render_chats, job).chats
    except EngineError as error:
        gone = Rendered(None, "endless", f"it ended the process that ran it ({error})")
        return (gone,) * len(job.requests)


def require_jinja() -> None:
    """Make sure that templates can be run.

    Raises:
        MissingPackageError: Jinja2 is not installed.
    """
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        raise MissingPackageError("chat templates need Jinja2: pip install 'ggufnorm[html]'")


def render_chats(job: RenderJob, _channel: Channel) -> RenderedChats:
    """The child's part of :func:`render`."""
    found: list[Rendered] = []
    for request in job.requests:
        if found and found[-1].failure == "endless":
            found.append(found[-1])
        else:
            found.append(_within(job, request))
    return RenderedChats(tuple(found))


def _within(job: RenderJob, request: ChatRequest) -> Rendered:
    """Render one chat, or give it up: the thread ends with its process."""
    found: list[Rendered] = []

    def work() -> None:
        found.append(render_chat(job.template, job.tokens, request))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(job.patience)
    if found:
        return found[0]
    return Rendered(None, "endless", f"it does not end within {job.patience:g} s")


def render_chat(template: str, tokens: dict[str, str], request: ChatRequest) -> Rendered:
    """Render a chat in this process."""
    from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

    from ggufnorm.engines.sandbox import environment

    unknown: dict[tuple[str, int | None], None] = {}
    try:
        compiled = environment(unknown).from_string(template)
        text = compiled.render(
            messages=list(request.messages),
            add_generation_prompt=request.prompt,
            **{**tokens, **request.more},
        )
    except TemplateSyntaxError as error:
        return Rendered(None, "syntax", error.message or "", error.lineno)
    except UndefinedError as error:
        message = error.message or ""
        kind: Failure = "name" if message.endswith(" is undefined") else "undefined"
        return Rendered(None, kind, message, _line_of(error))
    except TemplateError as error:
        return Rendered(None, "raised", error.message or "", _line_of(error))
    except RecursionError as error:
        return Rendered(None, "endless", "it calls itself without end", _line_of(error))
    except Exception as error:  # whatever Python operators and methods raise
        what = f"{type(error).__name__}: {error}"
        return Rendered(None, "other", what, _line_of(error))
    return Rendered(text, unknown=tuple(unknown))


def _line_of(error: Exception) -> int | None:
    """The template's line where it failed: Jinja2 writes its own lines into the traceback."""
    import traceback

    own = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == _SOURCE]
    return own[-1] if own else None


_SOURCE = "<template>"
"""What Jinja2 calls the file of a template that came as a string."""
