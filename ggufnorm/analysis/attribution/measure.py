"""The child's part of ``attribute``: which tensors does the KL divergence come from?

For each chunk the reference and the pinned lane walk in step (``engines/llama/walk.py``).
What the pinned lane shows at a stop is what the tensor under test makes of the reference's
input; its distance from the reference, put into a run of the reference, gives that tensor's
share. It is added and not put in its place: so several tensors of one layer can be patched
together without the later ones undoing the earlier.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ggufnorm.analysis.attribution.assemble import Measured, Norm, restored
from ggufnorm.analysis.attribution.capture import Capture
from ggufnorm.analysis.attribution.patch import Array, Patcher, side_by_side
from ggufnorm.analysis.attribution.tensors import block_of, odd_norms, role_of, same_bytes
from ggufnorm.analysis.drift.assemble import stated_norm
from ggufnorm.analysis.drift.measure import (
    chunk_batches,
    count_chunks,
    predicts,
)
from ggufnorm.core.attribution import (
    AttributionReport,
    KldSum,
    costly,
    mean_kld,
)
from ggufnorm.core.drift import RunCost
from ggufnorm.core.logits import kl_divergences
from ggufnorm.core.metrics import DifferenceSum
from ggufnorm.core.model import Skipped
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.engines.child import Emit, peak_memory
from ggufnorm.engines.llama.binding import add_to_node, write_node
from ggufnorm.engines.llama.session import Batch, EngineOptions, LlamaModel
from ggufnorm.engines.llama.tokens import tokens_of_job
from ggufnorm.engines.llama.walk import Lane, Lockstep
from ggufnorm.errors import InputError
from ggufnorm.formats.location import open_model

REFERENCE, PINNED = 0, 1
"""The lanes of the walk."""

_MOST_VALUES = 1 << 28
"""Values kept of a chunk at a time: 1 GiB."""


def attribute_here(job: dict[str, Any], emit: Emit, stop: threading.Event) -> dict[str, Any]:
    """Run the job of :func:`ggufnorm.attribute`; a plain AttributionReport."""
    with ExitStack() as stack:
        plain: dict[str, Any] = to_plain(_Run(job, stack, emit, stop).execute())
        return plain


@dataclass(frozen=True)
class Patch:
    """One run with changed values.

    Attributes:
        name: under which its divergences are kept.
        keys: of the stops.
        restores: put the reference's values into the model under test, instead of adding
            the local errors of the model under test to the reference's values.
    """

    name: str
    keys: tuple[str, ...]
    restores: bool = False


FREE = Patch("", (), restores=True)
"""The model under test left alone."""


class _Run:
    """One attribution: loaded, walked, patched, reported."""

    def __init__(
        self, job: dict[str, Any], stack: ExitStack, emit: Emit, stop: threading.Event
    ) -> None:
        self.job, self.emit, self.stop, self.stack = job, emit, stop, stack
        self.started = time.monotonic()
        self.options = from_plain(EngineOptions, job["options"])
        self.files = [
            stack.enter_context(open_model(job[side]["path"])) for side in ("reference", "quant")
        ]
        self.tensors = [frozenset(file.tensors) for file in self.files]
        self.models = self._load()
        self.n_ctx = self.options.n_ctx
        self.tokens = tokens_of_job(job, *self.models)
        self.n_chunks = self.n_planned = count_chunks(len(self.tokens), self.n_ctx, job["chunks"])
        self.lanes = [
            Lane(self.models[i], self.options, self.tensors[i], pin=i == PINNED)
            for i in (REFERENCE, PINNED)
        ]
        for lane in self.lanes:
            stack.enter_context(lane.context)
        self.klds: dict[str, KldSum] = {FREE.name: KldSum()}
        self.local: dict[str, DifferenceSum] = {}
        self.done = self.total = 0
        self.cut: str | None = None
        """Why not everything was measured, if it was not."""

    def _load(self) -> list[LlamaModel]:
        self.emit({"type": "phase", "text": "loading the models"})
        paths = [file.path for file in self.files]
        first = self.stack.enter_context(LlamaModel(paths[REFERENCE], self.options))
        if paths[REFERENCE] == paths[PINNED]:
            return [first, first]
        return [first, self.stack.enter_context(LlamaModel(paths[PINNED], self.options))]

    def execute(self) -> AttributionReport:
        """Measure groups, then the tensors inside the costly ones, and report."""
        self.emit({"type": "phase", "text": "learning the graphs"})
        self.decode_seconds = self._plan()
        if not predicts(self.lanes[REFERENCE].graphs[-1]):
            raise InputError(
                f"{self.files[REFERENCE].path} makes no next-token predictions:"
                " there is no KL divergence to attribute (try drift)"
            )
        self.lockstep = Lockstep(self.lanes)
        self.sites = self._sites()
        self.local = {key: DifferenceSum() for keys in self.sites.values() for key in keys}
        norms = self._norms() if self.job["norms"] else []
        groups = self._groups() if self.job["shares"] else {}
        patches = [FREE, *_restorations(norms)]
        patches += [self._patch(name, group) for name, group in groups.items()]
        self._fit_chunks(len(patches))
        self.running = time.monotonic()
        self._measure(patches, self.local)
        singles = self._singles(groups)
        if singles:
            self._measure([self._patch(name, (name,)) for name in singles], {})
        return Measured(
            job=self.job,
            options=self.options,
            files=self.files,
            sites=self.sites,
            differing=self.differing,
            groups=groups,
            norms=norms,
            klds=self.klds,
            free=self.free,
            local=self.local,
            n_text_tokens=len(self.tokens),
            n_chunks_planned=self.n_planned,
            cut=self.cut,
            interrupted=self.stop.is_set(),
            skipped=self._skipped(),
            cost=self._cost(),
        ).report()

    def _plan(self) -> float:
        """Learn the graphs of both lanes; the seconds that a chunk's decode takes."""
        first = self.batches(0)
        seconds = 0.0
        for lane in self.lanes:
            lane.plan(first)
            lane.graphs.clear()
            begun = time.monotonic()
            lane.plan(first)  # the first time llama.cpp also warms up
            seconds = max(seconds, time.monotonic() - begun)
        return seconds

    # -- what there is to patch ---------------------------------------------------------

    def batches(self, i: int) -> list[Batch]:
        """The i-th chunk, as the model wants it."""
        return chunk_batches(self.lanes[REFERENCE], self.tokens, i, self.n_ctx)

    def _sites(self) -> dict[str, list[str]]:
        """For each tensor the keys of the stops that read it and can be replaced."""
        found: dict[str, list[str]] = {}
        for match in self.lockstep.matches:
            for s in match.stops:
                if s.tensor and s.pin and s.key not in found.setdefault(s.tensor, []):
                    found[s.tensor].append(s.key)
        return {name: keys for name, keys in found.items() if keys}

    def _norms(self) -> list[Norm]:
        """Norms of the model under test whose input can be replaced."""
        found: dict[str, Norm] = {}
        for graph, match in zip(self.lanes[PINNED].graphs, self.lockstep.matches, strict=True):
            usable = {s.key for s in match.stops if s.pin}
            for plan in graph.norms:
                key = graph.nodes[plan.input].key
                if key in usable:
                    stated = stated_norm(self.files[PINNED], plan, graph.nodes[plan.output].key)
                    found.setdefault(plan.key, Norm(plan, stated, key))
        return list(found.values())

    def _groups(self) -> dict[str, tuple[str, ...]]:
        """What is patched together first: tensors that differ, by role or by block."""
        groups: dict[str, list[str]] = {}
        name = role_of if self.job["by"] == "role" else block_of
        for tensor in self.differing:
            if tensor in self.sites:
                groups.setdefault(name(tensor), []).append(tensor)
        return {name: tuple(group) for name, group in groups.items()}

    @cached_property
    def differing(self) -> tuple[str, ...]:
        """Tensors that are read in both graphs and compute something else in each."""
        read = {s.tensor for lane in self.lanes for g in lane.graphs for s in g.stops}
        odd = odd_norms(*(lane.graphs for lane in self.lanes))
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
    def seconds_left(self) -> float:
        """Of the budget."""
        budget: float = self.job["budget"]
        return budget - (time.monotonic() - self.started)

    def _decodes(self, n_patches: int) -> int:
        """How many times each chunk is decoded to measure so many patches."""
        return n_patches + len(self.lanes)

    def _fit_chunks(self, n_patches: int) -> None:
        """Run fewer chunks if need be, so that single tensors have half of the budget."""
        singles = self.job["shares"] and self.job["by"] == "tensor"
        a_chunk = self._decodes(n_patches) * self.decode_seconds
        affordable = int((0.5 if singles else 1.0) * self.seconds_left / max(a_chunk, 1e-9))
        self.n_chunks = max(1, min(self.n_chunks, affordable))
        self.total = self.n_chunks * self._decodes(n_patches)
        then = ", then the tensors inside the costly ones" if singles else ""
        self.emit({"type": "note", "text": (
            f"{n_patches} runs over {self.n_chunks} of {self.n_planned} chunks of {self.n_ctx}"
            f" tokens at {self.n_ctx / self.decode_seconds:,.0f} tokens/s: about"
            f" {self.n_chunks * a_chunk:.0f} s{then}"
            f" (the budget is {self.job['budget']:.0f} s)"
        )})  # fmt: skip

    def _singles(self, groups: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Tensors to be measured by themselves: those of the costly groups, while time lasts."""
        if self.job["by"] != "tensor" or self.cut:
            return []
        klds = {name: mean_kld(self.klds[name], self.free).kld or 0.0 for name in groups}
        chosen = costly(klds, self.job["rest"])
        wanted = [t for name in chosen if len(groups[name]) > 1 for t in groups[name]]
        a_decode = (time.monotonic() - self.running) / max(1, self.done)
        affordable = int(self.seconds_left / max(a_decode * self.n_chunks, 1e-9))
        possible = max(0, affordable - len(self.lanes))
        if possible < len(wanted):
            self.cut = f"the budget of {self.job['budget']:.0f} s allowed no more"
        if wanted := wanted[:possible]:
            self.total += self.n_chunks * self._decodes(len(wanted))
        return wanted

    def _out_of_time(self) -> bool:
        if self.stop.is_set():
            self.cut = "interrupted"
        elif self.seconds_left <= 0:
            self.cut = f"the budget of {self.job['budget']:.0f} s was spent"
        else:
            return False
        return True

    # -- running ------------------------------------------------------------------------

    @property
    def free(self) -> KldSum:
        """Divergences of the model under test left alone."""
        return self.klds[FREE.name]

    def _measure(self, patches: Sequence[Patch], local: Mapping[str, DifferenceSum]) -> None:
        """Run all patches on all chunks, or on as many as there is time for.

        Args:
            patches: what to run.
            local: sums of local errors to be fed.
        """
        with ExitStack() as stack:
            patchers = self._patchers(patches, stack)
            for i in range(self.n_chunks):
                batches, fed = self.batches(i), local
                for part in self._slices(patches):
                    capture, expected = self._walk(batches, part, fed)
                    fed = {}
                    for restores, patcher in patchers.items():
                        values = capture.restored if restores else capture.errors
                        chosen = [p for p in part if p.restores == restores]
                        self._run(i, batches, expected, patcher, chosen, values)
                        if self.cut:
                            return

    def _patchers(self, patches: Sequence[Patch], stack: ExitStack) -> dict[bool, Patcher]:
        """A context for each side that is to be patched; the stack closes them."""
        found = {}
        for side, lane in ((PINNED, self.lanes[PINNED]), (REFERENCE, self.lanes[REFERENCE])):
            restores = side == PINNED
            n = sum(p.restores == restores for p in patches)
            if n == 0:
                continue
            first = self.batches(0)
            lane.context.clear()
            for graph, batch in zip(lane.graphs, first, strict=True):
                lane.walk(graph, (), batch, _pass)  # what the copies are checked against
            found[restores] = Patcher(
                self.models[side],
                self.options,
                self.tensors[side],
                lane,
                first,
                side_by_side(n, self.job["side_by_side"]),
                stack,
                write_node if restores else add_to_node,
            )
        return found

    def _slices(self, patches: Sequence[Patch]) -> list[list[Patch]]:
        """Cut the patches so that the values kept for a slice stay within bounds."""
        size: dict[str, int] = {}
        for graph in self.lanes[REFERENCE].graphs:
            for s in graph.stops:
                size[s.key] = size.get(s.key, 0) + math.prod(graph.nodes[s.index].shape)
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

    def _walk(
        self, batches: Sequence[Batch], patches: Sequence[Patch], local: Mapping[str, DifferenceSum]
    ) -> tuple[Capture, list[Array]]:
        """Walk a chunk in step; what is to be put in, and each batch's reference logits."""
        capture = Capture(
            local,
            {key for p in patches if not p.restores for key in p.keys},
            {key for p in patches if p.restores for key in p.keys},
        )
        for lane in self.lanes:
            lane.context.clear()
        expected = []
        for k, batch in enumerate(batches):
            capture.begin_batch()
            self.lockstep.run(k, batch, capture.meet)
            expected.append(self._expected(batch))
        self._progress(len(self.lanes))
        return capture, expected

    def _expected(self, batch: Batch) -> Array:
        """The reference's logits where a token follows, ``(positions, vocabulary)``."""
        n = len(batch.following)
        if n == 0:
            return np.empty((0, 0), np.float32)
        return self.lanes[REFERENCE].context.logits(batch.n_outputs)[:n].copy()

    def _run(
        self,
        chunk: int,
        batches: Sequence[Batch],
        expected: Sequence[Array],
        patcher: Patcher,
        patches: Sequence[Patch],
        values: Sequence[Mapping[str, Array]],
    ) -> None:
        """Run patches on a chunk and keep their divergences from the reference."""
        todo = []
        for patch in patches:
            given = [{k: v[k] for k in patch.keys if k in v} for v in values]
            if patch is FREE or any(given):
                todo.append((patch, given))
            else:  # what changes nothing needs no run
                nothing = np.zeros(sum(len(e) for e in expected))
                self.klds.setdefault(patch.name, KldSum()).add(chunk, nothing)
                self._progress(1)
        for at in range(0, len(todo), patcher.n_seq):
            part = todo[at : at + patcher.n_seq]
            found = patcher.run(batches, [given for _patch, given in part])
            for (patch, _given), logits in zip(part, found, strict=True):
                klds = [kl_divergences(e, x) for e, x in zip(expected, logits, strict=True)]
                self.klds.setdefault(patch.name, KldSum()).add(chunk, np.concatenate(klds))
            self._progress(len(part))
            if self._out_of_time():
                return

    def _progress(self, n: int) -> None:
        self.done += n
        self.emit({"type": "progress", "done": self.done, "total": max(self.done, self.total),
                   "run": self.done, "tokens": self.n_ctx,
                   "seconds": time.monotonic() - self.running})  # fmt: skip

    def _cost(self) -> RunCost:
        seconds = time.monotonic() - self.running
        return RunCost(seconds, self.done * self.n_ctx / max(seconds, 1e-9), peak_memory())

    def _skipped(self) -> tuple[Skipped, ...]:
        found = [s for lane in self.lanes for graph in lane.graphs for s in graph.skipped]
        found += [s for match in self.lockstep.matches for s in match.skipped]
        return tuple(dict.fromkeys(found))


def _pass(_stop: int, _address: int) -> bool:
    return True


def _restorations(norms: Iterable[Norm]) -> list[Patch]:
    """One run for each node that norms read."""
    keys = dict.fromkeys(n.input_key for n in norms)
    return [Patch(restored(key), (key,), restores=True) for key in keys]
