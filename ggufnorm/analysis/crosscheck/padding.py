"""Whether an embedding or a score depends on what else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ggufnorm.analysis.crosscheck.pooled import Output
from ggufnorm.core.frameworks import PaddingComparison
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import Array, Padded

Result = Callable[[Array], Array | None]
"""Makes an embedding of the states of all tokens; a score it leaves as it is."""


def compare_padding(
    what: str, padded: Padded | None, output: Output, result: Result
) -> PaddingComparison | None:
    """A shorter text alone and beside the whole one, in the source and in llama.cpp.

    Args:
        what: they give.
        padded: the source's; None where it was not run so.
        output: llama.cpp's.
        result: of the source's states.
    """
    if padded is None:
        return None
    engine = None
    if output.alone is not None and output.batched is not None:
        engine = _finite(relative_l2(output.alone, output.batched))
    comparison = PaddingComparison(what, padded.side, None, engine, padded.cause)
    if padded.alone is None or padded.padded is None:
        return comparison
    a, b = result(padded.alone), result(padded.padded)
    if a is None or b is None:
        return None
    return replace(comparison, source=_finite(relative_l2(a, b)))


def padding_sentence(padding: PaddingComparison | None, *, is_right: bool) -> str:
    """What is said of it behind a verdict; empty where there is nothing to say.

    Args:
        padding: None where it was not compared.
        is_right: whether llama.cpp agrees with the source on a text alone.
    """
    if padding is None:
        return ""
    said = []
    cause = f" ({padding.reason})" if padding.reason else ""
    if padding.in_source:
        said.append(
            f"The {padding.what} of the source depends on padding: beside a longer text, padded"
            f" on the {padding.side}, it is off by {padding.source:.3g} from that of the same"
            f" text alone{cause}."
        )
        if is_right and not padding.in_engine:
            said.append("llama.cpp, which pads nothing, agrees with it alone, not in such a batch.")
    if padding.in_engine:
        said.append(
            f"The {padding.what} of llama.cpp depends on the batch: beside another text it is off"
            f" by {padding.engine:.3g} from that of the same text alone."
        )
    return " ".join(said)


def _finite(value: float) -> float:
    return value if np.isfinite(value) else 1.0
