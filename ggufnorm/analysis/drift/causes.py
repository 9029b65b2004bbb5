"""Errors where no weight differs: other keys, tensors that one file lacks, a quantized cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ggufnorm.analysis.drift.damage import Groups
from ggufnorm.analysis.drift.files import Files
from ggufnorm.analysis.drift.localise import role_of
from ggufnorm.analysis.drift.weights import WeightError
from ggufnorm.core.diff import MetadataDifference
from ggufnorm.core.drift import Culprit, NormDrift, OperationDrift
from ggufnorm.core.tolerances import (
    FLOAT32_ROUNDING,
    NORM_SHARE,
    NOT_QUANTIZATION,
    OPERATION_ERROR,
    OPERATION_PEER_RATIO,
    OPERATION_RUINED,
)
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.formats.naming import layer_of

_MOST_KEYS = 4
_CACHED = ("attn_k", "attn_v")
"""Elements of the names of the tensors that make keys and values."""


@dataclass(frozen=True)
class Sides:
    """How the two models were run.

    Attributes:
        reference: options of the reference.
        quant: options of the model under test.
    """

    reference: EngineOptions
    quant: EngineOptions

    @property
    def same_attention(self) -> bool:
        """Whether attention is computed alike: neither cache nor kernel is chosen otherwise."""
        return _attention(self.reference) == _attention(self.quant)

    @property
    def caches(self) -> dict[str, tuple[str, str]]:
        """``K`` and ``V`` where their caches have other types: the reference's, the other's."""
        a, b = self.reference, self.quant
        pairs = {
            "K": (a.cache_type_k, b.cache_type_k),
            "V": (a.cache_type_v, b.cache_type_v),
        }
        return {side: pair for side, pair in pairs.items() if pair[0] != pair[1]}


def _attention(o: EngineOptions) -> tuple[str, str, str]:
    return o.flash_attention, o.cache_type_k, o.cache_type_v


def other_keys(
    operations: Sequence[OperationDrift],
    norms: Sequence[NormDrift],
    files: Files,
    sides: Sides,
    noise: float,
) -> Culprit | None:
    """The first operation that is off although what it reads is the same: the keys' doing.

    Args:
        operations: in graph order.
        norms: judged elsewhere.
        files: whose keys may differ.
        sides: where attention is computed otherwise, it is not the keys' doing.
        noise: what quantization does to a typical matrix product; a tenth of it does not count.
    """
    o = next(
        (
            o
            for o in _unexplained(operations, norms, files)
            if _error(o) > NORM_SHARE * noise and (sides.same_attention or o.role != "attention")
        ),
        None,
    )
    if o is None:
        return None
    causes = [*map(key_text, files.keys[:_MOST_KEYS]), *_lacking(files, o.layer)]
    if not causes:
        return None
    if len(files.keys) > _MOST_KEYS:
        causes.append(f"{len(files.keys) - _MOST_KEYS} more keys differ")
    reads = "its weight is the same in both files" if o.tensor else "it reads no weight"
    return Culprit(
        o.tensor,
        o.node,
        o.layer,
        f"given the reference's input it is off by {_error(o):.3g} (relative L2) although"
        f" {reads}: {'; '.join(causes)}",
    )


def key_text(d: MetadataDifference) -> str:
    """A key and its two values."""
    a, b = (_value(v) for v in (d.a, d.b))
    at = "" if d.index is None else f" at {d.index}"
    return f"{d.key}{at} is {a} in the reference and {b} in the model under test"


_SHOWN = 40
"""Characters of a value that a sentence shows: a chat template has thousands."""


def _value(value: object) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}…"


def _lacking(files: Files, layer: int | None) -> list[str]:
    """Tensors that only one file has and that may act in a layer."""
    return [
        f"{who} lacks {name}"
        for who, names in (
            ("the model under test", files.lacking),
            ("the reference", files.added),
        )
        for name in sorted(names)
        if layer_of(name) in (layer, None) and name not in _TIED
    ][:_MOST_KEYS]


_TIED = ("output.weight", "token_embd.weight")
"""One may stand for the other."""


def _unexplained(
    operations: Sequence[OperationDrift], norms: Sequence[NormDrift], files: Files
) -> list[OperationDrift]:
    """Operations with an error of their own that no weight accounts for, in graph order."""
    nodes = {n.node for n in norms}
    return [
        o
        for o in operations
        if o.node not in nodes
        and (o.tensor is None or o.tensor in files.same)
        and _error(o) > FLOAT32_ROUNDING
    ]


def beyond_weights(
    groups: Groups, sample_weight: Callable[[str], WeightError | None], files: Files
) -> Culprit | None:
    """The worst operation that is off by far more than its weight is, where keys differ.

    Of a matrix that is multiplied with what an unwatched attention gave, the error holds that
    attention's (latent attention, ``build_attn_mha`` in llama-graph.cpp).
    """
    if not files.keys:
        return None
    for o in sorted((o for group in groups.values() for o in group), key=lambda o: -_error(o))[:4]:
        w = sample_weight(o.tensor) if o.tensor else None
        if w is None or w.actual is None or _error(o) < OPERATION_PEER_RATIO * w.actual:
            continue
        causes = "; ".join(map(key_text, files.keys[:_MOST_KEYS]))
        return Culprit(
            o.tensor,
            o.node,
            o.layer,
            f"given the reference's input it is off by {_error(o):.3g} (relative L2) where its"
            f" weight is off by {w.actual:.3g}: {causes}",
        )
    return None


def lost_head(operations: Sequence[OperationDrift], files: Files) -> Culprit | None:
    """The output matrix that one file lacks, where the embedding is no stand-in for it."""
    for name, lacks, has in (
        (_TIED[0], files.lacking, "the model under test lacks it, and its token embedding stands"),
        (_TIED[0], files.added, "the reference lacks it, and its token embedding stands"),
    ):
        o = next((o for o in operations if o.tensor in _TIED and o.tensor != _TIED[1]), None)
        if o is not None and name in lacks and _error(o) > NOT_QUANTIZATION:
            return Culprit(
                name,
                o.node,
                o.layer,
                f"given the reference's input it is off by {_error(o):.3g} (relative L2): {has} in"
                " for it, with other values (a trained output matrix was lost to tying)",
            )
    return None


def out_of_line(
    operations: Sequence[OperationDrift],
    norms: Sequence[NormDrift],
    files: Files,
    sides: Sides,
    typical: Mapping[str, float],
) -> Culprit | None:
    """The worst operation without a weight that is out of line with its role's other layers.

    Args:
        operations: in graph order.
        norms: judged elsewhere.
        files: whose keys may differ.
        sides: how each was run.
        typical: error of a typical channel of an operation, which a few large channels hide
            in the operation's own.
    """

    def off(o: OperationDrift) -> float:
        return max(_error(o), typical.get(o.node, 0.0))

    found = []
    for o in _unexplained(operations, norms, files):
        peers = [off(p) for p in operations if p is not o and role_of(p) == role_of(o)]
        middle = statistics.median(peers) if peers else None
        apart = middle is not None and off(o) > OPERATION_PEER_RATIO * middle
        if off(o) > OPERATION_RUINED or (apart and off(o) > OPERATION_ERROR):
            found.append((off(o), o, peers))
    if not found:
        return None
    error, o, peers = max(found, key=lambda row: row[0])
    name = f"the attention of layer {o.layer}" if o.role == "attention" else "it"
    name = f"a typical channel of {name}" if error > _error(o) else name
    others = f", the other layers by {_range(peers)}" if peers else ""
    return Culprit(
        o.tensor,
        o.node,
        o.layer,
        f"given the reference's input {name} is off by {error:.3g}{others} (relative L2)"
        f" although it reads no weight that differs: {_why(o, operations, sides)}",
    )


def _why(o: OperationDrift, operations: Sequence[OperationDrift], sides: Sides) -> str:
    caches = sides.caches
    if o.role != "attention" or not caches:
        return (
            "attention is computed otherwise (other -fa)"
            if o.role == "attention" and not sides.same_attention
            else "the files agree on all that it reads, so llama.cpp computed it otherwise"
        )
    evidence = {side: _large(side, o.layer, operations) for side in caches}
    guilty = [side for side in caches if evidence[side]] or list(caches)
    types = " and ".join(f"{side} is cached in {caches[side][1]}" for side in guilty)
    large = "; ".join(text for text in evidence.values() if text)
    options = " ".join(f"-ct{side.lower()} {caches[side][0]}" for side in guilty)
    seen = f", and {large}, so a block's scale leaves little of the other channels" if large else ""
    return f"{types}{seen}: keep {' and '.join(guilty)} at higher precision ({options}, or q8_0)"


def _large(side: str, layer: int | None, operations: Sequence[OperationDrift]) -> str | None:
    """What is extreme in a layer's keys or values beside the other layers'."""
    part = _CACHED["KV".index(side)]
    last = {
        o.layer: o
        for o in operations
        if o.tensor and part in o.tensor.split(".") and o.peak_ref is not None
    }
    here = last.pop(layer, None)
    if here is None or here.peak_ref is None or not last:
        return None
    others = statistics.median(abs(o.peak_ref.value) for o in last.values() if o.peak_ref)
    if abs(here.peak_ref.value) < OPERATION_PEER_RATIO * others:
        return None
    word = "keys" if side == "K" else "values"
    return (
        f"its {word} reach {here.peak_ref.value:.3g} at channel {here.peak_ref.channel}"
        f" ({here.tensor}) where the other layers' reach {others:.3g}"
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _error(o: OperationDrift) -> float:
    return o.local.rel_l2 or 0.0
