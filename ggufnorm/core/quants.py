"""Several files beside one reference, as plain data: which of them to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.drift import ModelFacts, RunCost, RunFacts
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.model import Skipped, TypesInside
from ggufnorm.core.result import Result
from ggufnorm.core.severity import FEW_POSITIONS

TOLD_APART = 3.0
"""Standard errors by which two mean KL divergences must differ to be ranked."""

Standing = Literal["frontier", "dominated", "undecided", "broken", "not ranked"]
"""How a file stands beside the others:

- ``frontier``: no file of at most its size is closer to the reference;
- ``dominated``: another one is, and the text tells the two apart;
- ``undecided``: a smaller one is not told apart from it: its bytes buy nothing that shows here;
- ``broken``: some of its logits are NaN or infinite;
- ``not ranked``: too few positions were scored to rank anything.
"""


@dataclass(frozen=True)
class Speed:
    """How fast a file ran, here and now.

    Attributes:
        prompt: tokens a second in batches, the median of the passages.
        generation: tokens a second one by one, the median; None where that was not measured.
    """

    prompt: float
    generation: float | None


@dataclass(frozen=True)
class QuantFile:
    """One of the files.

    Attributes:
        model: which file.
        types: that it really holds.
        logits: its predictions beside the reference's; None of the reference itself, and of
            a file that was not run.
        speed: of its run; None if it was not run. Differs from run to run.
        standing: beside the other files; of the reference ``frontier``.
        beaten_by: paths of the files that stand between it and the frontier, see
            :data:`Standing`.
    """

    model: ModelFacts
    types: TypesInside
    logits: LogitStatistics | None
    speed: Speed | None
    standing: Standing
    beaten_by: tuple[str, ...]


@dataclass(frozen=True)
class Contrast:
    """Two files' mean KL divergences, position by position.

    Attributes:
        a: path of the one file.
        b: path of the other.
        difference: mean of ``KLD(a) - KLD(b)``, nats.
        se: its standard error: the larger of that over positions and that over passages,
            whose positions are not independent. None if there is a single position.
        told_apart: whether the difference is more than three of them.
    """

    a: str
    b: str
    difference: float
    se: float | None
    told_apart: bool


@dataclass(frozen=True)
class QuantsReport(Result):
    """Several files beside one reference.

    Attributes:
        reference: the model that is right by definition.
        n_bad_reference: positions at which the reference itself has a NaN or infinite logit.
        files: those under test, the largest first.
        best: path of the smallest file that is not told apart from the closest; None if
            nothing was ranked.
        contrasts: each two of the files that can be ranked.
        verdict: which to take, in one or two sentences.
        run: how all were run; ``n_ctx`` is the longest passage, and chunks are passages.
        scored: what was scored: ``text`` or ``assistant``, the tokens of a chat's assistant.
        failed: files that could not be measured, and why.
        notes: what else differs between the files, such as their chat templates.
        cost: what that took; None in a report that was read from a document.
    """

    reference: QuantFile
    n_bad_reference: int
    files: tuple[QuantFile, ...]
    best: str | None
    contrasts: tuple[Contrast, ...]
    verdict: str
    run: RunFacts
    scored: str
    failed: tuple[Skipped, ...]
    notes: tuple[Skipped, ...]
    cost: RunCost | None = None


def contrast(
    names: tuple[str, str],
    values: tuple[NDArray[np.float64], NDArray[np.float64]],
    passages: NDArray[np.int64],
) -> Contrast:
    """Tell two files apart by their KL divergences at the same positions.

    Args:
        names: paths of both.
        values: ``(positions,)`` of each, nats.
        passages: ``(positions,)``: number of the passage that each position is in.
    """
    d = values[0] - values[1]
    n = len(d)
    mean = float(d.mean()) if n else 0.0
    se = _standard_error(d, passages) if n > 1 else None
    apart = n >= FEW_POSITIONS and se is not None and abs(mean) > TOLD_APART * se
    return Contrast(*names, mean, se, apart)


def _standard_error(d: NDArray[np.float64], passages: NDArray[np.int64]) -> float:
    """Over positions, or over passages if that is larger."""
    n = len(d)
    alone = float(d.std(ddof=1)) / math.sqrt(n)
    _, which = np.unique(passages, return_inverse=True)
    sums = np.bincount(which, weights=d - d.mean())
    g = len(sums)
    together = math.sqrt(float((sums**2).sum()) * g / (g - 1)) / n if g > 1 else 0.0
    return max(alone, together)


@dataclass(frozen=True)
class Candidate:
    """What ranking asks of a file.

    Attributes:
        path: its name.
        n_bytes: its size.
        kld: mean KL divergence, None where it has none.
        broken: whether some of its logits are not finite.
    """

    path: str
    n_bytes: int
    kld: float | None
    broken: bool


@dataclass(frozen=True)
class Ranking:
    """Which file to take.

    Attributes:
        best: path of the smallest that is not told apart from the closest; None if none can
            be ranked.
        standings: by path.
        beaten_by: by path.
    """

    best: str | None
    standings: dict[str, Standing]
    beaten_by: dict[str, tuple[str, ...]]


def rank(files: Sequence[Candidate], contrasts: Sequence[Contrast], enough: bool) -> Ranking:
    """Find the frontier of size and KL divergence.

    Args:
        files: those that were run.
        contrasts: of each two that are not broken.
        enough: whether enough positions were scored to rank anything.
    """
    apart = {frozenset((c.a, c.b)): c.told_apart for c in contrasts}
    sound = [f for f in files if not f.broken and f.kld is not None]
    standings: dict[str, Standing] = {f.path: "broken" if f.broken else "not ranked" for f in files}
    if not enough or not sound:
        return Ranking(None, standings, {})
    beaten_by: dict[str, tuple[str, ...]] = {}
    for f in sound:
        others = [g for g in sound if g is not f and g.n_bytes <= f.n_bytes]
        closer = [g for g in others if apart[frozenset((f.path, g.path))] and _kld(g) < _kld(f)]
        # Of two files of one size that are not told apart neither beats the other.
        alike = [
            g for g in others if g.n_bytes < f.n_bytes and not apart[frozenset((f.path, g.path))]
        ]
        found: Standing = "dominated" if closer else "undecided" if alike else "frontier"
        standings[f.path] = found
        beaten_by[f.path] = tuple(g.path for g in closer or alike)
    closest = min(sound, key=lambda f: (_kld(f), f.n_bytes))
    alike = [f for f in sound if f is closest or not apart[frozenset((f.path, closest.path))]]
    best = min(alike, key=lambda f: (f.n_bytes, _kld(f)))
    return Ranking(best.path, standings, beaten_by)


def _kld(file: Candidate) -> float:
    return math.inf if file.kld is None else file.kld
