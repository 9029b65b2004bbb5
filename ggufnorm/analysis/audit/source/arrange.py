"""What converters do to the order of a tensor's values: reshaping, cutting, regrouping.

Each step takes the source's array and gives one whose rows, all but the last dimension
counted through, are the file's; where NumPy can it is a view. No step looks at values, so
that any dtype, BF16 as ``uint16`` too, is treated alike. The steps are those of
``conversion/*.py`` in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.audit.source.network import Network, is_number

Stored = NDArray[Any]
Steps = tuple[str, ...]
"""Names of steps, in the order in which they are taken; none leaves a tensor as it is."""


@dataclass(frozen=True)
class Site:
    """The tensor that is to be made.

    Attributes:
        role: its name without block and suffix: ``attn_q``.
        layer: its block.
        shape: in NumPy's order.
        network: its dimensions.
    """

    role: str
    layer: int | None
    shape: tuple[int, ...]
    network: Network

    @property
    def heads(self) -> int:
        """The heads that its rows belong to: of keys and values where it is one of these."""
        if self.role.startswith(("attn_k", "attn_v")):
            return self.network.kv_heads(self.layer)
        return self.network.heads(self.layer)


class NoSuchStepError(Exception):
    """A step does not fit the array, or the network."""


Step = Callable[[Stored, Site], Stored]


def apply(steps: Steps, array: Stored, site: Site) -> Stored:
    """An array after some steps.

    Raises:
        NoSuchStepError: one of them does not fit.
    """
    try:
        for name in steps:
            array = STEPS[name](array, site)
    except (ValueError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise NoSuchStepError(str(error)) from None
    return array


def _need(condition: bool) -> None:
    if not condition:
        raise NoSuchStepError


def _interleave(w: Stored, site: Site) -> Stored:
    """Each head's halves interleaved (``permute`` of conversion/llama.py)."""
    heads, rest = site.heads, w.shape[1:]
    _need(heads > 0 and w.ndim <= 2 and w.shape[0] % (2 * heads) == 0)
    return w.reshape(heads, 2, -1, *rest).swapaxes(1, 2).reshape(w.shape)


def _deinterleave(w: Stored, site: Site) -> Stored:
    """The inverse of :func:`_interleave`."""
    heads, rest = site.heads, w.shape[1:]
    _need(heads > 0 and w.ndim <= 2 and w.shape[0] % (2 * heads) == 0)
    return w.reshape(heads, -1, 2, *rest).swapaxes(1, 2).reshape(w.shape)


def _rotary_interleave(w: Stored, site: Site) -> Stored:
    """The same, of the rotated part of each head alone (conversion/glm.py)."""
    heads, rest = site.heads, w.shape[1:]
    _need(heads > 0 and w.shape[0] % heads == 0)
    size = w.shape[0] // heads
    n = int(size * _partial(site.network))
    _need(0 < n <= size and n % 2 == 0)
    each = w.reshape(heads, size, *rest)
    return np.concatenate([each[:, :n:2], each[:, 1:n:2], each[:, n:]], axis=1).reshape(w.shape)


def _partial(network: Network) -> float:
    rope = network.config.get("rope_parameters") or network.config.get("rope_scaling") or {}
    found = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
    found = network.config.get("partial_rotary_factor", found)
    return float(found) if is_number(found) else 1.0


def _transpose(w: Stored, _site: Site) -> Stored:
    _need(w.ndim >= 2)
    return w.swapaxes(-1, -2)


def _qkv_by_head(w: Stored, site: Site) -> Stored:
    """``[q, k, v]`` of each head to all q, all k, all v (conversion/gptneox.py, bloom.py)."""
    heads, rest = site.network.heads(site.layer), w.shape[1:]
    _need(heads > 0 and w.shape[0] % (3 * heads) == 0)
    return w.reshape(heads, 3, -1, *rest).swapaxes(0, 1).reshape(w.shape)


def _qkv_by_group(w: Stored, site: Site) -> Stored:
    """Some q, then k and v, of each K head to all q, all k, all v (conversion/falcon.py)."""
    heads, kv = site.network.heads(site.layer), site.network.kv_heads(site.layer)
    _need(heads > 0 and kv > 0 and heads % kv == 0)
    per = heads // kv
    groups = w.reshape(kv, per + 2, -1, *w.shape[1:])
    parts = (groups[:, :per], groups[:, per], groups[:, per + 1])
    return np.concatenate([p.reshape(-1, *w.shape[1:]) for p in parts])


def _fused(part: int) -> Step:
    """All q, all k or all v of rows that hold the three one after another."""

    def cut(w: Stored, site: Site) -> Stored:
        heads, kv = site.network.heads(site.layer), site.network.kv_heads(site.layer)
        _need(heads > 0 and w.shape[0] % (heads + 2 * kv) == 0)
        size = w.shape[0] // (heads + 2 * kv)
        begin = (0, heads * size, (heads + kv) * size)[part]
        return w[begin : begin + (heads, kv, kv)[part] * size]

    return cut


def _grouped(part: int) -> Step:
    """The same of rows that hold them K head by K head (conversion/internlm.py)."""

    def cut(w: Stored, site: Site) -> Stored:
        heads, kv = site.network.heads(site.layer), site.network.kv_heads(site.layer)
        _need(heads > 0 and kv > 0 and heads % kv == 0)
        per = heads // kv
        groups = w.reshape(kv, per + 2, -1, *w.shape[1:])
        picked = (groups[:, :per], groups[:, per], groups[:, per + 1])[part]
        return picked.reshape(-1, *w.shape[1:])

    return cut


def _half(part: int, axis: int) -> Step:
    return _nth(part, 2, axis)


def _nth(part: int, of: int, axis: int) -> Step:
    def cut(w: Stored, _site: Site) -> Stored:
        _need(w.ndim >= -axis and w.shape[axis] % of == 0)
        return np.split(w, of, axis)[part]

    return cut


def _alternate(part: int, axis: int) -> Step:
    """Every other row or column (conversion/gpt_oss.py)."""

    def cut(w: Stored, _site: Site) -> Stored:
        _need(w.ndim >= -axis and w.shape[axis] % 2 == 0)
        return w[..., part::2] if axis == -1 else w[..., part::2, :]

    return cut


def _mla(part: int) -> Step:
    """Keys, transposed, or values of each head's latent projection (conversion/deepseek.py)."""

    def cut(w: Stored, site: Site) -> Stored:
        nope, value = (site.network.number(k) for k in ("qk_nope_head_dim", "v_head_dim"))
        _need(nope > 0 and value > 0 and w.ndim == 2)
        each = w.reshape(-1, nope + value, w.shape[-1])
        return each[:, nope:] if part else each[:, :nope].swapaxes(1, 2)

    return cut


def _qkvz(gate: bool) -> Step:
    """``[q, k, v, z]`` of each K head to all q, k and v, or to all z (conversion/qwen.py)."""

    def cut(w: Stored, site: Site) -> Stored:
        k_heads, v_heads, k_size, v_size = _linear(site.network)
        each = w.reshape(k_heads, -1, *w.shape[1:])
        values = v_heads // k_heads * v_size
        edges = (k_size, 2 * k_size, 2 * k_size + values)
        parts = np.split(each, edges, axis=1)
        chosen = parts[3:] if gate else parts[:3]
        return np.concatenate([p.reshape(-1, *w.shape[1:]) for p in chosen])

    return cut


def _linear(network: Network) -> tuple[int, int, int, int]:
    """Heads and sizes of a linear attention."""
    names = (
        "linear_num_key_heads", "linear_num_value_heads",
        "linear_key_head_dim", "linear_value_head_dim",
    )  # fmt: skip
    k, v, k_size, v_size = (network.number(name) for name in names)
    _need(min(k, v, k_size, v_size) > 0)
    return k, v, k_size, v_size


def _tile(w: Stored, axis: int, k_heads: int, per: int) -> Stored:
    """V heads from grouped by K head to tiled (``_reorder_v_heads`` of conversion/qwen.py)."""
    shape = w.shape
    axis %= w.ndim
    apart = w.reshape(*shape[:axis], k_heads, per, -1, *shape[axis + 1 :])
    return apart.swapaxes(axis, axis + 1).reshape(shape)


def _tiled_rows(w: Stored, site: Site) -> Stored:
    k, v, *_ = _linear(site.network)
    return _tile(w, 0, k, v // k)


def _tiled_columns(w: Stored, site: Site) -> Stored:
    k, v, *_ = _linear(site.network)
    _need(w.ndim == 2)
    return _tile(w, 1, k, v // k)


def _tiled_values(w: Stored, site: Site) -> Stored:
    """Of rows of q, k and v, the last ones alone."""
    k, v, k_size, _ = _linear(site.network)
    begin = 2 * k * k_size
    _need(begin < w.shape[0])
    return np.concatenate([w[:begin], _tile(w[begin:], 0, k, v // k)])


def _first_rows(w: Stored, site: Site) -> Stored:
    """Without the rows of a padded vocabulary, or of unused positions."""
    n = site.shape[0]
    _need(len(site.shape) == w.ndim and w.shape[1:] == site.shape[1:] and n < w.shape[0])
    return w[:n]


def _last_rows(w: Stored, site: Site) -> Stored:
    """Without RoBERTa's rows for padding (conversion/bert.py)."""
    n = site.shape[0]
    _need(len(site.shape) == w.ndim and w.shape[1:] == site.shape[1:] and n < w.shape[0])
    return w[w.shape[0] - n :]


def _padded_rows(w: Stored, site: Site) -> Stored:
    """With rows of zeros for a vocabulary that is larger than the embedding."""
    n = site.shape[0] - w.shape[0]
    _need(w.ndim == 2 and w.shape[1:] == site.shape[1:] and n > 0)
    return np.concatenate([w, np.zeros((n, *w.shape[1:]), w.dtype)])


def _by_expert_transposed(w: Stored, site: Site) -> Stored:
    """Rows of all experts, each one's block transposed (conversion/dbrx.py)."""
    experts = site.shape[0]
    _need(len(site.shape) == 3 and w.ndim == 2 and w.shape[0] % experts == 0)
    return w.reshape(experts, -1, w.shape[1]).swapaxes(1, 2)


def _bytes_of_block(w: Stored, _site: Site) -> Stored:
    """A matrix of one column less, dimensions in another order (rwkv: ``permute(0, 2, 1)``)."""
    _need(w.ndim == 3)
    return w.transpose(0, 2, 1)


def _moment(i: int) -> Step:
    """One of two moments of patches in time (conversion/qwenvl.py: ``data_torch[:, :, 0]``)."""

    def cut(w: Stored, _site: Site) -> Stored:
        _need(w.ndim == 5 and w.shape[2] == 2)
        return w[:, :, i]

    return cut


def _patches(w: Stored, site: Site) -> Stored:
    """Patches that were rows of a matrix, with a dimension for colours and two for pixels."""
    _need(w.ndim == 2 and len(site.shape) == 4 and w.size == np.prod(site.shape))
    return w.reshape(site.shape)


def _plamo_q(w: Stored, _site: Site) -> Stored:
    """conversion/plamo.py, ``shuffle_attn_q_weight``."""
    _need(w.shape == (5120, 5120))
    return w.reshape(8, 5, 128, 5120).transpose(1, 0, 2, 3).reshape(5120, 5120)


def _plamo_output(w: Stored, _site: Site) -> Stored:
    """conversion/plamo.py, ``shuffle_attn_output_weight``."""
    _need(w.shape == (5120, 5120))
    return w.reshape(5120, 8, 5, 128).transpose(0, 2, 1, 3).reshape(5120, 5120)


STEPS: dict[str, Step] = {
    "heads interleaved": _interleave,
    "heads deinterleaved": _deinterleave,
    "rotary part deinterleaved": _rotary_interleave,
    "transposed": _transpose,
    "q, k, v regrouped from each head": _qkv_by_head,
    "q, k, v regrouped from each K head": _qkv_by_group,
    "q rows": _fused(0),
    "k rows": _fused(1),
    "v rows": _fused(2),
    "q of each K head": _grouped(0),
    "k of each K head": _grouped(1),
    "v of each K head": _grouped(2),
    "first half of the rows": _half(0, -2),
    "second half of the rows": _half(1, -2),
    # Gate, Q, K and V in one (conversion/hrm_text.py): the others are the first and last rows.
    "second quarter of the rows": _nth(1, 4, -2),
    "third quarter of the rows": _nth(2, 4, -2),
    "first half of the columns": _half(0, -1),
    "second half of the columns": _half(1, -1),
    "even rows": _alternate(0, -2),
    "odd rows": _alternate(1, -2),
    "even columns": _alternate(0, -1),
    "odd columns": _alternate(1, -1),
    "keys of each head, transposed": _mla(0),
    "values of each head": _mla(1),
    "q, k, v of each K head": _qkvz(gate=False),
    "z of each K head": _qkvz(gate=True),
    "V heads tiled": _tiled_rows,
    "V heads tiled in the columns": _tiled_columns,
    "V heads tiled behind q and k": _tiled_values,
    "first rows": _first_rows,
    "last rows": _last_rows,
    "padded with zeros": _padded_rows,
    "transposed within each expert": _by_expert_transposed,
    "last dimensions exchanged": _bytes_of_block,
    "first of two moments": _moment(0),
    "second of two moments": _moment(1),
    "as patches": _patches,
    "PLaMo's Q heads": _plamo_q,
    "PLaMo's output heads": _plamo_output,
}
"""What may be done to a tensor, by its name in reports."""

WHOLE_ROWS = frozenset(
    (
        "heads interleaved", "heads deinterleaved", "rotary part deinterleaved",
        "q, k, v regrouped from each head", "q, k, v regrouped from each K head",
        "q rows", "k rows", "v rows", "q of each K head", "k of each K head", "v of each K head",
        "first half of the rows", "second half of the rows", "second quarter of the rows",
        "third quarter of the rows", "even rows", "odd rows",
        "values of each head", "q, k, v of each K head", "z of each K head", "V heads tiled",
        "V heads tiled behind q and k", "first rows", "last rows", "padded with zeros",
    )
)  # fmt: skip
"""Steps that move or choose whole rows, whatever their length."""

EACH_ITEM = frozenset(
    (
        "transposed", "first half of the rows", "second half of the rows",
        "first half of the columns", "second half of the columns",
        "even rows", "odd rows", "even columns", "odd columns",
    )
)  # fmt: skip
"""Steps that do to a stack of matrices what they do to each."""

WHOLE: tuple[Steps, ...] = (
    (),
    ("transposed",),
    ("heads interleaved",),
    ("heads deinterleaved",),
    ("q, k, v regrouped from each head",),
    ("q, k, v regrouped from each K head",),
    ("rotary part deinterleaved",),
    ("V heads tiled",),
    ("V heads tiled in the columns",),
    ("V heads tiled behind q and k",),
    ("transposed within each expert",),
    ("PLaMo's Q heads",),
    ("PLaMo's output heads",),
)
"""Orders that keep every value."""

PARTS: tuple[Steps, ...] = tuple(
    (cut, *then)
    for cut in (
        "first half of the rows", "second half of the rows", "second quarter of the rows",
        "third quarter of the rows", "q rows", "k rows", "v rows",
        "first rows", "last rows", "padded with zeros", "first half of the columns",
        "second half of the columns", "even rows", "odd rows", "even columns", "odd columns",
        "q of each K head", "k of each K head", "v of each K head",
        "keys of each head, transposed", "values of each head", "q, k, v of each K head",
        "z of each K head", "first of two moments", "second of two moments",
    )
    for then in ((), ("transposed",), ("heads interleaved",), ("heads deinterleaved",))
)  # fmt: skip
"""Orders of a part of the source's values."""


def words(steps: Steps) -> str:
    """Steps for a person."""
    return ", ".join(steps) or "as it is"
