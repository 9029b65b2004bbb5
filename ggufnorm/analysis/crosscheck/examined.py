"""What a comparison looked at, and which results that users get it did not look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ggufnorm.analysis.crosscheck.output import OutputComparison
from ggufnorm.analysis.crosscheck.results import not_compared
from ggufnorm.analysis.crosscheck.token_ids import TokenIds
from ggufnorm.core.frameworks import OutputDifference, TokenizerFinding
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
    n_seen: tuple[int, int],
    logits: LogitStatistics | None,
    result: Difference | None,
    token_ids: TokenIds | None,
    output: OutputComparison | None,
    outputs: Sequence[OutputDifference] = (),
    *,
    of_text: bool,
) -> Examined:
    """What a comparison of language models looked at; nothing is said of image encoders.

    Args:
        n_seen: norms that were joined, and layers.
        logits: None if there were none to compare.
        result: of the engine's first output; None if that was not compared.
        token_ids: None where the engine has no tokenizer.
        output: an embedding or a score; None without.
        outputs: all results of two ONNX graphs.
        of_text: whether the models read a text.
    """
    if not of_text:
        return Examined((), (), None)
    seen = [f"{n} {what}{'' if n == 1 else 's'}"
            for n, what in zip(n_seen, ("norm", "layer"), strict=True) if n]  # fmt: skip
    several = f"all {len(outputs)} outputs" if len(outputs) > 1 else ""
    if several and (left_out := [o for o in outputs if not o.tells]):
        several = f"{len(outputs) - len(left_out)} of {len(outputs)} outputs"
    done = (*seen, *_compared(logits, result, token_ids, output, several))
    unlike = not_compared(outputs)
    told = unlike or any(o.tells for o in outputs)
    left = (*unlike, *(() if told else _left(logits, result, token_ids, output)))
    return Examined(done, left, None if token_ids is None else token_ids.finding)


def _compared(
    logits: LogitStatistics | None,
    result: Difference | None,
    token_ids: TokenIds | None,
    output: OutputComparison | None,
    outputs: str,
) -> Iterator[str]:
    if logits is not None:
        yield "logits"
    if outputs:
        yield outputs
    elif logits is None and result is not None:
        yield "the model's first output"
    if output is not None and output.skipped is None:
        yield output.what
        if output.padding is not None and output.padding.source is not None:
            yield f"the same beside another text, padded on the {output.padding.side}"
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
    elif output is not None:
        yield from output.left
        if output.padding is not None and output.padding.source is None:
            yield Skipped("padded batches", f"the source takes none: {output.padding.reason}")
    elif output is None and logits is None and result is None:
        yield Skipped(
            "logits, embedding or score", "one side makes no predictions, and neither pools"
        )
    if token_ids is not None and token_ids.skipped is not None:
        yield token_ids.skipped
    if token_ids is not None and token_ids.undecided is not None:
        yield token_ids.undecided
