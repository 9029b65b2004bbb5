"""All tensors of a file beside their source: planned, measured, explained."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from ggufnorm.analysis.audit.source.arrange import Steps, words
from ggufnorm.analysis.audit.source.compare import Measured, measure
from ggufnorm.analysis.audit.source.explain import Case, Explanation, explain
from ggufnorm.analysis.audit.source.layout import Layout
from ggufnorm.analysis.audit.source.orders import expected_orders, is_known
from ggufnorm.analysis.audit.source.plan import Making, Plan, Planner
from ggufnorm.analysis.audit.source.rows import Gate
from ggufnorm.errors import GgufnormError
from ggufnorm.formats.hf import Source
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.storage import readers

Progress = Callable[[str, int, int], None]
"""Is told of a phase, and how many of how many weights are done."""

_MOST_OTHERS = 600
"""Most tensors among which the owner of some values is looked for."""


@dataclass(frozen=True)
class Difference:
    """A tensor that does not have the values that its source gives.

    Attributes:
        making: where it comes from.
        explanation: what explains its values.
        measured: how far they are off; None if only their order is not the expected one.
    """

    making: Making
    explanation: Explanation
    measured: Measured | None


@dataclass(frozen=True)
class Tensors:
    """A whole file beside its source.

    Attributes:
        right: what was compared and is the source's, with where it comes from.
        differences: what was compared and is not.
        not_compared: what was not compared, and why.
        unlearned: roles whose order is not known for this architecture, and was found in
            all their layers.
        unused: source tensors that became nothing, with the file's name where there is one.
        computed: tensors that the converter makes of the config.
        finite: tensors of which the comparison showed that all their values are finite.
        n_weights: elements compared.
        knows_names: whether gguf-py knows the architecture.
        layout_of: gives what a tensor should have; None if that is not known.
    """

    right: tuple[Making, ...]
    differences: tuple[Difference, ...]
    not_compared: tuple[tuple[str, str], ...]
    unlearned: Mapping[str, Steps] = field(default_factory=dict)
    unused: tuple[tuple[str, str | None], ...] = ()
    computed: tuple[str, ...] = ()
    finite: frozenset[str] = frozenset()
    n_weights: int = 0
    knows_names: bool = True
    layout_of: Callable[[str], Layout | None] = lambda _name: None

    @property
    def n_compared(self) -> int:
        """Tensors compared."""
        return len(self.right) + len(self.differences)


def compare_tensors(
    file: ModelFile,
    source: Source,
    excluded: Iterable[str] = (),
    on_progress: Progress = lambda _phase, _done, _total: None,
) -> Tensors:
    """Compare all tensors of a file with what its source gives, on all processors.

    Args:
        file: the file.
        source: its checkpoint.
        excluded: tensors that are somebody else's business.
        on_progress: is told how far it is, from one thread at a time.
    """
    planner = Planner(file, source, excluded)
    on_progress("looking for the tensors' origins", 0, 0)
    plan = planner.plan()
    run = _Comparison(file, planner, plan, on_progress)
    largest_first = sorted(plan.makings, key=lambda n: -file.tensors[n].n_elements)
    with readers(os.cpu_count() or 1) as pool:
        for _ in pool.map(run.one, largest_first):
            pass
    return run.result()


class _Comparison:
    def __init__(
        self, file: ModelFile, planner: Planner, plan: Plan, on_progress: Progress
    ) -> None:
        self._file, self._planner, self._plan = file, planner, plan
        self._on_progress = on_progress
        self._gate = Gate()
        self._measured: dict[str, Measured] = {}
        self._failed: dict[str, str] = {}
        self._explained: dict[str, Explanation] = {}
        self._done = 0
        self._total = sum(file.tensors[n].n_elements for n in plan.makings)

    def one(self, name: str) -> None:
        """Measure one tensor and, if it is wrong, explain it."""
        making = self._plan.makings[name]
        try:
            layout = self._layout(making)
            if layout is None:
                self._failed[name] = "its source's shape does not fit"
                return
            with self._gate.holding(layout.n_held):
                measured = measure(self._file, name, layout)
                self._measured[name] = measured
                if not measured.is_right:
                    self._explained[name] = self._explain(making, layout, measured)
        except GgufnormError as error:
            self._failed[name] = str(error)
        finally:
            self._done += self._file.tensors[name].n_elements
            self._on_progress("comparing tensors with the source", self._done, self._total)

    def _layout(self, making: Making) -> Layout | None:
        return self._planner.layout(making.site, making.sources, making.steps, making.change)

    def _explain(self, making: Making, layout: Layout, measured: Measured) -> Explanation:
        others = {
            other.tensor: found
            for other in self._alike(making)
            if (found := self._layout(other)) is not None
        }
        size = making.site.network.head_size(making.site.layer)
        case = Case(self._file, making.tensor, layout, measured, others, size)
        return explain(case)

    def _alike(self, making: Making) -> list[Making]:
        """Other tensors of the same shape, the likeliest to be mixed up first."""
        here = making.site

        def apart(other: Making) -> tuple[bool, int, bool]:
            layers = abs((other.site.layer or 0) - (here.layer or 0))
            return (
                other.site.role != here.role and layers > 0,
                layers,
                other.site.role != here.role,
            )

        found = [
            m
            for m in self._plan.makings.values()
            if m.tensor != making.tensor and m.site.shape == here.shape
        ]
        return sorted(found, key=apart)[:_MOST_OTHERS]

    def result(self) -> Tensors:
        """What was seen."""
        makings = self._plan.makings
        unlearned = _unlearned(self._planner.kind, makings)
        differences, right = [], []
        for name, measured in self._measured.items():
            making = makings[name]
            if name in self._explained:
                differences.append(Difference(making, self._explained[name], measured))
            elif (misplaced := self._misplaced(making, unlearned)) is not None:
                differences.append(Difference(making, misplaced, None))
            else:
                right.append(making)
        order = {name: i for i, name in enumerate(self._file.tensors)}
        differences.sort(key=lambda d: order[d.making.tensor])
        not_compared = [*self._plan.unknown, *self._failed.items()]
        return Tensors(
            right=tuple(right),
            differences=tuple(differences),
            not_compared=tuple(sorted(not_compared, key=lambda n: order[n[0]])),
            unlearned=unlearned,
            unused=self._plan.unused,
            computed=self._plan.computed,
            finite=frozenset(n for n, m in self._measured.items() if m.is_finite),
            n_weights=sum(self._file.tensors[n].n_elements for n in self._measured),
            knows_names=self._planner.named is not None,
            layout_of=partial(self._wanted, {d.making.tensor: d for d in differences}),
        )

    def _wanted(self, differences: Mapping[str, Difference], name: str) -> Layout | None:
        """What a tensor should have, in the order and with the change that the conversion makes."""
        making = self._plan.makings.get(name)
        if making is None:
            return None if name in self._file.tensors else self._planner.lost(name)
        found = differences.get(name)
        if found is not None and found.measured is None:
            if found.explanation.kind == "order":
                expected = found.explanation.evidence["expected_order"]
                making = replace(making, steps=tuple(expected))
            else:
                making = replace(making, change=self._planner.changes(making.site)[0])
        return self._layout(making)

    def _misplaced(self, making: Making, unlearned: Mapping[str, Steps]) -> Explanation | None:
        """Why a tensor's order, of right values, is not the expected one; None if it is."""
        architecture, role = self._planner.kind, making.site.role
        change = _unchanged(making)
        if change is not None:
            return change
        expected = expected_orders(architecture, role)
        if making.steps in expected or unlearned.get(role) == making.steps:
            return None
        fitting = self._fitting(making, expected)
        if not fitting and not making.by_name:
            return None
        if any(measure(self._file, making.tensor, layout).is_right for layout in fitting.values()):
            return None
        right = next(iter(fitting), expected[0])
        found, wanted = words(making.steps), words(right)
        message = f"has its source's values {found}, where the conversion gives them {wanted}"
        evidence = {"order": list(making.steps), "expected_order": list(right)}
        return Explanation("order", f"{found} for {wanted}", message, evidence)

    def _fitting(self, making: Making, orders: Iterable[Steps]) -> dict[Steps, Layout]:
        """The orders that give a tensor of that shape, with what they give."""
        found = {}
        for steps in orders:
            layout = self._planner.layout(making.site, making.sources, steps, making.change)
            if layout is not None:
                found[steps] = layout
        return found


def _unchanged(making: Making) -> Explanation | None:
    """What there is to say of values that the converter changes, and that are not changed."""
    is_decay = making.site.role in ("ssm_a", "ssm_a_log")
    if not is_decay or making.change is not None or not making.sources[0].endswith("A_log"):
        return None
    message = "has its source's logarithms: the conversion stores -exp of them"
    return Explanation("values", "A_log", message, {"expected_change": "-exp"})


def _unlearned(kind: str, makings: Mapping[str, Making]) -> dict[str, Steps]:
    """Orders that are the same in all layers and that nobody has read of this architecture."""
    found: dict[str, Counter[Steps]] = {}
    for m in makings.values():
        if m.holds:
            found.setdefault(m.site.role, Counter())[m.steps] += 1
    return {
        role: next(iter(orders))
        for role, orders in found.items()
        if len(orders) == 1
        and next(iter(orders)) not in expected_orders(kind, role)
        and not is_known(kind, role, next(iter(orders)))
    }
