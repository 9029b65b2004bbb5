"""What was measured of an attribution, put together as its report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ggufnorm.analysis.attribution.job import AttributionJob
from ggufnorm.analysis.attribution.tensors import role_of
from ggufnorm.core.attribution import (
    AttributionReport,
    KldSum,
    Restoration,
    Share,
    Unmeasured,
    attribution_verdict,
    mean_kld,
    total_of,
)
from ggufnorm.core.drift import RunCost, RunFacts
from ggufnorm.core.metrics import DifferenceSum
from ggufnorm.core.model import Skipped
from ggufnorm.engines.base import EngineInfo, NormPlan, StatedNorm
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of

T = TypeVar("T")


@dataclass(frozen=True)
class Norm:
    """A norm whose input is to be restored."""

    plan: NormPlan
    stated: StatedNorm
    input_key: str


@dataclass(frozen=True)
class Measured:
    """All that an attribution found out.

    Attributes:
        job: what was asked for.
        info: of the engine that ran both.
        files: the reference and the model under test.
        sites: for each tensor the keys of the hook points that read it and can be replaced.
        differing: tensors that compute something else in each file.
        groups: what was patched together first.
        norms: whose inputs were to be restored.
        klds: divergences by the name of the patch.
        free: those of the model under test left alone.
        local: local errors by the key of the hook point.
        n_text_tokens: of the whole text.
        n_chunks_planned: that the text has, or that were asked for.
        cut: why not everything was measured; None if it was.
        interrupted: by the user.
        skipped: what could not be observed, and why.
        cost: of all runs.
    """

    job: AttributionJob
    info: EngineInfo
    files: Sequence[ModelFile]
    sites: Mapping[str, Sequence[str]]
    differing: Sequence[str]
    groups: Mapping[str, Sequence[str]]
    norms: Sequence[Norm]
    klds: Mapping[str, KldSum]
    free: KldSum
    local: Mapping[str, DifferenceSum]
    n_text_tokens: int
    n_chunks_planned: int
    cut: str | None
    interrupted: bool
    skipped: tuple[Skipped, ...]
    cost: RunCost

    def report(self) -> AttributionReport:
        """Shares, what is left of the divergence, and a verdict."""
        measured = {name: self._share(name, group) for name, group in self.groups.items()
                    if name in self.klds}  # fmt: skip
        layers: tuple[Share, ...] = ()
        shares = tuple(measured.values())
        if self.job.by == "tensor":
            layers = shares
            tensors = [t for t in self.differing if t in self.klds]
            alone = {
                g[0]: name for name, g in self.groups.items() if len(g) == 1 and name in measured
            }
            shares = tuple(self._share(t, (t,)) for t in tensors)
            shares += tuple(measured[name] for t, name in alone.items() if t not in tensors)
        shares = tuple(sorted(shares, key=lambda s: -(s.kld or 0.0)))
        free = mean_kld(self.free, self.free)
        sum_of_shares = total_of([s.share for s in shares])
        sum_of_layers = total_of([s.share for s in layers])
        unmeasured = self._unmeasured(shares)
        left = _left(layers, shares) if unmeasured else None
        restorations = tuple(
            self._restoration(n) for n in self.norms if restored(n.input_key) in self.klds
        )
        return AttributionReport(
            reference=self.job.reference,
            quant=self.job.quant,
            by=self.job.by,
            total_kld=free.kld,
            total_kld_se=free.se,
            n_tokens=free.n_tokens,
            shares=shares,
            layers=layers,
            sum_of_shares=sum_of_shares,
            sum_of_layers=sum_of_layers,
            unmeasured=unmeasured,
            unmeasured_share=left,
            restorations=restorations,
            interrupted=self.interrupted,
            verdict=attribution_verdict(free.kld, shares, sum_of_shares, left, restorations),
            skipped=self.skipped,
            run=RunFacts(
                engine=self.info.engine,
                text=self.job.corpus.name,
                n_text_tokens=self.n_text_tokens,
                n_ctx=self.job.options.n_ctx,
                n_chunks=len(self.free.chunks),
                n_chunks_planned=self.n_chunks_planned,
                n_threads=self.info.n_threads,
                n_gpu_layers=self.info.n_gpu_layers,
                reference=self.info.options,
                quant=self.info.options,
                engine_ref=self.info.build,
                engine_quant=self.info.build,
            ),
            cost=self.cost,
        )

    def _share(self, name: str, tensors: Sequence[str]) -> Share:
        found = mean_kld(self.klds[name], self.free)
        ref, quant = ([file.tensors[t] for t in tensors] for file in self.files)
        bytes_ref, n_bytes = sum(t.n_bytes for t in ref), sum(t.n_bytes for t in quant)
        added = bytes_ref - n_bytes
        locals_ = [e for e in map(self._local_error, tensors) if e is not None]
        return Share(
            tensor=tensors[0] if len(tensors) == 1 else None,
            tensors=tuple(tensors),
            layer=_common(map(layer_of, tensors)),
            role=_common(map(role_of, tensors)),
            dtype=_common(t.dtype for t in quant),
            dtype_ref=_common(t.dtype for t in ref),
            kld=found.kld,
            kld_se=found.se,
            share=found.share,
            n_tokens=found.n_tokens,
            local_rel_l2=max(locals_, default=None),
            bytes=n_bytes,
            bytes_ref=bytes_ref,
            kld_per_mb=found.kld / added * 1e6 if found.kld is not None and added > 0 else None,
        )

    def _local_error(self, tensor: str) -> float | None:
        """The largest of the operations that read it."""
        errors = [self.local[key].result().rel_l2 for key in self.sites.get(tensor, ())]
        return max((e for e in errors if e is not None), default=None)

    def _unmeasured(self, shares: Sequence[Share]) -> tuple[Unmeasured, ...]:
        measured = {t for s in shares for t in s.tensors}
        if not self.job.shares:
            reason = "it was not asked for"
        else:
            reason = self.cut or f"its layer is in the {100 * self.job.rest:g} % that cost least"
        found = []
        for name in self.differing:
            if name in measured:
                continue
            ref, quant = (file.tensors[name] for file in self.files)
            found.append(
                Unmeasured(
                    tensor=name,
                    layer=layer_of(name),
                    role=role_of(name),
                    reason=reason if name in self.sites else "its result cannot be replaced",
                    local_rel_l2=self._local_error(name),
                    dtype=quant.dtype,
                    bytes=quant.n_bytes,
                    bytes_ref=ref.n_bytes,
                )
            )
        return tuple(found)

    def _restoration(self, norm: Norm) -> Restoration:
        found = mean_kld(self.klds[restored(norm.input_key)], self.free)
        return Restoration(
            tensor=norm.plan.weight,
            node=norm.input_key,
            layer=norm.stated.layer,
            role=norm.stated.role,
            kld=found.kld,
            kld_se=found.se,
            share=found.share,
        )


def restored(key: str) -> str:
    """Name of the patch that restores a node's value."""
    return f"restored {key}"


def _common(values: Iterable[T]) -> T | None:
    """What all have in common, None if they differ."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _left(layers: Sequence[Share], shares: Sequence[Share]) -> float | None:
    """What the layers' shares leave for tensors that were not measured by themselves."""
    if not layers:
        return None
    single = {s.tensors[0]: s.share or 0.0 for s in shares}
    left = 0.0
    for layer in layers:
        missing = [t for t in layer.tensors if t not in single]
        if missing:
            left += max(0.0, (layer.share or 0.0) - sum(single.get(t, 0.0) for t in layer.tensors))
    return left
