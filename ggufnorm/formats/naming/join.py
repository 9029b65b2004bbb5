"""Which name of a checkpoint is which name of a GGUF or an ONNX file.

Between Transformers and GGUF gguf-py's ``TensorNameMap`` decides
(:func:`ggufnorm.formats.conversion.origins`, which also knows what becomes of the values).
Exporters of ONNX keep the names of weights behind some prefix: there one name must end with the
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ggufnorm.formats.conversion import origins
from ggufnorm.formats.model_file import ModelFile

_WRAPPERS = 3
"""How many words, at most and one, an exporter's own modules put before a checkpoint's names."""


def sources_of_tensors(file: ModelFile, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The names of a checkpoint that each norm's tensor of a file is made of.

    As many words are taken off the front of all names as lets the most tensors be found.

    Args:
        file: the GGUF file.
        names: of the checkpoint's tensors, perhaps behind an exporter's own.
    """
    names = tuple(names)
    return max((_without(n, names, file) for n in range(_WRAPPERS)), key=len)


def _without(n_words: int, names: Sequence[str], file: ModelFile) -> dict[str, tuple[str, ...]]:
    full = {name.split(".", n_words)[-1]: name for name in names}
    known = origins(file, full) or {}
    return {tensor: tuple(full[s] for s in o.sources) for tensor, o in known.items()}


Named = tuple[str | None, object]
"""The name of a weight, None where it has none, and what its owner looks like."""


def match_names(source: Sequence[Named], engine: Sequence[Named]) -> dict[int, int]:
    """Which of the engine's is which of the source's, by the ends of the names.

    What is left on both sides is matched in order, where it looks the same.

    Args:
        source: the source's norms or layers.
        engine: the engine's.

    Returns:
        Index in ``engine`` to index in ``source``.
    """
    left, found = dict(enumerate(source)), dict[int, int]()
    # The longest names first: "norm.weight" ends "layers.0.norm.weight" too.
    hits = (
        (_in_common(s[0], e[0]), i, k) for i, e in enumerate(engine) for k, s in enumerate(source)
    )
    for n, i, k in sorted(hits, key=lambda hit: -hit[0]):
        if n and i not in found and k in left:
            found[i] = k
            del left[k]
    rest = [i for i in range(len(engine)) if i not in found]
    if [engine[i][1] for i in rest] == [look for _name, look in left.values()]:
        found |= dict(zip(rest, left, strict=True))
    return found


def _in_common(a: str | None, b: str | None) -> int:
    """Length of the shorter of two names of weights, if the other one ends with it."""
    if a is None or b is None:
        return 0
    return min(len(a), len(b)) if f".{b}".endswith(f".{a}") or f".{a}".endswith(f".{b}") else 0
