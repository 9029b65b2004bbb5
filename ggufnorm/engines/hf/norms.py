"""The norms of a torch module, as they are called.

They are found by their class, by its name, and those whose class is unknown by what they
compute. Epsilon and offset are not believed but measured: each norm is given rows from large to
tiny, and the formula that explains its answers is the one that it applies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.formula import Formula
from ggufnorm.core.model import NormKind, Skipped
from ggufnorm.core.observed import ObservedNorm, applied_formula, by_token
from ggufnorm.core.tolerances import MODULE_RESIDUAL
from ggufnorm.engines.hf.packages import require_torch
from ggufnorm.engines.pretrained import quiet
from ggufnorm.engines.row_file import RowFile

Array = NDArray[np.float32]

_EPSILON_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps", "layer_norm_epsilon")
_PROBE_SIZES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0)
"""RMS of the rows that a norm is given: whatever its epsilon is, some row feels it."""
_HUGE_EPSILON = 0.1
"""From which on rows of a mean square of 1 show no normalization: it may be a scale."""


@dataclass(frozen=True)
class _Seen:
    """A module's first call."""

    name: str
    module: Any
    x: Any
    y: Any


def watch_norms(
    model: Any, call: Callable[[], Any], n_tokens: int, file: RowFile | None = None
) -> tuple[Any, tuple[ObservedNorm, ...], tuple[Skipped, ...]]:
    """Call a model and see what every norm in it does, at its first call.

    Args:
        model: a ``torch.nn.Module`` in float32.
        call: runs it.
        n_tokens: length of the axis that holds the tokens; 0 for an image encoder.
        file: keeps the norms' rows; None for one of their own.

    Returns:
        What the call returned; the norms in the order of their calls; modules that are
        called norms and compute none that is known.
    """
    torch, _ = require_torch()
    watch = _Watch(n_tokens, file or RowFile())
    handles = [
        module.register_forward_hook(watch.hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if _may_be_norm(module)
    ]
    try:
        with quiet(), torch.inference_mode():
            output = call()
    finally:
        for handle in handles:
            handle.remove()
    return output, tuple(watch.norms), tuple(watch.skipped)


def _may_be_norm(module: Any) -> bool:
    if _is_named_norm(module):
        return not any(_is_named_norm(child) for child in module.children())
    # What torch brings itself is no norm but those that are named so.
    own = not type(module).__module__.startswith("torch.nn")
    leaf = next(module.children(), None) is None
    shapes = [p.dim() for p in module.parameters(recurse=False)]
    return own and leaf and len(shapes) <= 2 and all(d == 1 for d in shapes)


def _is_named_norm(module: Any) -> bool:
    return "norm" in type(module).__name__.lower()


class _Watch:
    """Looks at each norm when it is called, so that nothing is kept of what is none."""

    def __init__(self, n_tokens: int, file: RowFile) -> None:
        self.norms: list[ObservedNorm] = []
        self.skipped: list[Skipped] = []
        self._n_tokens, self._file = n_tokens, file
        self._called: set[str] = set()
        # What one module of a class was found to do, the next one likely does too.
        self._usual: dict[type, Formula] = {}
        self._others: set[type] = set()

    def hook(self, name: str) -> Any:
        """What is registered with a module."""

        def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x: Any = args[0] if args else next(iter(kwargs.values()), None)
            y = output[0] if isinstance(output, tuple) and output else output
            alike = all(hasattr(v, "is_floating_point") and v.is_floating_point() for v in (x, y))
            if name in self._called or not (alike and x.shape == y.shape and x.dim() >= 2):
                return
            self._called.add(name)
            if type(module) not in self._others:
                self._look(_Seen(name, module, x.detach(), y.detach()))

        return see

    def _look(self, s: _Seen) -> None:
        try:
            norm = _norm(s, self._n_tokens, self._usual)
            x, y = self._file.keep(norm.x), self._file.keep(norm.y)
            self.norms.append(replace(norm, x=x, y=y))
        except ValueError as error:
            if _is_named_norm(s.module):
                self.skipped.append(Skipped(s.name, str(error)))
            else:
                self._others.add(type(s.module))


def _norm(s: _Seen, n_tokens: int, usual: dict[type, Formula]) -> ObservedNorm:
    """What is to be said of a module's first call.

    Raises:
        ValueError: it computes no norm that is known.
    """
    weight, bias = (_parameter(s.module, name) for name in _own_names(s.module))
    channels = s.x.shape[-1]
    formula = _expected(s.module, has_bias=bias is not None)
    if type(s.module) in usual:
        formula = _like(formula, usual[type(s.module)])
    x, y = as_view(s.x), as_view(s.y)
    if formula.kind == "group":
        return _group_norm(s, formula, weight, bias)
    x, y = (by_token(v, n_tokens, channels) for v in (x, y))
    w, b = (None if v is None else _per_head(v, channels) for v in (weight, bias))
    probe = _probe(s, channels)
    fitted, _ = applied_formula(*(probe or (x, y)), w, b, formula)
    applied, residual = applied_formula(x, y, w, b, fitted)
    scales = not _is_named_norm(s.module) and applied.epsilon > _HUGE_EPSILON
    if residual > MODULE_RESIDUAL or scales:
        raise ValueError(f"{type(s.module).__name__} computes no norm that is known here")
    usual[type(s.module)] = applied
    weight_name, bias_name = _full_names(s)
    return ObservedNorm(
        name=s.name,
        formula=applied,
        epsilon_stated=_stated_epsilon(s.module),
        weight=w,
        bias=b,
        x=x,
        y=y,
        weight_name=weight_name,
        bias_name=bias_name,
    )


def _group_norm(
    s: _Seen, formula: Formula, weight: Array | None, bias: Array | None
) -> ObservedNorm:
    # One row is one sample, and a channel of torch's is a run of the row.
    x, y = (as_view(v).reshape(s.x.shape[0], 1, -1) for v in (s.x, s.y))
    run = x.shape[-1] // s.x.shape[1]
    w, b = (None if v is None else np.repeat(v, run) for v in (weight, bias))
    applied, _residual = applied_formula(x, y, w, b, formula)
    weight_name, bias_name = _full_names(s)
    return ObservedNorm(
        s.name, applied, _stated_epsilon(s.module), w, b, x, y, weight_name, bias_name
    )


def _expected(module: Any, *, has_bias: bool) -> Formula:
    kind, groups = _kind(module, has_bias)
    epsilon = _stated_epsilon(module)
    return Formula(kind, 1e-6 if epsilon is None else epsilon, groups)


def _kind(module: Any, has_bias: bool) -> tuple[NormKind, int | None]:
    torch, _ = require_torch()
    if isinstance(module, torch.nn.GroupNorm):
        return "group", int(module.num_groups)
    name = type(module).__name__.lower()
    if isinstance(module, torch.nn.LayerNorm) or "layernorm" in name:
        return "layer", None
    if "l2" in name:
        return "l2", None
    return ("layer" if has_bias and "rms" not in name else "rms"), None


def _probe(s: _Seen, channels: int) -> tuple[Array, Array] | None:
    """Rows from tiny to large and what the norm makes of them; None if it takes none."""
    torch, _ = require_torch()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((len(_PROBE_SIZES), channels)).astype(np.float32)
    x = rows * np.array(_PROBE_SIZES, np.float32)[:, None]
    try:
        # A row for every place at which the model calls it with one.
        y = s.module(torch.from_numpy(x).reshape(1, -1, channels))
        return x[:, None], as_array(y).reshape(len(x), 1, channels)
    except Exception:  # a norm that takes more than one argument, or another shape
        return None


def _own_names(module: Any) -> tuple[str, str]:
    """Names of a norm's weight and bias."""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    weight = next((n for n in names if n not in ("bias", "beta")), "weight")
    return weight, next((n for n in names if n in ("bias", "beta")), "bias")


def _parameter(module: Any, name: str) -> Array | None:
    value = getattr(module, name, None)
    return None if value is None else as_array(value)


def _full_names(s: _Seen) -> tuple[str | None, str | None]:
    weight, bias = (
        None if getattr(s.module, name, None) is None else f"{s.name}.{name}"
        for name in _own_names(s.module)
    )
    return weight, bias


def _stated_epsilon(module: Any) -> float | None:
    values = (getattr(module, name, None) for name in _EPSILON_NAMES)
    return next((float(v) for v in values if isinstance(v, (int, float))), None)


def _like(formula: Formula, usual: Formula) -> Formula:
    """The formula with what modules of its class were found to do besides."""
    return Formula(
        kind=usual.kind,
        epsilon=formula.epsilon,
        groups=formula.groups,
        divisor=usual.divisor,
        offset=usual.offset,
        weight=usual.weight,
        bias=usual.bias,
    )


def _per_head(v: Array, channels: int) -> Array:
    flat = v.reshape(-1)
    if flat.size % channels:
        raise ValueError(f"{flat.size} weights do not fit {channels} channels")
    return flat if flat.size == channels else flat.reshape(-1, channels)


def as_array(value: Any) -> Array:
    """The values of a tensor, as a copy."""
    return np.array(as_view(value), np.float32)


def as_view(value: Any) -> Array:
    """The values of a tensor that nobody changes any more; of float32 in the tensor's memory."""
    return np.asarray(value.detach().float().numpy(), np.float32)
