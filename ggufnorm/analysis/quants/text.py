"""The child's part of ``quants`` that cuts the text: every file's vocabulary, and no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ggufnorm.analysis.quants.chats import Turn
from ggufnorm.analysis.quants.passages import Passages, chat_passages, text_passages
from ggufnorm.core.model import Skipped
from ggufnorm.core.progress import Progress
from ggufnorm.engines.base import Tokens
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import EngineError, TextError
from ggufnorm.runs.session import count_chunks


@dataclass(frozen=True)
class TextJob:
    """A text or chats, and the files that are going to run them.

    Attributes:
        paths: of the reference, then of the files under test.
        name: what reports call the text.
        text: None where there are chats.
        chats: of each what the assistant said and what led up to it, rendered.
        n_ctx: tokens of a chunk, and most tokens of a chat.
        chunks: at most so many chunks or chats; None for all.
        llama_cpp: the build to use, None for this process's.
    """

    paths: tuple[str, ...]
    name: str
    text: str | None
    chats: tuple[tuple[Turn, ...], ...]
    n_ctx: int
    chunks: int | None
    llama_cpp: str | None


@dataclass(frozen=True)
class CutText:
    """Token ids.

    Attributes:
        passages: that all files run.
        failed: files whose vocabularies cut the text into other tokens.
        notes: chats that were cut or left out.
    """

    passages: Passages
    failed: tuple[Skipped, ...]
    notes: tuple[Skipped, ...]


def cut_text(job: TextJob, channel: Channel) -> CutText:
    """Tokenize with the reference, and make sure that every other file agrees.

    Raises:
        TextError: the text is shorter than one chunk, or no chat has anything to score.
        EngineError: the reference has no tokenizer that llama.cpp can run.
    """
    reference, *others = job.paths
    texts = [job.text] if job.text is not None else [t for c in job.chats for t in _whole(c)]
    special = job.text is None
    options = EngineOptions(n_ctx=1, n_threads=1, llama_cpp=job.llama_cpp)
    channel.emit(Progress("cutting the text into tokens"))
    with LlamaModel(reference, options, vocab_only=True) as model:
        wanted = [_ids(model, text, special) for text in texts]
        if job.text is not None:
            n = count_chunks(len(wanted[0]), job.n_ctx, job.chunks)
            passages = text_passages(wanted[0], job.name, job.n_ctx, n)
            notes: tuple[Skipped, ...] = ()
        else:
            passages, notes = _chats(job, model)
    failed = []
    for path in others:
        try:
            with LlamaModel(path, options, vocab_only=True) as other:
                found = (_ids(other, text, special) for text in texts)
                same = all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
        except EngineError as error:
            failed.append(Skipped(path, str(error)))
            continue
        if not same:
            reason = f"{path} cuts the text into other tokens than {reference}"
            failed.append(Skipped(path, reason))
    return CutText(passages, tuple(failed), notes)


def _ids(model: LlamaModel, text: str, special: bool) -> Tokens:
    """Token ids; a BOS that the template wrote is not doubled (``common_chat_templates_apply``)."""
    ids = model.tokenize(text, parse_special=special)
    doubled = special and len(ids) > 1 and ids[0] == ids[1] == model.bos
    return ids[1:] if doubled else ids


def _whole(chat: tuple[Turn, ...]) -> Iterator[str]:
    """The texts of a chat that are run as they are."""
    for turn in chat:
        yield turn.after


def _chats(job: TextJob, model: LlamaModel) -> tuple[Passages, tuple[Skipped, ...]]:
    """Each chat as a passage, or each of its turns where the template rewrites earlier ones."""
    found: list[tuple[Tokens, Tokens]] = []
    cut = empty = 0
    for chat in job.chats:
        for tokens, marked in _marked(chat, model):
            short, left = tokens[: job.n_ctx], marked[marked < job.n_ctx]
            cut += len(short) < len(tokens)
            empty += not len(left)
            if len(left):
                found.append((short, left))
    found = found[: job.chunks]
    if not found:
        raise TextError(
            f"{job.name}: within {job.n_ctx} tokens no chat has a word of the assistant: give"
            " longer passages (-c), or chats with its answers"
        )
    notes = []
    if cut:
        notes.append(Skipped("chats", f"{cut} cut to {job.n_ctx} tokens (-c)"))
    if empty:
        notes.append(Skipped("chats", f"{empty} left out: no word of the assistant within them"))
    return chat_passages(found, job.name), tuple(notes)


def _marked(chat: Sequence[Turn], model: LlamaModel) -> list[tuple[Tokens, Tokens]]:
    """Token ids, and the numbers of the assistant's."""
    afters = [_ids(model, turn.after, special=True) for turn in chat]
    spans = [
        _span(_ids(model, t.before, True), a, model) for t, a in zip(chat, afters, strict=True)
    ]
    last = afters[-1]
    if all(_common(last, a) >= s[-1] + 1 for a, s in zip(afters, spans, strict=True) if len(s)):
        return [(last, np.concatenate(spans))]
    return list(zip(afters, spans, strict=True))


def _span(before: Tokens, after: Tokens, model: LlamaModel) -> Tokens:
    """Numbers of the tokens that the assistant said: from where the two texts part.

    Blank tokens behind its last word are the template's.
    """
    end = len(after)
    while end and not model.piece(int(after[end - 1])).strip():
        end -= 1
    return np.arange(max(1, _common(before, after)), end, dtype=np.int32)


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens two texts begin with alike."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
