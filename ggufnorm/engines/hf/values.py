"""Every value that a stretch of a Transformers model computes. Imported where torch is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.modules import module as torch_modules
from torch.overrides import TorchFunctionMode

from ggufnorm.core.operations import Array, Operation
from ggufnorm.engines.hf.model import HFModel, Tokens
from ggufnorm.engines.pretrained import quiet

_VIEWS = frozenset({
    "__get__", "__getitem__", "chunk", "clone", "contiguous", "detach", "dropout", "expand",
    "flatten", "float", "permute", "reshape", "split", "squeeze", "swapaxes", "to", "transpose",
    "type", "type_as", "unbind", "unflatten", "unsqueeze", "view",
})  # fmt: skip
"""Functions of torch that compute nothing when a model is not trained."""
_UNINITIALISED = frozenset({"empty", "empty_like", "empty_strided", "new_empty"})
"""Functions whose result holds whatever lay in the memory."""

_WITH_INDICES = frozenset({"max", "min", "sort", "topk"})
"""Functions that return values and where they stood."""


def watch_values(
    model: HFModel,
    tokens: Tokens,
    start: str | None,
    end: str | None,
    part: Literal["decoder"] | None = None,
) -> list[Operation]:
    """Run token ids and keep what the functions of torch give between two modules.

    Args:
        model: to run.
        tokens: ids.
        start: name of the module at whose call it begins, with that module's input; None
            for the model's beginning.
        end: name of the module at whose call it ends; None for the model's end.
        part: of an encoder-decoder, to begin with in the place of ``start``.

    Returns:
        In the order of the calls, named by the module that is running and the function; at
        the ends the inputs of the two modules.
    """
    decoder = model.model.get_decoder() if model.is_encoder_decoder else None
    if part is not None and decoder is not None:
        start = next(name for name, module in model.model.named_modules() if module is decoder)
    watch = _Watch(model.model, recording=start is None)
    with ExitStack() as stack:
        stack.enter_context(watch.modules())
        if decoder is not None:
            seen = decoder.register_forward_pre_hook(watch.remember_encoder, with_kwargs=True)
            stack.callback(seen.remove)
        for name, switch in ((start, watch.begin), (end, watch.finish)):
            if name is not None:
                module = model.model.get_submodule(name)
                handle = module.register_forward_pre_hook(switch, with_kwargs=True)
                stack.callback(handle.remove)
        stack.enter_context(quiet())
        stack.enter_context(torch.inference_mode())
        stack.enter_context(watch)
        model.model(**model.inputs(tokens))
    return watch.operations


class _Watch(TorchFunctionMode):
    """Sees each call of a function of torch.

    Attributes:
        operations: that were kept.
    """

    def __init__(self, model: torch.nn.Module, *, recording: bool) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._recording = recording
        self._read: torch.Tensor | None = None
        self._names = {id(module): name for name, module in model.named_modules()}
        self._weights = {id(p): name for name, p in model.named_parameters()}
        self._running: list[str] = []
        # Which operation made a tensor; tensors are kept, or another would get one's id.
        self._made: dict[int, int] = {}
        self._alive: list[Any] = []

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Know which module is running."""

        def enter(module: torch.nn.Module, _args: Any) -> None:
            self._running.append(self._names.get(id(module), ""))

        def leave(_module: torch.nn.Module, _args: Any, _output: Any) -> None:
            self._running.pop()

        handles = [
            torch_modules.register_module_forward_pre_hook(enter),
            torch_modules.register_module_forward_hook(leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook that begins the recording, with what a module is given."""
        if not self.operations:
            self._recording = True
            if self._read is not None:
                self._keep("what the encoder gives", "input", (), self._read)
            self._keep_input(module, args, kwargs)

    def remember_encoder(
        self, _decoder: torch.nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """A hook that sees what a decoder is given of its encoder."""
        self._read = kwargs.get("encoder_hidden_states")

    def finish(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """A hook that ends the recording, with a module's input."""
        if self._recording:
            self._keep_input(module, args, kwargs)
            self._recording = False

    def _keep_input(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        if not x.is_floating_point():
            return
        inputs = tuple(self._origins([x]))
        self._keep(f"input of {self._names[id(module)]}", "input", inputs, x)

    def __torch_function__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._recording:
            self._see(getattr(func, "__name__", str(func)), args, kwargs or {}, out)
        return out

    def _see(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        inputs = tuple(dict.fromkeys(self._origins([*args, *kwargs.values()])))
        if name in _VIEWS:
            for part in out if isinstance(out, (tuple, list)) else (out,):
                if not isinstance(part, torch.Tensor):
                    continue
                if args and id(args[0]) in self._weights:
                    self._weights[id(part)] = self._weights[id(args[0])]
                    self._alive.append(part)
                elif inputs and self._is_part(part, args[0]):
                    self._keep(f"{self._module}: {name}", name, inputs[:1], part, computes=False)
                elif inputs:
                    self._remember(part, inputs[0])
        elif name == "__setitem__" and isinstance(args[0], torch.Tensor):
            self._see_written(args[0], inputs)
        elif name in _UNINITIALISED:
            return
        elif name in _WITH_INDICES and isinstance(out, tuple):
            self._keep(f"{self._module}: {name}", name, inputs, out[0])
        elif isinstance(out, torch.Tensor) and out.is_floating_point() and out.dim() > 1:
            module = self._module
            weight, bias, tensor = self._matrix(name, args, kwargs)
            self._keep(f"{module}: {name}", name, inputs, out, tensor, weight, bias)

    @property
    def _module(self) -> str:
        return self._running[-1] if self._running else ""

    @staticmethod
    def _is_part(part: torch.Tensor, whole: Any) -> bool:
        """Whether a view shows some channels of a value: a fused product is taken apart so."""
        if not (isinstance(whole, torch.Tensor) and part.is_floating_point() and part.dim() > 1):
            return False
        some = 1 < part.shape[-1] < whole.shape[-1]
        return bool(some and part.shape[:-1] == whole.shape[:-1])

    def _see_written(self, whole: Any, inputs: tuple[int, ...]) -> None:
        """A tensor that has been written into, as it is now."""
        if whole.is_floating_point() and whole.dim() > 1:
            module = self._module
            self._keep(f"{module}: __setitem__", "__setitem__", inputs, whole)

    def _origins(self, values: Sequence[Any]) -> Iterator[int]:
        for value in values:
            if isinstance(value, (tuple, list)):
                yield from self._origins(value)
            elif id(value) in self._made:
                yield self._made[id(value)]

    def _keep(
        self, name: str, op: str, inputs: tuple[int, ...], out: Any,
        tensor: str | None = None, weight: Array | None = None, bias: Array | None = None,
        *, computes: bool = True,
    ) -> None:  # fmt: skip
        value = np.array(out.detach().float().numpy(), np.float32)
        self._remember(out, len(self.operations))
        self.operations.append(
            Operation(
                name.removeprefix(": "),
                op,
                inputs,
                value,
                tensor,
                weight=weight,
                bias=bias,
                computes=computes,
            )
        )

    def _remember(self, tensor: torch.Tensor, index: int) -> None:
        self._made[id(tensor)] = index
        self._alive.append(tensor)

    def _matrix(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Array | None, Array | None, str | None]:
        """Weight as ``(out, in)``, bias and the weight's name, of a product with a matrix."""
        given = [*args, *kwargs.values()]
        ours = [v for v in given if id(v) in self._weights]
        matrix = next((v for v in ours if v.dim() >= 2), None)
        if matrix is None or name == "embedding":
            return None, None, None
        weight = matrix if name == "linear" else matrix.mT  # Conv1D of GPT-2 calls addmm
        bias = next((v.detach().numpy() for v in ours if v.dim() == 1), None)
        return weight.detach().numpy(), bias, self._weights[id(matrix)]
