"""A checkpoint whose norms are given inputs of another run. Imported where torch is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import Array
from ggufnorm.engines.hf.model import HFModel, Tokens
from ggufnorm.engines.hf.norms import as_view
from ggufnorm.engines.pretrained import quiet
from ggufnorm.engines.row_file import RowFile


@dataclass
class NormInputs:
    """What goes into norms, call by call, by the module's name.

    Attributes:
        calls: of each module, each read when it is called.
        logits: ``(tokens, vocabulary)``, likewise; None without predictions.
    """

    calls: dict[str, list[Callable[[], Array]]] = field(default_factory=dict)
    logits: Callable[[], Array] | None = None


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
    seen, file = NormInputs(), RowFile()
    given = {} if pins is None else pins.calls
    with _kept(model.model, names, seen, given, file), quiet(), torch.inference_mode():
        logits = getattr(model.model(**model.inputs(tokens)), "logits", None)
    seen.logits = None if logits is None else file.keep(as_view(logits[0]))
    return seen


def distances(plain: NormInputs, other: NormInputs) -> dict[str, float]:
    """Relative L2 distance of each norm's input at its first call, by name; of both runs."""
    return {
        name: relative_l2(calls[0](), other.calls[name][0]())
        for name, calls in plain.calls.items()
        if name in other.calls
    }


@contextmanager
def _kept(
    model: torch.nn.Module,
    names: Iterable[str],
    seen: NormInputs,
    given: Mapping[str, Sequence[Callable[[], Array]]],
    file: RowFile,
) -> Iterator[None]:
    # By address, for that is all that two norms' arguments have in common.
    replaced: dict[int, tuple[Callable[[], Array], Callable[[], Array]]] = {}

    def own(x: torch.Tensor) -> Callable[[], Array]:
        """What was in a tensor, which another norm's pin may have replaced."""
        value = as_view(x)
        if x.data_ptr() in replaced:
            pin, before = replaced[x.data_ptr()]
            if np.array_equal(pin(), value):
                return before
        return file.keep(value)

    def keeper(name: str) -> Any:
        def keep(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(x, torch.Tensor):
                return
            calls = seen.calls.setdefault(name, [])
            calls.append(own(x))
            if len(calls) > 1 or not given.get(name):
                return
            pin = given[name][0]
            values = pin()
            if values.shape == x.shape:
                replaced[x.data_ptr()] = (pin, calls[0])
                x.copy_(torch.from_numpy(values))

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
