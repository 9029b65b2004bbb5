"""What a comparison looked at, and which results that users get it did not look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggufnorm.analysis.crosscheck.outputs import OutputComparison
from ggufnorm.analysis.crosscheck.token_ids import TokenIds
from ggufnorm.core.frameworks import TokenizerFinding
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.metrics import Difference
from ggufnorm.core.model import Skipped


@dataclass(frozen=True)
class Examined:
    """What was compared, in words.

    Attributes:
        compared: what was.
        not_compared: what users get and was not, and why.
        token_ids: where the tokenizers part; None if they do not.
    """

    compared: tuple[str, ...]
    not_compared: tuple[Skipped, ...]
    token_ids: TokenizerFinding | None

    @property
    def sentence(self) -> str:
        """Both lists, behind a verdict."""
        if not self.compared and not self.not_compared:
            return ""
        done = f"Compared: {', '.join(self.compared) or 'nothing'}."
        left = "; ".join(f"{s.what} ({s.reason})" for s in self.not_compared)
        return f"{done} Not compared: {left}." if left else done


def examine(
    n_norms: int,
    logits: LogitStatistics | None,
    result: Difference | None,
    token_ids: TokenIds | None,
    output: OutputComparison | None,
    *,
    of_text: bool,
) -> Examined:
    """What a comparison of language models looked at; nothing is said of image encoders.

    Args:
        n_norms: that were joined.
        logits: None if there were none to compare.
        result: of the engine's first output; None if that was not compared.
        token_ids: None where the engine has no tokenizer.
        output: an embedding or a score; None without.
        of_text: whether the models read a text.
    """
    if not of_text:
        return Examined((), (), None)
    norms = (f"{n_norms} norm{'' if n_norms == 1 else 's'}",) if n_norms else ()
    done = (*norms, *_compared(logits, result, token_ids, output))
    left = tuple(_left(logits, result, token_ids, output))
    return Examined(done, left, None if token_ids is None else token_ids.finding)


def _compared(
    logits: LogitStatistics | None,
    result: Difference | None,
    token_ids: TokenIds | None,
    output: OutputComparison | None,
) -> Iterator[str]:
    if logits is not None:
        yield "logits"
    elif result is not None:
        yield "the model's first output"
    if output is not None and output.skipped is None:
        yield output.what
    if token_ids is not None and token_ids.skipped is None:
        yield f"token ids of {token_ids.n_texts} texts"


def _left(
    logits: LogitStatistics | None,
    result: Difference | None,
    token_ids: TokenIds | None,
    output: OutputComparison | None,
) -> Iterator[Skipped]:
    if output is not None and output.skipped is not None:
        yield output.skipped
    elif output is None and logits is None and result is None:
        yield Skipped(
            "logits, embedding or score", "one side makes no predictions, and neither pools"
        )
    if token_ids is not None and token_ids.skipped is not None:
        yield token_ids.skipped
