"""What all files run: the passages of a text, or chats with the assistant's tokens marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.base import Batch, Tokens
from ggufnorm.engines.llama.runner import cut_chunk
from ggufnorm.engines.llama.session import LlamaModel


@dataclass(frozen=True)
class Passages:
    """Token ids in passages, each of which starts afresh.

    Attributes:
        name: what reports call the text.
        tokens: of all passages, one behind the other.
        ends: of each passage, the number of the first token behind it.
        n_text_tokens: of the whole text, that which is not run too.
        targets: numbers of the tokens whose predictions are scored, ascending; None for the
            second half of each passage, as llama-perplexity scores.
    """

    name: str
    tokens: Tokens
    ends: tuple[int, ...]
    n_text_tokens: int
    targets: Tokens | None = None

    def __len__(self) -> int:
        return len(self.ends)

    def bounds(self, i: int) -> tuple[int, int]:
        """Numbers of the i-th passage's first token and of the first behind it."""
        return (self.ends[i - 1] if i else 0), self.ends[i]

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(end - start for start, end in map(self.bounds, range(len(self))))

    def of(self, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        """The number of the passage that each position is in."""
        return np.searchsorted(np.asarray(self.ends), positions, side="right").astype(np.int64)

    def batches(self, i: int, model: LlamaModel, max_batch: int) -> Iterator[Scored]:
        """The i-th passage as the model wants it.

        Args:
            i: number of the passage.
            model: that is going to run it.
            max_batch: most tokens in one batch.
        """
        start, end = self.bounds(i)
        if self.targets is None:
            for batch in cut_chunk(model, self.tokens[start:end], start, max_batch):
                yield Scored(batch, np.arange(len(batch.following)))
            return
        targets = self.targets[(self.targets > start) & (self.targets < end)]
        yield from _marked(self.tokens[start:end], start, targets - start - 1, max_batch)


@dataclass(frozen=True)
class Scored:
    """A batch, and which of its outputs are scored.

    Attributes:
        batch: to run.
        rows: numbers of the outputs that are scored, ascending.
    """

    batch: Batch
    rows: NDArray[np.intp]

    @property
    def positions(self) -> NDArray[np.intp]:
        """Their numbers in the whole text."""
        return self.batch.scored_from + self.rows

    @property
    def following(self) -> Tokens:
        """The token that really follows each."""
        return self.batch.following[self.rows]


def _marked(
    tokens: Tokens, first: int, predicting: NDArray[np.int32], max_batch: int
) -> Iterator[Scored]:
    """A passage in batches, of which the outputs at some positions are scored."""
    for at in range(0, len(tokens), max_batch):
        part = tokens[at : at + max_batch]
        here = predicting[(predicting >= at) & (predicting < at + len(part))].astype(np.intp)
        begin = int(here[0]) if len(here) else at + len(part)
        following = tokens[begin + 1 : at + len(part) + 1]
        n_outputs = at + len(part) - begin
        batch = Batch(part, at, n_outputs, following, first + at, first, first + begin)
        yield Scored(batch, here - begin)


def text_passages(tokens: Tokens, name: str, n_ctx: int, n_chunks: int) -> Passages:
    """The chunks of a text."""
    ends = tuple(n_ctx * (i + 1) for i in range(n_chunks))
    return Passages(name, tokens[: ends[-1]], ends, len(tokens))


def chat_passages(chats: Sequence[tuple[Tokens, Tokens]], name: str) -> Passages:
    """Chats, each a passage.

    Args:
        chats: of each the token ids, and the numbers of the assistant's.
        name: what reports call them.
    """
    ends = tuple(int(n) for n in np.cumsum([len(tokens) for tokens, _ in chats]))
    starts = (0, *ends[:-1])
    targets = [marked + start for (_, marked), start in zip(chats, starts, strict=True)]
    return Passages(
        name,
        np.concatenate([tokens for tokens, _ in chats]).astype(np.int32),
        ends,
        ends[-1],
        np.concatenate(targets).astype(np.int32),
    )
