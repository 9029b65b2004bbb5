"""The child's part of ``attribute``: which tensors does the KL divergence come from?

For each chunk the reference and the pinned replica run in lockstep (``runs/lockstep.py``).
What the pinned replica shows at a hook point is what the tensor under test makes of the
reference's input; its distance from the reference, put into a run of the reference, gives that
tensor's share. It is added and not put in its place: so several tensors of one layer can be
patched together without the later ones undoing the earlier.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import numpy as np

from ggufnorm.analysis.attribution.assemble import Measured, Norm, restored
from ggufnorm.analysis.attribution.divergences import FREE, Divergences, Patch
from ggufnorm.analysis.attribution.job import AttributionJob
from ggufnorm.analysis.attribution.patch import Patcher, side_by_side
from ggufnorm.analysis.attribution.tensors import block_of, odd_norms, role_of, same_bytes
from ggufnorm.core.attribution import AttributionReport, KldSum, costly, mean_kld
from ggufnorm.core.drift import RunCost
from ggufnorm.core.logits import kl_divergences
from ggufnorm.core.metrics import DifferenceSum
from ggufnorm.core.model import Skipped
from ggufnorm.core.progress import Progress
from ggufnorm.engines.base import Array, Batch
from ggufnorm.engines.llama.binding import add_to_node, write_node
from ggufnorm.engines.llama.runner import LlamaRunner
from ggufnorm.engines.llama.session import LlamaModel
from ggufnorm.engines.worker import Channel, peak_memory
from ggufnorm.errors import InputError
from ggufnorm.formats.location import open_model
from ggufnorm.runs.lockstep import Replica
from ggufnorm.runs.loop import INTERRUPTED, Loop
from ggufnorm.runs.placement import warn_of_placement
from ggufnorm.runs.probes.patches import PatchValues
from ggufnorm.runs.session import Session, chunk_batches, count_chunks

REFERENCE, PINNED = 0, 1
"""The replicas of the lockstep."""

_MOST_VALUES = 1 << 28
"""Values kept of a chunk at a time: 1 GiB."""


def run_attribution(job: AttributionJob, channel: Channel) -> AttributionReport:
    """Measure what there is time for, and report."""
    with ExitStack() as stack:
        return _Attribution(job, stack, channel).execute()


class _Attribution:
    """One attribution: loaded, run in lockstep, patched, reported."""

    def __init__(self, job: AttributionJob, stack: ExitStack, channel: Channel) -> None:
        self.job, self.channel, self.stack = job, channel, stack
        self.started = job.policy.clock()
        self.options = job.options
        self.files = [
            stack.enter_context(open_model(side.path)) for side in (job.reference, job.quant)
        ]
        self.models = self._load()
        self.n_ctx = self.options.n_ctx
        self.tokens = job.corpus.encode(*self.models)
        self.n_planned = count_chunks(len(self.tokens), self.n_ctx, job.chunks)
        self.runners = [
            stack.enter_context(LlamaRunner(model, self.options, file))
            for model, file in zip(self.models, self.files, strict=True)
        ]
        self.measured = Divergences()
        self.done = self.total = 0
        """Decodes of this run."""
        self.cut: str | None = None
        """Why not all single tensors are measured, if that is so from the start."""

    def _load(self) -> list[LlamaModel]:
        self.channel.emit(Progress("loading the models"))
        paths = [file.path for file in self.files]
        first = self.stack.enter_context(LlamaModel(paths[REFERENCE], self.options))
        if paths[REFERENCE] == paths[PINNED]:
            return [first, first]
        return [first, self.stack.enter_context(LlamaModel(paths[PINNED], self.options))]

    def execute(self) -> AttributionReport:
        """Measure groups, then the tensors inside the costly ones, and report."""
        self.channel.emit(Progress("learning the graphs"))
        self.decode_seconds = self._plan()
        if not self.runners[REFERENCE].capabilities.logits:
            raise InputError(
                f"{self.files[REFERENCE].path} makes no next-token predictions:"
                " there is no KL divergence to attribute (try drift)"
            )
        self.loop = Loop(
            self.channel,
            self.job.policy,
            self.job.identity(*(runner.info for runner in self.runners)),
            {"divergences": self.measured},
            self.n_ctx,
            quiet=True,
        )
        replicas = [Replica(r, pinned=i == PINNED) for i, r in enumerate(self.runners)]
        self.session = Session(replicas, (), self.tokens, self.n_ctx)
        self.sites = self._sites()
        for keys in self.sites.values():
            for key in keys:
                self.measured.local.setdefault(key, DifferenceSum())
        norms = self._norms() if self.job.norms else []
        groups = self._groups() if self.job.shares else {}
        restorations = _restorations(norms)
        patches = [FREE, *(self._patch(name, group) for name, group in groups.items())]
        self.n_chunks = self._fit_chunks(len(patches), len(restorations))
        self.running = time.monotonic()
        self._measure_groups(patches, len(restorations))
        singles = self._singles(groups)
        if singles:
            patches = [self._patch(name, (name,)) for name in singles]
            self._measure("singles", patches, {}, self.n_chunks)
        skipped = self._measure_norms(restorations)
        return Measured(
            job=self.job,
            info=self.runners[PINNED].info,
            files=self.files,
            sites=self.sites,
            differing=self.differing,
            groups=groups,
            norms=norms,
            klds=self.measured.klds,
            free=self.free,
            local=self.measured.local,
            n_text_tokens=len(self.tokens),
            n_chunks_planned=self.n_planned,
            cut=self.loop.cut or self.cut,
            interrupted=self.channel.cancel.is_set(),
            skipped=tuple(dict.fromkeys([*self.session.skipped(), *skipped])),
            cost=self._cost(),
        ).report()

    def _plan(self) -> float:
        """Learn the graphs of both replicas; the seconds that a chunk's decode takes."""
        first = self.batches(0)
        seconds = 0.0
        for runner in self.runners:
            runner.plan(first)
            runner.decode(first)  # the first time llama.cpp also warms up
            begun = time.monotonic()
            runner.decode(first)
            seconds = max(seconds, time.monotonic() - begun)
        warn_of_placement(self.runners[PINNED].info, self.channel.emit)
        return seconds

    # -- what there is to patch ---------------------------------------------------------

    def batches(self, i: int) -> list[Batch]:
        """The i-th chunk, as the model wants it."""
        return chunk_batches(self.runners[REFERENCE], self.tokens, i, self.n_ctx)

    def _sites(self) -> dict[str, list[str]]:
        """For each tensor the keys of the hook points that read it and can be replaced."""
        found: dict[str, list[str]] = {}
        for match in self.session.matches:
            for h in match.hooks:
                if h.tensor and h.pin and h.key not in found.setdefault(h.tensor, []):
                    found[h.tensor].append(h.key)
        return {name: keys for name, keys in found.items() if keys}

    def _norms(self) -> list[Norm]:
        """Norms of the model under test whose input can be replaced."""
        found: dict[str, Norm] = {}
        for graph, match in zip(self.runners[PINNED].graphs, self.session.matches, strict=True):
            usable = {h.key for h in match.hooks if h.pin}
            for plan in graph.norms:
                key = graph.nodes[plan.input].key
                if key in usable:
                    stated = self.runners[PINNED].stated(plan, graph.nodes[plan.output].key)
                    found.setdefault(plan.key, Norm(plan, stated, key))
        return list(found.values())

    def _groups(self) -> dict[str, tuple[str, ...]]:
        """What is patched together first: tensors that differ, by role or by block."""
        groups: dict[str, list[str]] = {}
        name = role_of if self.job.by == "role" else block_of
        for tensor in self.differing:
            if tensor in self.sites:
                groups.setdefault(name(tensor), []).append(tensor)
        return {name: tuple(group) for name, group in groups.items()}

    @cached_property
    def differing(self) -> tuple[str, ...]:
        """Tensors that are read in both graphs and compute something else in each."""
        read = {h.tensor for runner in self.runners for g in runner.graphs for h in g.hooks}
        odd = odd_norms(*(runner.graphs for runner in self.runners))
        a, b = self.files
        return tuple(
            name
            for name in a.tensors
            if name in read and name in b.tensors and (name in odd or not same_bytes(a, b, name))
        )

    def _patch(self, name: str, tensors: Iterable[str]) -> Patch:
        return Patch(name, tuple(key for t in tensors for key in self.sites[t]))

    # -- time ---------------------------------------------------------------------------

    @property
    def budget(self) -> float:
        """Seconds for everything."""
        return self.job.policy.budget or math.inf

    @property
    def seconds_left(self) -> float:
        """Of the budget."""
        return self.budget - (time.monotonic() - self.started)

    @property
    def seconds_for_groups(self) -> float:
        """Of what is left: single tensors have half of it."""
        return (0.5 if self._wants_singles else 1.0) * self.seconds_left

    @property
    def _wants_singles(self) -> bool:
        return self.job.shares and self.job.by == "tensor"

    def _decodes(self, n_patches: int) -> int:
        """How many times each chunk is decoded to measure so many patches."""
        return n_patches + len(self.runners)

    def _fit_chunks(self, n_groups: int, n_norms: int) -> int:
        """Run fewer chunks if need be, so that single tensors have half of the budget."""
        n_patches = n_groups + n_norms
        a_chunk = self._decodes(n_patches) * self.decode_seconds
        affordable = self.seconds_for_groups / max(a_chunk, 1e-9)
        n_chunks = max(1, int(min(self.n_planned, affordable)))
        if self.measured.n_chunks is None:
            self.measured.n_chunks = n_chunks
        n_chunks = self.measured.n_chunks
        self.total = n_chunks * self._decodes(n_groups)
        then = ", then the tensors inside the costly ones" if self._wants_singles else ""
        text = (
            f"{n_patches} runs over {n_chunks} of {self.n_planned} chunks of {self.n_ctx}"
            f" tokens at {self.n_ctx / self.decode_seconds:,.0f} tokens/s: about"
            f" {n_chunks * a_chunk:.0f} s{then} (the budget is {self.budget:.0f} s)"
        )
        self.channel.emit(Progress(text, note=True))
        return n_chunks

    def _singles(self, groups: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Tensors to be measured by themselves: those of the costly groups, while time lasts."""
        if self.job.by != "tensor" or self.loop.cut:
            return []
        if self.measured.singles is None:
            self.measured.singles = self._affordable(groups)
        self.total += self.n_chunks * self._decodes(len(self.measured.singles))
        return self.measured.singles

    def _affordable(self, groups: Mapping[str, tuple[str, ...]]) -> list[str]:
        klds = {name: mean_kld(self.measured.klds[name], self.free).kld or 0.0 for name in groups}
        chosen = costly(klds, self.job.rest)
        wanted = [t for name in chosen if len(groups[name]) > 1 for t in groups[name]]
        affordable = self._affordable_decodes / self.n_chunks
        possible = max(0, int(min(len(wanted) + len(self.runners), affordable)) - len(self.runners))
        if possible < len(wanted):
            self.cut = f"the budget of {self.budget:.0f} s allowed no more"
        return wanted[:possible]

    @property
    def _affordable_decodes(self) -> float:
        """How many more there is time for, as long as those took that were done."""
        a_decode = (time.monotonic() - self.running) / max(1, self.done)
        return self.seconds_left / max(a_decode, 1e-9)

    # -- running ------------------------------------------------------------------------

    def _measure_groups(self, patches: Sequence[Patch], n_norms: int) -> None:
        """Run the groups; over less text if a chunk takes longer than it was estimated to."""
        share = self._decodes(len(patches)) / self._decodes(len(patches) + n_norms)
        until = time.monotonic() + share * self.seconds_for_groups

        def goes_on(i: int) -> bool:
            now = time.monotonic()
            return not i or now + (now - self.running) / i <= until

        n_done = self._measure("groups", patches, self.measured.local, self.n_chunks, goes_on)
        if n_done < self.n_chunks and not self.loop.cut:
            self.n_chunks = self.measured.n_chunks = n_done

    def _measure_norms(self, restorations: Sequence[Patch]) -> list[Skipped]:
        """Restore the norms' inputs, over as much text as there is still time for."""
        if not restorations or self.loop.cut == INTERRUPTED:
            return []
        affordable = self._affordable_decodes / self._decodes(len(restorations))
        n_chunks = min(self.n_chunks, int(affordable))
        if n_chunks == 0 or self.loop.cut:
            spent = f"the budget of {self.budget:.0f} s allowed no run of them"
            return [Skipped("inputs of norms", spent)]
        self.total += n_chunks * self._decodes(len(restorations))
        self._measure("norms", restorations, {}, n_chunks)
        return []

    @property
    def free(self) -> KldSum:
        """Divergences of the model under test left alone."""
        return self.measured.klds[FREE.name]

    def _measure(
        self,
        phase: str,
        patches: Sequence[Patch],
        local: Mapping[str, DifferenceSum],
        n_chunks: int,
        goes_on: Callable[[int], bool] = lambda _i: True,
    ) -> int:
        """Run all patches on all chunks, or on as many as there is time for.

        Args:
            phase: its name in the checkpoint.
            patches: what to run.
            local: sums of local errors to be fed.
            n_chunks: of the phase.
            goes_on: asked before each chunk by its number.

        Returns:
            Chunks that were run, those of the checkpoint too.
        """
        with ExitStack() as stack:
            patchers = self._patchers(patches, stack)
            for i in self.loop.units(n_chunks, phase):
                if not goes_on(i):
                    return i
                batches, fed = self.batches(i), local
                for part in self._slices(patches):
                    values = self._lockstep(i, part, fed)
                    fed = {}
                    for restores, patcher in patchers.items():
                        chosen = [p for p in part if p.restores == restores]
                        self._run(i, batches, values, patcher, chosen, restores)
                        if self.loop.ends():
                            return i
        return n_chunks

    def _patchers(self, patches: Sequence[Patch], stack: ExitStack) -> dict[bool, Patcher]:
        """A context for each side that is to be patched; the stack closes them."""
        found = {}
        for side in (PINNED, REFERENCE):
            runner, restores = self.runners[side], side == PINNED
            n = sum(p.restores == restores for p in patches)
            if n == 0:
                continue
            first = self.batches(0)
            runner.begin_chunk()
            for k, batch in enumerate(first):
                runner.forward(k, batch, (), lambda _k, _value: True)  # to check copies against
            n_seq = side_by_side(n, self.job.side_by_side)
            put = write_node if restores else add_to_node
            found[restores] = Patcher(runner, first, n_seq, stack, put)
        return found

    def _slices(self, patches: Sequence[Patch]) -> list[list[Patch]]:
        """Cut the patches so that the values kept for a slice stay within bounds."""
        size: dict[str, int] = {}
        for graph in self.runners[REFERENCE].graphs:
            for h in graph.hooks:
                size[h.key] = size.get(h.key, 0) + math.prod(graph.nodes[h.index].shape)
        slices: list[list[Patch]] = [[]]
        held = 0
        for patch in patches:
            n = sum(size[key] for key in patch.keys)
            if slices[-1] and held + n > _MOST_VALUES:
                slices.append([])
                held = 0
            slices[-1].append(patch)
            held += n
        return slices

    def _lockstep(
        self, chunk: int, patches: Sequence[Patch], local: Mapping[str, DifferenceSum]
    ) -> PatchValues:
        """Run a chunk in lockstep, to learn what is to be put in."""
        values = PatchValues(
            local,
            {key for p in patches if not p.restores for key in p.keys},
            {key for p in patches if p.restores for key in p.keys},
        )
        self.session.probes = [values]
        self.session.chunk(chunk)
        self._progress(len(self.runners))
        return values

    def _run(
        self,
        chunk: int,
        batches: Sequence[Batch],
        values: PatchValues,
        patcher: Patcher,
        patches: Sequence[Patch],
        restores: bool,
    ) -> None:
        """Run patches on a chunk and keep their divergences from the reference."""
        expected, klds = values.logits, self.measured.klds
        todo = []
        for patch in patches:
            source = values.restored if restores else values.errors
            given = [{k: v[k] for k in patch.keys if k in v} for v in source]
            if patch is FREE or any(given):
                todo.append((patch, given))
            else:  # what changes nothing needs no run
                nothing = np.zeros(sum(len(e) for e in expected))
                klds.setdefault(patch.name, KldSum()).add(chunk, nothing)
                self._progress(1)
        for at in range(0, len(todo), patcher.n_seq):
            part = todo[at : at + patcher.n_seq]
            found = patcher.run(batches, [given for _patch, given in part])
            for (patch, _given), logits in zip(part, found, strict=True):
                kld = _divergences(expected, logits)
                klds.setdefault(patch.name, KldSum()).add(chunk, kld)
            self._progress(len(part))
            if self.loop.ends():
                return

    def _progress(self, n: int) -> None:
        self.done += n
        total, seconds = max(self.done, self.total), time.monotonic() - self.running
        speed = self.done * self.n_ctx / max(seconds, 1e-9)
        left = seconds / self.done * (total - self.done)
        self.channel.emit(Progress("running", self.done, total, speed, left))

    def _cost(self) -> RunCost:
        seconds = time.monotonic() - self.running
        return RunCost(seconds, self.done * self.n_ctx / max(seconds, 1e-9), peak_memory())


def _divergences(expected: Sequence[Array], observed: Sequence[Array]) -> Any:
    """Of each position of a chunk, batch by batch."""
    pairs = zip(expected, observed, strict=True)
    return np.concatenate([kl_divergences(e, x) for e, x in pairs])


def _restorations(norms: Iterable[Norm]) -> list[Patch]:
    """One run for each node that norms read."""
    keys = dict.fromkeys(n.input_key for n in norms)
    return [Patch(restored(key), (key,), restores=True) for key in keys]
