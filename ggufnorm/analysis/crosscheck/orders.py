"""A file's matrices in the order of the source's rows, where llama.cpp's converter changes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ggufnorm.analysis.audit.source.arrange import NoSuchStepError, Site, Steps, apply
from ggufnorm.analysis.audit.source.network import Network, text_config
from ggufnorm.analysis.audit.source.orders import expected_orders
from ggufnorm.analysis.audit.source.plan import role_of
from ggufnorm.core.matrices import distance
from ggufnorm.core.observed import Array
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming.names import layer_of

_SHOWN = frozenset(
    (
        "heads interleaved", "transposed", "transposed within each expert",
        "keys of each head, transposed",
    )
)  # fmt: skip
"""Steps that what runs shows: llama.cpp turns neighbours, and Transformers' matrices are held as it
multiplies by them."""


def in_source_order(
    file: ModelFile,
    config: Mapping[str, Any],
    weights: Mapping[str, Array],
    theirs: Mapping[str, Array],
    others: Sequence[Array],
) -> dict[str, Array]:
    """Undo the order that the converter gives a matrix: of several the one nearest to its source.

    Args:
        file: that the matrices were read from.
        config: the source's ``config.json``.
        weights: the file's, by name.
        theirs: the source's, by the file's names.
        others: of the source, of which nobody knows where a file has them.
    """
    network = Network(text_config(config), file, file.architecture)
    found = dict(weights)
    for name, ours in weights.items():
        site = Site(role_of(name), layer_of(name), ours.shape, network)
        known = [theirs[name]] if name in theirs else others
        wanted = [w for w in known if w.shape == ours.shape]
        orders = list(_orders(ours, site))
        found[name] = min(orders, key=lambda order: _nearest(order, wanted))
    return found


def _nearest(ours: Array, wanted: Sequence[Array]) -> float:
    return min((distance(ours, w) for w in wanted), default=0.0)


def _orders(ours: Array, site: Site) -> Iterator[Array]:
    """As the source had it if the converter gave it each of the orders that it may give."""
    for steps in expected_orders(site.network.architecture, site.role):
        undone = None if _SHOWN.intersection(steps) else _undone(ours, steps, site)
        yield ours if undone is None else undone


def _undone(ours: Array, steps: Steps, site: Site) -> Array | None:
    """None where the steps do not keep a tensor's shape, and each value once."""
    numbers = np.arange(ours.size).reshape(ours.shape)
    try:
        moved = apply(steps, numbers, site)
    except NoSuchStepError:
        return None
    if moved.shape != ours.shape or not np.array_equal(np.sort(moved, axis=None), numbers.ravel()):
        return None
    undone = np.empty(ours.size, ours.dtype)
    undone[moved.ravel()] = ours.ravel()
    return undone.reshape(ours.shape)
