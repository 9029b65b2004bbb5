"""Which tensors of the source made which tensor of the file, and in which order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ggufnorm.analysis.audit.source.arrange import (
    PARTS,
    WHOLE,
    NoSuchStepError,
    Site,
    Steps,
)
from ggufnorm.analysis.audit.source.compare import distance, glance
from ggufnorm.analysis.audit.source.layout import (
    Change,
    Layout,
    Part,
    exponential,
    negative_exponential,
)
from ggufnorm.analysis.audit.source.network import Network, encoder_config, text_config
from ggufnorm.analysis.audit.source.orders import expected_orders
from ggufnorm.analysis.audit.source.rows import MOST_HELD, Held, rows_of
from ggufnorm.errors import InputError
from ggufnorm.formats.conversion import (
    is_of_text,
    kind_of,
    likely_origins,
    named_origins,
    transform_of,
)
from ggufnorm.formats.hf import Source
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of

_ROLE = re.compile(r"(?:^|(?<=\.))blk\.\d+\.")
_SOURCE_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d{1,4})\.")

_NUMBER = re.compile(r"(?<=\.)(\d{1,5})(?=\.)")

_NEAR = 0.7
"""Relative error below which values that are not right are still those of a tensor."""

NO_ORIGIN = "no tensor of the source has its name or its values"
"""Why a tensor was not compared."""

# Tensors that no tensor of the source becomes: the converter computes them of the config.
COMPUTED = ("rope_freqs", "rope_factors_long", "rope_factors_short")


@dataclass(frozen=True)
class Making:
    """How a tensor of the file comes from the source.

    Attributes:
        tensor: its name.
        site: what it is.
        sources: the source's names: one, or several whose rows follow each other.
        steps: what was done to each one's order.
        change: what was done to each value; None for nothing.
        by_name: whether gguf-py's names lead from the one to the other.
        holds: whether a few rows have the values that this gives.
    """

    tensor: str
    site: Site
    sources: tuple[str, ...]
    steps: Steps
    change: Change | None
    by_name: bool
    holds: bool


@dataclass(frozen=True)
class Plan:
    """All tensors of a file.

    Attributes:
        makings: of those that have an origin, by name.
        unknown: those of which nothing tells where they come from, and why.
        computed: those that the converter makes of the config.
        unused: the source's names that became nothing, with the file's name where
            gguf-py has one.
    """

    makings: Mapping[str, Making]
    unknown: tuple[tuple[str, str], ...]
    computed: tuple[str, ...]
    unused: tuple[tuple[str, str | None], ...]


class Planner:
    """Looks up, and where names do not tell, looks for, the origins of a file's tensors.

    Args:
        file: the file.
        source: its checkpoint.
        excluded: names of the file's tensors that are somebody else's business.
    """

    def __init__(self, file: ModelFile, source: Source, excluded: Iterable[str] = ()) -> None:
        self._file, self.source = file, source
        self._excluded = frozenset(excluded)
        self._held = Held()
        self.kind = kind_of(file)
        self._networks = _networks(file, source)
        self.named = named_origins(file, source.tensors)
        self._likely = {} if self.named is not None else likely_origins(file, source.tensors)

    @cached_property
    def _of_layer(self) -> Mapping[int | None, list[str]]:
        found: dict[int | None, list[str]] = {}
        is_encoder = self._file.architecture == "clip"
        for name in self.source.tensors:
            if is_encoder and is_of_text(name):
                continue
            if self.source.why_unreadable(name) is None:
                found.setdefault(source_layer(name), []).append(name)
        return found

    def site(self, tensor: str) -> Site:
        """What a tensor of the file is."""
        shape = self._file.tensors[tensor].shape[::-1]
        network = self._networks["a." if tensor.startswith(("a.", "mm.a.")) else ""]
        layer = layer_of(tensor) if _ROLE.search(tensor) else None
        return Site(role_of(tensor), layer, shape, network)

    def layout(
        self, site: Site, sources: Sequence[str], steps: Steps, change: Change | None
    ) -> Layout | None:
        """The values of some sources after some steps; None if they do not fit the tensor."""
        parts: list[Part] = []
        several = len(sources) > 1
        inner = replace(site, shape=site.shape[1:]) if several and len(site.shape) > 1 else site
        try:
            for name in sources:
                dtype = self.source.tensors[name].dtype
                rows = rows_of(self.source, name, steps, inner, self._held)
                parts += [Part(name, dtype, r) for r in rows]
        except (NoSuchStepError, ValueError):
            return None
        layout = Layout(tuple(parts), site.shape[-1], change)
        return layout if layout.n_rows == int(np.prod(site.shape[:-1])) else None

    def plan(self, on_tensor: Callable[[], None] = lambda: None) -> Plan:
        """All tensors.

        Raises:
            InputError: the source cannot be read.
        """
        makings: dict[str, Making] = {}
        unknown: list[tuple[str, str]] = []
        computed: list[str] = []
        todo = [n for n in self._file.tensors if n not in self._excluded]
        for name in todo:
            if role_of(name) in COMPUTED:
                computed.append(name)
                continue
            try:
                making = self._by_name(name)
            except InputError as error:
                unknown.append((name, str(error)))
                continue
            if making is not None:
                makings[name] = making
            on_tensor()
        self._learn(makings)
        used = {s for m in makings.values() if m.holds for s in m.sources}
        for name in todo:
            if name in makings or name in computed or name in dict(unknown):
                continue
            found = self._likely_making(name)
            if found is None or not found.holds:
                found = self._by_value(name, used) or found
            if found is None:
                unknown.append((name, NO_ORIGIN))
            else:
                makings[name] = found
        self._correct(makings, unknown)
        return Plan(makings, tuple(unknown), tuple(computed), tuple(self._unused(makings)))

    def _by_name(self, tensor: str) -> Making | None:
        sources = (self.named or {}).get(tensor)
        site = self.site(tensor)
        if sources is None:
            sources = self._fused(tensor)
        if not sources:
            return None
        for name in sources:
            why = self.source.why_unreadable(name)
            if why is not None:
                raise InputError(why)
        if len(sources) > 1 and not self._stacks(site, sources):
            sources = sources[:1]
        return self._solve(tensor, site, tuple(sources), by_name=True)

    def _stacks(self, site: Site, sources: Sequence[str]) -> bool:
        sizes = sum(int(np.prod(self.source.tensors[s].shape)) for s in sources)
        return sizes >= int(np.prod(site.shape))

    def _fused(self, tensor: str) -> tuple[str, ...] | None:
        """Names of what stands in one tensor of the file and in several of the source."""
        stem, _, suffix = tensor.rpartition(".")
        for fused, parts in _FUSED.items():
            if stem.endswith(f".{fused}"):
                base = stem.removesuffix(fused)
                names = [(self.named or {}).get(f"{base}{p}.{suffix}") for p in parts]
                if all(n is not None and len(n) == 1 for n in names):
                    return tuple(n[0] for n in names if n)
        return None

    def _solve(
        self, tensor: str, site: Site, sources: tuple[str, ...], *, by_name: bool
    ) -> Making | None:
        """The first order that a few rows bear out.

        If none does it is the expected one or, where names do not tell, the nearest.
        """
        first: Making | None = None
        nearest = _NEAR
        expected = expected_orders(self.kind, site.role)
        for change in self.changes(site, sources[0]):
            for steps in dict.fromkeys((*expected, *WHOLE, *PARTS)):
                layout = self.layout(site, sources, steps, change)
                if layout is None or (steps not in expected and layout.n_held > MOST_HELD):
                    continue
                making = Making(tensor, site, sources, steps, change, by_name, holds=True)
                if glance(self._file, tensor, layout):
                    return making
                first = first or replace(making, holds=False)
                if not by_name and (d := distance(self._file, tensor, layout)) < nearest:
                    first, nearest = replace(making, holds=False), d
        return first

    def changes(self, site: Site, source: str = "") -> tuple[Change | None, ...]:
        """What may be done to each value, the likeliest first."""
        if site.role in ("ssm_a", "ssm_a_log"):
            return (negative_exponential, exponential, None)
        transform = transform_of(self._file, source)
        if transform.offset:
            offset = np.float32(transform.offset)
            return (lambda v: v + offset, None)
        return (None,)

    def lost(self, tensor: str) -> Layout | None:
        """What a tensor that the file lacks should have, where one source makes it as it is."""
        sources = (self.named or {}).get(tensor, ())
        if len(sources) != 1 or self.source.why_unreadable(sources[0]) is not None:
            return None
        shape = self.source.tensors[sources[0]].shape
        layer = layer_of(tensor) if _ROLE.search(tensor) else None
        site = Site(role_of(tensor), layer, shape, self._networks[""])
        steps = expected_orders(self.kind, site.role)[0]
        return self.layout(site, sources, steps, self.changes(site, sources[0])[0])

    def _learn(self, makings: dict[str, Making]) -> None:
        """Take the order of a role's other layers for what does not show its own."""
        orders: dict[str, list[Steps]] = {}
        for making in makings.values():
            if making.holds:
                orders.setdefault(making.site.role, []).append(making.steps)
        for name, making in makings.items():
            known = orders.get(making.site.role)
            if making.holds or not known:
                continue
            usual = max(set(known), key=known.count)
            if self.layout(making.site, making.sources, usual, making.change) is not None:
                makings[name] = replace(making, steps=usual)

    def _by_value(self, tensor: str, used: set[str]) -> Making | None:
        """The source's tensors of the same layer that have its values, in whatever order."""
        site = self.site(tensor)
        pool = self._of_layer.get(site.layer, []) or self._of_layer.get(None, [])
        return self._among(tensor, site, pool, used) or self._among(
            tensor, site, list(self._of_stacks(site.layer)), used
        )

    def _of_stacks(self, layer: int | None) -> Iterator[str]:
        """Names of the layers that are this one where a stack of layers follows another one.

        A checkpoint numbers each stack from 0, a file all of them.
        """
        sizes: dict[str, int] = {}
        for number, names in self._of_layer.items():
            for stack in {_stack(n) for n in names if number is not None}:
                sizes[stack] = max(sizes.get(stack, 0), (number or 0) + 1)
        for stack, size in sizes.items():
            for before in {s for other, s in sizes.items() if other != stack}:
                if layer is not None and 0 <= layer - before < size:
                    names = self._of_layer.get(layer - before, [])
                    yield from (n for n in names if _stack(n) == stack)

    def _among(self, tensor: str, site: Site, pool: Sequence[str], used: set[str]) -> Making | None:
        size = int(np.prod(site.shape))
        sized: list[tuple[tuple[str, ...], int]] = [((n,), self._size(n)) for n in pool]
        if len(site.shape) > 2:
            stacks = [(names, sum(map(self._size, names))) for names in _numbered_alike(pool)]
            sized = [s for s in stacks if len(s[0]) == site.shape[0]] + sized
        for names, _ in sorted(sized, key=lambda p: (p[0][0] in used, p[1])):
            if sum(map(self._size, names)) < size:
                continue
            found = self._solve(tensor, site, names, by_name=False)
            if found is not None and found.holds:
                return found
        return None

    def _likely_making(self, tensor: str) -> Making | None:
        """By the names that other architectures have; its values are not those."""
        sources = self._likely.get(tensor)
        if not sources or any(self.source.why_unreadable(s) is not None for s in sources):
            return None
        return self._solve(tensor, self.site(tensor), sources, by_name=False)

    def _correct(self, makings: dict[str, Making], unknown: list[tuple[str, str]]) -> None:
        """Take what a role is made of in most layers for the others, where names do not tell."""
        patterns: dict[str, list[tuple[tuple[str, ...], Steps]]] = {}
        for m in makings.values():
            if m.holds and not m.by_name and m.site.layer is not None:
                key = (tuple(_without_layer(s) for s in m.sources), m.steps)
                patterns.setdefault(m.site.role, []).append(key)
        for name in [*makings, *(n for n, _ in unknown)]:
            found, site = makings.get(name), self.site(name)
            known = patterns.get(site.role)
            if known is None or site.layer is None or (found is not None and found.by_name):
                continue
            usual = max(set(known), key=known.count)
            sources = tuple(s.replace("*", str(site.layer), 1) for s in usual[0])
            if 2 * known.count(usual) <= len(known) or _same(found, sources, usual[1]):
                continue
            if all(s in self.source.tensors for s in sources):
                makings[name] = Making(name, site, sources, usual[1], None, False, holds=False)
        unknown[:] = [(n, why) for n, why in unknown if n not in makings]

    def _size(self, name: str) -> int:
        return int(np.prod(self.source.tensors[name].shape))

    def _unused(self, makings: Mapping[str, Making]) -> Iterator[tuple[str, str | None]]:
        used = {s for m in makings.values() for s in m.sources}
        targets = {s: t for t, names in (self.named or {}).items() for s in names}
        is_encoder = self._file.architecture == "clip"
        for name in self.source.tensors:
            if is_encoder and is_of_text(name):
                continue
            if name not in used and targets.get(name) not in self._excluded:
                yield name, targets.get(name)


_FUSED = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"),
}
"""What a file may have in one tensor (``fuse_qkv`` in conversion/base.py)."""


def _numbered_alike(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Names that differ in one number alone, in its order: what is stacked to one tensor."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        for number in _NUMBER.finditer(name):
            pattern = f"{name[: number.start(1)]}*{name[number.end(1) :]}"
            groups.setdefault(pattern, []).append((int(number[1]), name))
    return (tuple(n for _, n in sorted(g)) for g in groups.values() if len(g) > 1)


def _networks(file: ModelFile, source: Source) -> dict[str, Network]:
    """The networks that a file's tensors belong to, by what the names of theirs begin with."""
    if file.architecture != "clip":
        found = Network(text_config(source.config), file, file.architecture)
        return {"": found, "a.": found}
    return {
        stem: Network(encoder_config(source.config, modality), file, f"clip.{modality}")
        for stem, modality in (("", "vision"), ("a.", "audio"))
    }


def role_of(tensor: str) -> str:
    """A tensor's name without its block and suffix: ``attn_q``; a bias keeps its suffix."""
    return _ROLE.sub("", tensor).removesuffix(".weight")


def source_layer(name: str) -> int | None:
    """The block of a source's tensor, by its name."""
    found = _SOURCE_LAYER.search(name)
    return int(found[1]) if found else None


def _same(making: Making | None, sources: tuple[str, ...], steps: Steps) -> bool:
    """Whether a tensor is known to be made so, or of these sources in whatever order."""
    if making is None or making.sources != sources:
        return False
    return making.holds or making.steps == steps


def _stack(name: str) -> str:
    """What a name begins with before the number of its layer."""
    found = _SOURCE_LAYER.search(name)
    return name[: found.start(1)] if found else ""


def _without_layer(name: str) -> str:
    found = _SOURCE_LAYER.search(name)
    return f"{name[: found.start(1)]}*{name[found.end(1) :]}" if found else name
