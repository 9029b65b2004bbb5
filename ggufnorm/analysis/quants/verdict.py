"""Which file to take, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ggufnorm.core.quants import Contrast, QuantFile
from ggufnorm.core.severity import FEW_POSITIONS


def verdict(
    files: Sequence[QuantFile], best: str | None, contrasts: Sequence[Contrast], n_bad: int
) -> str:
    """One or two sentences on the frontier, the dominated and what could not be told apart.

    Args:
        files: those that were run, ranked.
        best: path of the one to take if size does not matter.
        contrasts: of each two.
        n_bad: positions at which the reference itself has a NaN or infinite logit.
    """
    if n_bad:
        return (
            f"The reference has NaN or infinite logits at {n_bad:,} positions: beside it no file"
            " can be ranked."
        )
    return " ".join(_sentences(files, best, contrasts))


def _sentences(
    files: Sequence[QuantFile], best: str | None, contrasts: Sequence[Contrast]
) -> Iterator[str]:
    broken = [f for f in files if f.standing == "broken"]
    if broken:
        yield f"NaN or infinite logits: {_names(broken)}."
    if best is None:
        if len(broken) < len(files):
            yield (
                f"Nothing is ranked: a mean needs {FEW_POSITIONS} scored positions; give a longer"
                " text (-f) or more chunks."
            )
        return
    taken = next(f for f in files if f.model.path == best)
    kld = taken.logits.mean_kld if taken.logits else None
    yield f"{_name(taken)} is closest to the reference (mean KL divergence {kld or 0:.3g})."
    alike = {
        c.a if c.b == best else c.b for c in contrasts if best in (c.a, c.b) and not c.told_apart
    }
    same = [f for f in files if f.model.path in alike]
    if same:
        yield f"This text does not tell {_names(same)} apart from it."
    dominated = [f for f in files if f.standing == "dominated"]
    if dominated:
        pairs = [f"{_name(f)} by {Path(f.beaten_by[0]).name}" for f in dominated]
        yield f"Dominated, no smaller and worse: {_listed(pairs)}."
    elif sum(f.standing == "frontier" for f in files) == len(files) > 1:
        yield "None is dominated: each is the closest of its size or less."
    undecided = [f for f in files if f.standing == "undecided" and f not in same]
    if undecided:
        yield (f"No better than a smaller file, as far as this text tells: {_names(undecided)}.")


def _name(f: QuantFile) -> str:
    return Path(f.model.path).name


def _names(files: Sequence[QuantFile]) -> str:
    return _listed([_name(f) for f in files])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
