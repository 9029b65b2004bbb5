"""The end of an ONNX graph: how states of tokens become one embedding.

Told by what it computes, however it is written: the graph is run on a text and on a shorter one
that is padded, and what comes out is compared with each way of pooling the states before it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.tolerances import SAME_DOWNSTREAM
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.session import OnnxSession, Tokens
from ggufnorm.errors import EngineError, InputError

Wide = NDArray[np.float64]

Pooling = Literal[
    "none", "mean", "mean of padding too", "sum", "mean-sqrt", "weighted mean", "max",
    "max of padding too", "cls", "last", "last of padding too",
]  # fmt: skip
"""How states of tokens become one embedding; sentence-transformers' ``Pooling`` names them.

``mean-sqrt`` divides the sum by the root of the number of tokens, ``weighted mean`` weighs each
token by its position, ``none`` leaves a state for each token.
"""

_NEAREST = 48
"""Values before a result among which its states are looked for."""
_TINY = 1e-12


@dataclass(frozen=True)
class Tail:
    """The end of a graph, and what came out of it.

    Attributes:
        pooling: None where no known way makes the result of the states before it.
        l2: whether the result was brought to length 1.
        padded: the result of two texts, the second one padded; 0 where a state is padding's.
    """

    pooling: Pooling | None
    l2: bool
    padded: NDArray[np.float32]

    def __str__(self) -> str:
        if self.pooling is None:
            return "pooling that is not known"
        how = "no pooling" if self.pooling == "none" else f"pooling by {self.pooling}"
        return f"{how}, L2-normalized" if self.l2 else f"{how}, not L2-normalized"


def recognize_tail(path: str | os.PathLike[str], tokens: Tokens) -> Tail | None:
    """Tell how a model's first result is made of its states.

    Args:
        path: of a model that takes token ids and an attention mask.
        tokens: ids, at least two.

    Returns:
        None where it takes no mask or no other length, or makes no embedding.

    Raises:
        EngineMissingError: onnx or onnxruntime is not installed.
        InputError: the file cannot be read.
        EngineError: ONNX Runtime does not take the model.
    """
    session = OnnxSession(path, also=_values_before)
    if len(tokens) < 2 or not session.takes_mask:
        return None
    mask = np.ones((2, len(tokens)), np.int64)
    mask[1, len(tokens) // 2 :] = 0
    for rows in (mask, mask[1:]):  # some take one text at a time
        try:
            values = session.run_padded(np.where(rows, tokens, 0), rows)
        except (InputError, EngineError):
            continue
        return _recognized(session, values, rows)
    return None


def _values_before(model: OnnxModel) -> Iterator[str]:
    """What the first result is made of, the nearest first."""
    first = model.proto.graph.output[0].name
    seen, waiting = {first}, deque([first])
    while waiting and len(seen) <= _NEAREST:
        node = model.producers.get(waiting.popleft())
        for name in node.input if node is not None else ():
            if name and name not in seen and name in model.producers:
                seen.add(name)
                waiting.append(name)
                yield name


def _recognized(
    session: OnnxSession, values: Mapping[str, NDArray[Any]], mask: NDArray[np.int64]
) -> Tail | None:
    result = values[session.model.proto.graph.output[0].name]
    if result.dtype.kind != "f" or result.ndim not in (2, 3):
        return None
    out = result.astype(np.float32)
    lengths = np.linalg.norm(out.astype(np.float64), axis=-1)
    l2 = bool(np.allclose(lengths, 1, atol=1e-3))
    if result.shape[:-1] == mask.shape:
        return Tail("none", l2, out * mask[..., None].astype(np.float32))
    if result.ndim != 2 or len(result) != len(mask):
        return None
    for states in values.values():
        fits = (*mask.shape, result.shape[-1])
        if states.dtype.kind == "f" and states.shape == fits:
            how = _pooling(states.astype(np.float64), mask, out, l2=l2)
            if how is not None:
                return Tail(how, l2, out)
    return Tail(None, l2, out)


def _pooling(states: Wide, mask: NDArray[np.int64], out: Any, *, l2: bool) -> Pooling | None:
    tolerance = SAME_DOWNSTREAM if out.dtype != np.float16 else 2e-2
    for how, pooled in _pooled(states, mask):
        made = pooled / np.maximum(np.linalg.norm(pooled, axis=-1, keepdims=True), _TINY)
        if relative_l2(made if l2 else pooled, out) <= tolerance:
            return how
    return None


def _pooled(states: Wide, mask: NDArray[np.int64]) -> Iterator[tuple[Pooling, Wide]]:
    """All ways, the usual first."""
    m = mask[..., None].astype(np.float64)
    n = m.sum(1)
    rows = np.arange(len(mask))
    lowest = np.where(m > 0, states, -np.inf)
    place = np.arange(1, mask.shape[1] + 1)[:, None] * m
    yield "mean", (states * m).sum(1) / n
    yield "cls", states[:, 0]
    yield "max", lowest.max(1)
    yield "last", states[rows, mask.sum(1) - 1]
    yield "mean of padding too", states.mean(1)
    yield "max of padding too", states.max(1)
    yield "last of padding too", states[:, -1]
    yield "sum", (states * m).sum(1)
    yield "mean-sqrt", (states * m).sum(1) / np.sqrt(n)
    yield "weighted mean", (states * place).sum(1) / place.sum(1)


def difference_of_tails(source: Tail, engine: Tail, names: tuple[str, str]) -> str:
    """What the engine's end does otherwise than the source's; empty for nothing that is known.

    Args:
        source: the source's.
        engine: the engine's.
        names: what the two are called.
    """
    said = []
    theirs, ours = source.pooling, engine.pooling
    if theirs != ours and None not in (theirs, ours):
        if ours == "none":
            said.append(f"{names[1]} does not pool: it gives a state for each token, {names[0]}"
                        f" pools by {theirs}")  # fmt: skip
        elif theirs == "none":
            said.append(f"{names[1]} pools by {ours}, {names[0]} gives a state for each token")
        elif ours == f"{theirs} of padding too":
            said.append(f"{names[1]} pools by {theirs} of padding too: the attention mask is not"
                        " used in it")  # fmt: skip
        else:
            said.append(f"{names[1]} pools by {ours}, {names[0]} by {theirs}")
    if source.l2 != engine.l2 and (theirs == "none") == (ours == "none"):
        one, other = names if source.l2 else names[::-1]
        said.append(f"the result of {other} is not L2-normalized, that of {one} is")
    return "; ".join(said)
