"""One file in two engines: weights and keys are the same, so that only kernels can differ.

An operation's own error is beside the reference's result on the reference's input, squared: the
normalized mean squared error (NMSE) that llama.cpp's own ``tests/test-backend-ops.cpp`` limits for
each operation of a backend. Beyond that limit llama.cpp's own tests would fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggufnorm.analysis.drift.circumstances import Look
from ggufnorm.analysis.drift.wording import NO_DRIFT, nothing_drifts
from ggufnorm.core.drift import Culprit, OperationDrift
from ggufnorm.core.engine import Circumstance, Engine, KernelError
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.engines.base import EngineInfo, Graph

_PRODUCT = 5e-4
"""``max_nmse_err`` of test_mul_mat, test_mul_mat_id and test_flash_attn_ext."""
_OTHER = 1e-7
"""``max_nmse_err`` of test_case, which other operations keep."""
_BETWEEN = 10
"""Between two hook points there may be several such operations, of which each may add its own."""
_PRODUCTS = frozenset(("MUL_MAT", "MUL_MAT_ID", "FLASH_ATTN_EXT", "OUT_PROD"))
_VIEWS = frozenset(("RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"))
_WITH_PRODUCTS = frozenset(("attention", "recurrent"))
"""Roles of hook points before which there are matrix products that are not watched."""

_VULKAN = ("FUSION", "COOPMAT", "INTEGER_DOT_PRODUCT", "F16")
"""What ggml-vulkan.cpp can be told to leave out."""


@dataclass(frozen=True)
class Engines:
    """Two engines that are not the same.

    Attributes:
        reference: of the reference.
        quant: of the model under test.
        what: in which respects they differ, in words.
    """

    reference: Engine
    quant: Engine
    what: tuple[str, ...]


def engines_of(reference: EngineInfo, quant: EngineInfo) -> Engines | None:
    """Both engines; None where they have the same kernels, or more than kernels differs."""
    a, b = reference.build, quant.build
    if a is None or b is None or _caches(reference) != _caches(quant):
        return None
    what = []
    if a.build.digest != b.build.digest:
        what.append(f"{a.build.name} and {b.build.name}")
    if a.devices != b.devices:
        what.append(f"{_devices(a)} and {_devices(b)}")
    if reference.options.use_extra_bufts != quant.options.use_extra_bufts:
        repacked = "the reference's" if reference.options.use_extra_bufts else "the other's"
        what.append(f"weights repacked on {repacked} side alone")
    batches = reference.options.n_ubatch, quant.options.n_ubatch
    if batches[0] != batches[1]:
        what.append("at most {} and {} tokens in a decode".format(*batches))
    attention = reference.options.flash_attention, quant.options.flash_attention
    if what and attention[0] != attention[1]:
        what.append("flash attention {} and {}".format(*attention))
    return Engines(a, b, tuple(what)) if what else None


def _caches(info: EngineInfo) -> tuple[str, str]:
    """What is rounded to another type is not a kernel's doing."""
    return info.options.cache_type_k, info.options.cache_type_v


def _devices(engine: Engine) -> str:
    """Without the address of a server, which may be private: ``RPC0[HOST:PORT]``."""
    seen = dict.fromkeys(name.partition("[")[0] for name in engine.devices)
    return ", ".join(seen) or "no device that was seen"


def limit_of(operation: OperationDrift) -> float:
    """What llama.cpp's tests allow for what is done at a hook point."""
    if operation.op in _PRODUCTS or operation.role in _WITH_PRODUCTS:
        return _PRODUCT
    return _OTHER * _BETWEEN


def nmse_of(operation: OperationDrift) -> float | None:
    """Of its own error; None where it shows NaN or infinity."""
    if operation.local.non_finite_rows or operation.local.rel_l2 is None:
        return None
    return operation.local.rel_l2**2


def _is_beyond(operation: OperationDrift) -> bool:
    if not operation.local.rows and not operation.local.non_finite_rows:
        return False  # it was given no input of the reference's
    nmse = nmse_of(operation)
    return nmse is None or nmse > limit_of(operation)


def kernel_errors(operations: Sequence[OperationDrift]) -> tuple[KernelError, ...]:
    """Each kind of operation and type, in graph order."""
    kinds: dict[tuple[str, str | None, float], list[OperationDrift]] = {}
    for o in operations:
        kinds.setdefault((o.op, o.dtype, limit_of(o)), []).append(o)
    found = []
    for (op, dtype, limit), alike in kinds.items():
        worst = max(alike, key=lambda o: float("inf") if (e := nmse_of(o)) is None else e)
        first = next((o for o in alike if _is_beyond(o)), None)
        place = None if first is None else _place(first)
        found.append(
            KernelError(op, dtype, len(alike), nmse_of(worst), _place(worst), limit, place)
        )
    return tuple(found)


def judge_engines(
    operations: Sequence[OperationDrift],
    logits: LogitStatistics | None,
    engines: Engines,
    graphs: Sequence[Graph],
    looks: Sequence[Look] = (),
) -> tuple[Culprit | None, str]:
    """Name the first operation that two engines do differently.

    Args:
        operations: in graph order.
        logits: None for a model without predictions.
        engines: that ran them.
        graphs: of the reference, for shapes.
        looks: the same in other batches, and with each operation by itself.

    Returns:
        The culprit, or None; and the verdict.
    """
    what = "; ".join(engines.what)
    same = f"The file is the same on both sides, so only engines differ ({what})."
    run = Look(0, False, tuple(operations), tuple(graphs))
    wrong = next((look for look in (run, *looks) if first_beyond(look.operations)), None)
    if wrong is not None:
        return _accuse(wrong, looks, engines, same)
    apart = next((look for look in looks if is_apart_whole(look)), None)
    if apart is not None:
        return _accuse_fusion(apart, engines, same)
    seen = _also(looks)
    if nothing_drifts(operations, logits):
        return None, f"{NO_DRIFT} {same}{seen}"
    return None, (
        f"{same} No operation's own error is beyond what llama.cpp's test-backend-ops allows"
        f" ({_PRODUCT:g} NMSE for matrix products, {_OTHER:g} for each other operation, of"
        f" which {_BETWEEN} were allowed for between two hook points): on this text the engines"
        f" differ by rounding.{seen}"
    )


def first_beyond(operations: Sequence[OperationDrift]) -> OperationDrift | None:
    """The first operation whose own error is beyond its limit."""
    return next((o for o in operations if _is_beyond(o)), None)


def is_apart_whole(look: Look) -> bool:
    """Whether the engines' logits part only where nobody watches, so that operations are fused."""
    if look.whole is None or look.watched is None:
        return False
    return look.whole > max(_PRODUCT, _BETWEEN * look.watched)


def circumstances_of(looks: Sequence[Look]) -> tuple[Circumstance, ...]:
    """What a report says of them."""
    found = []
    for look in looks:
        first = first_beyond(look.operations)
        op, dtype, at = (None,) * 3 if first is None else (first.op, first.dtype, _place(first))
        nmse = None if first is None else nmse_of(first)
        n = len(look.operations)
        found.append(
            Circumstance(look.batch, look.alone, n, op, dtype, at, nmse, look.whole, look.watched)
        )
    return tuple(found)


def _accuse(wrong: Look, looks: Sequence[Look], engines: Engines, same: str) -> tuple[Culprit, str]:
    """Name the operation, as closely as it was seen, and what its fault depends on."""
    alone = next((look for look in looks if look.alone and first_beyond(look.operations)), None)
    named = alone or wrong
    first = first_beyond(named.operations)
    assert first is not None
    nmse, limit = nmse_of(first), limit_of(first)
    size = "gives NaN or infinity" if nmse is None else f"is off by {nmse:.2g} NMSE"
    type_ = f" with {first.dtype}" if first.dtype else ""
    reason = (
        f"{first.op}{type_} {size} on the reference's own input, where llama.cpp's"
        f" test-backend-ops allows {limit:g}{_shapes(first, named.graphs)}"
    )
    alike = [o for o in named.operations if (o.op, o.dtype) == (first.op, first.dtype)]
    n = sum(map(_is_beyond, alike))
    of = f"{n} of {len(alike)} operations of that kind are" if len(alike) > 1 else ""
    parts = [
        f"{same} The first operation that they do differently is {_place(first)}: {reason}.",
        f"{of}." if of else "",
        _batches(wrong, looks),
        _fusion(looks),
        _advice(first, engines),
    ]
    return Culprit(first.tensor, first.node, first.layer, reason), " ".join(filter(None, parts))


def _batches(wrong: Look, looks: Sequence[Look]) -> str:
    """Whether the fault depends on the size of a batch."""
    if wrong.alone:
        return "It shows only where each operation is watched by itself: what follows hides it."
    sized = [look for look in looks if not look.alone]
    bad = [look.batch for look in sized if first_beyond(look.operations)]
    good = [look.batch for look in sized if look.batch not in bad]
    if not sized:
        return ""
    if not bad:  # another part of the text showed it
        return "On the text's first tokens alone nothing is beyond, whatever the batch."
    if not good:
        return f"It does not depend on the batch size: the same in batches of {_sizes(bad)}."
    return (
        f"The fault depends on the batch size: it is there in batches of {_sizes(bad)}, and not"
        f" in batches of {_sizes(good)}."
    )


def _fusion(looks: Sequence[Look]) -> str:
    """Whether the fault is there where each operation is computed by itself."""
    alone = next((look for look in looks if look.alone), None)
    if alone is None:
        return ""
    if first_beyond(alone.operations) is None:
        return (
            "Computed by itself, each operation is right: the fault depends on the fusion of"
            " operations."
        )
    return "It is there where each operation is computed by itself, so it is no fault of a fusion."


def _accuse_fusion(look: Look, engines: Engines, same: str) -> tuple[Culprit, str]:
    """Operations are right one by one, and the whole is wrong."""
    reason = (
        f"in batches of {look.batch}, logits part by {look.whole:.2g} NMSE where nothing is"
        f" watched, and by {look.watched:.2g} where operations are"
    )
    verdict = (
        f"{same} Each operation is right where it is watched, and the whole is not: {reason}."
        " The fault depends on the fusion of operations, which watching prevents."
        f" {_advice(None, engines)}"
    )
    return Culprit(None, "fused operations", None, reason), verdict


def _also(looks: Sequence[Look]) -> str:
    """In which other ways nothing was found."""
    if not looks:
        return " Other sizes of batches were not run."
    sizes = [look.batch for look in looks if not look.alone]
    alone = ", and with each operation by itself" if any(look.alone for look in looks) else ""
    return f" The same holds in batches of {_sizes(sizes)}{alone}."


def _sizes(sizes: Sequence[int]) -> str:
    named = [f"{n} token" if n == 1 else f"{n} tokens" for n in dict.fromkeys(sizes)]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _place(o: OperationDrift) -> str:
    return o.tensor or o.node


def _shapes(o: OperationDrift, graphs: Sequence[Graph]) -> str:
    """The operation's sources as ggml shapes them."""
    for graph in graphs:
        for hook in graph.hooks:
            if hook.key == o.node:
                shapes = graph.nodes[hook.index].source_shapes
                return f" (sources {', '.join(str(list(s)) for s in shapes)})" if shapes else ""
    return ""


def _advice(o: OperationDrift | None, engines: Engines) -> str:
    """What to switch to be sure, and llama.cpp's own test of the operation."""
    devices = " ".join((*engines.reference.devices, *engines.quant.devices))
    ways = ["-fa off on both sides"] if o is not None and o.role == "attention" else []
    if "Vulkan" in devices:
        ways += [f"GGML_VK_DISABLE_{what}=1" for what in _VULKAN]
    if "CUDA" in devices:
        ways.append("GGML_CUDA_DISABLE_FUSION=1")
    if o is None:
        return f"To be sure, run again with {', '.join(ways)}." if ways else ""
    again = f"run again with {', '.join(ways)}, and " if ways else ""
    test = f"test-backend-ops test -o {o.op}" if o.op not in _VIEWS else "test-backend-ops"
    return f"To be sure, {again}run llama.cpp's own {test} in that build."
