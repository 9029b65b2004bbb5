"""A checkpoint whose norms are given inputs of another run. Imported where torch is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import Array
from ggufnorm.engines.hf.model import HFModel, Tokens
from ggufnorm.engines.hf.norms import as_array
from ggufnorm.engines.pretrained import quiet


@dataclass
class NormInputs:
    """What goes into norms, call by call, by the module's name.

    Attributes:
        calls: of each module.
        logits: ``(tokens, vocabulary)``; None without predictions.
    """

    calls: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    logits: Array | None = None


def norm_inputs(
    model: HFModel, tokens: Tokens, names: Iterable[str], pins: NormInputs | None = None
) -> NormInputs:
    """Run token ids and keep what goes into some norms.

    A value is replaced where it lies, so that the residual stream, which a norm's input most
    often is, goes on with the other value too. Norms that read one value (both of a parallel
    block of GPT-NeoX) are all said to have got what was there before the first of them.

    Args:
        model: to run.
        tokens: ids.
        names: of the norms' modules.
        pins: what each norm is given at its first call in the place of its own input; None for
            that itself.
    """
    seen = NormInputs()
    given: Mapping[str, Sequence[torch.Tensor]] = {} if pins is None else pins.calls
    with _kept(model.model, names, seen, given), quiet(), torch.inference_mode():
        logits = getattr(model.model(**model.inputs(tokens)), "logits", None)
    seen.logits = None if logits is None else as_array(logits[0])
    return seen


def distances(plain: NormInputs, other: NormInputs) -> dict[str, float]:
    """Relative L2 distance of each norm's input at its first call, by name; of both runs."""
    return {
        name: relative_l2(as_array(calls[0]), as_array(other.calls[name][0]))
        for name, calls in plain.calls.items()
        if name in other.calls
    }


@contextmanager
def _kept(
    model: torch.nn.Module,
    names: Iterable[str],
    seen: NormInputs,
    given: Mapping[str, Sequence[torch.Tensor]],
) -> Iterator[None]:
    replaced: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def own(x: torch.Tensor) -> torch.Tensor:
        """What was in a tensor, which another norm's pin may have replaced."""
        pin, before = replaced.get(x.data_ptr(), (None, x))
        is_pinned = pin is not None and pin.shape == x.shape and torch.equal(pin, x)
        return before if is_pinned else x.detach().clone()

    def keeper(name: str) -> Any:
        def keep(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(x, torch.Tensor):
                return
            calls = seen.calls.setdefault(name, [])
            calls.append(own(x))
            others = given.get(name, ())[:1]
            if len(calls) <= len(others) and others[len(calls) - 1].shape == x.shape:
                pin = others[len(calls) - 1]
                replaced[x.data_ptr()] = (pin, calls[-1])
                x.copy_(pin)

        return keep

    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(keeper(name), with_kwargs=True)
        for name in dict.fromkeys(names)
        if name in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
