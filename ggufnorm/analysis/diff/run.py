"""``diff``: match the tensors of two files by name and compare each pair."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from ggufnorm.analysis.diff.metadata import metadata_differences
from ggufnorm.analysis.diff.order import coarser
from ggufnorm.analysis.diff.summary import by_layer, by_role, by_types, worst_first
from ggufnorm.analysis.diff.tensors import compare_norm, compare_tensor
from ggufnorm.analysis.diff.verdict import Findings, judge
from ggufnorm.analysis.inspection import model_facts
from ggufnorm.core.diff import (
    DiffReport,
    NonFinite,
    NormDifference,
    TensorDifference,
    Unmatched,
)
from ggufnorm.core.model import Skipped
from ggufnorm.errors import TensorTypeError
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import parse_norm_name
from ggufnorm.formats.storage import readers


@dataclass(frozen=True)
class DiffProgress:
    """How far a comparison is.

    Attributes:
        phase: what is being done, for a person.
        done: elements compared or skipped.
        total: elements in all, 0 before they are counted.
        weights_per_second: elements compared in a second so far.
        warning: whether ``phase`` is a warning.
        note: whether ``phase`` is to be told even where no bar is shown.
    """

    phase: str
    done: int
    total: int
    weights_per_second: float
    warning: bool = False
    note: bool = False

    @property
    def speed(self) -> str:
        """The speed for a person."""
        return f"{self.weights_per_second / 1e6:,.0f} M weights/s"


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    n_threads: int | None = None,
    on_progress: Callable[[DiffProgress], None] = lambda _progress: None,
) -> DiffReport:
    """Compare two GGUF files: metadata, norms bit by bit, all other tensors dequantized.

    Nothing is run. Tensors are matched by name; memory holds a few blocks of rows.

    Args:
        a: a GGUF file; relative figures are relative to it.
        b: another one: a quant of the first, another quant, or the same again.
        n_threads: threads that compare; None for all processors.
        on_progress: is told how far the comparison is.

    Raises:
        InputError: a file cannot be opened or read.
        GGUFError: it is not well-formed GGUF.
        ValueError: ``n_threads`` is out of range.
    """
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"n_threads must be at least 1, not {n_threads}")
    started = time.perf_counter()
    with open_model(a) as first, open_model(b) as second:
        on_progress(DiffProgress("reading metadata", 0, 0, 0.0))
        metadata = metadata_differences(first, second)
        compared = _Comparison(first, second, on_progress)
        with readers(n_threads or os.cpu_count() or 1) as pool:
            compared.run(pool)
        findings = Findings(
            metadata=metadata,
            norms=tuple(compared.norms),
            tensors=worst_first(compared.tensors, compared.non_finite),
            non_finite=tuple(compared.non_finite),
            unmatched=_unmatched(first, second),
            skipped=tuple(compared.skipped),
            coarser=coarser(first, second),
        )
        judgement = judge(findings)
        return DiffReport(
            a=model_facts(first),
            b=model_facts(second),
            metadata=findings.metadata,
            norms=findings.norms,
            tensors=findings.tensors,
            layers=by_layer(findings.tensors),
            roles=by_role(findings.tensors),
            types=by_types(findings.tensors),
            non_finite=findings.non_finite,
            unmatched=findings.unmatched,
            skipped=findings.skipped,
            identical=judgement.identical,
            different_checkpoints=judgement.different_checkpoints,
            verdict=judgement.verdict,
            n_weights=compared.n_weights,
            seconds=time.perf_counter() - started,
        )


class _Comparison:
    """Goes through the tensors that both files have, in the first file's order."""

    def __init__(
        self, a: ModelFile, b: ModelFile, on_progress: Callable[[DiffProgress], None]
    ) -> None:
        self.a, self.b = a, b
        self.norms: list[NormDifference] = []
        self.tensors: list[TensorDifference] = []
        self.non_finite: list[NonFinite] = []
        self.skipped: list[Skipped] = []
        self.n_weights = self._done = 0
        self._names = [n for n in a.tensors if _shape(a, n) == _shape(b, n)]
        self._total = sum(a.tensors[name].n_elements for name in self._names)
        self._on_progress = on_progress
        self._started = time.perf_counter()

    def run(self, pool: Executor) -> None:
        for name in self._names:
            try:
                self._compare(name, pool)
                self.n_weights += self.a.tensors[name].n_elements
            except TensorTypeError as error:
                self.skipped.append(Skipped(name, str(error)))
                self._advance(self.a.tensors[name].n_elements)

    def _compare(self, name: str, pool: Executor) -> None:
        if parse_norm_name(name) is None:
            tensor, bad = compare_tensor(self.a, self.b, name, pool, self._advance)
            self.tensors.append(tensor)
        else:
            norm, bad = compare_norm(self.a, self.b, name)
            self.norms.append(norm)
            self._advance(norm.n_elements)
        self.non_finite += bad

    def _advance(self, n: int) -> None:
        self._done += n
        speed = self._done / max(time.perf_counter() - self._started, 1e-9)
        self._on_progress(DiffProgress("comparing", self._done, self._total, speed))


def _shape(file: ModelFile, name: str) -> tuple[int, ...] | None:
    """A tensor's shape without trailing ones, which some writers keep; None without it."""
    tensor = file.tensors.get(name)
    if tensor is None:
        return None
    n = len(tensor.shape)
    while n > 1 and tensor.shape[n - 1] == 1:
        n -= 1
    return tensor.shape[:n]


def _unmatched(a: ModelFile, b: ModelFile) -> tuple[Unmatched, ...]:
    names = dict.fromkeys((*a.tensors, *b.tensors))
    pairs = (Unmatched(name, _shape(a, name), _shape(b, name)) for name in names)
    return tuple(p for p in pairs if p.shape_a != p.shape_b)
