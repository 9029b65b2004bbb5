"""A LoRA adapter in a GGUF file, beside what PEFT saved.

Facts of llama.cpp: ``llama_adapter_lora_init_impl`` in ``src/llama-adapter.cpp`` (what it refuses
and passes by), ``get_scale`` in ``src/llama-adapter.h`` (alpha by the rank of each pair; 1 where
alpha is 0 or missing), ``convert_lora_to_gguf.py`` (alpha as ``lora_alpha`` says, whatever else the
config asks for). Facts of PEFT: ``LoraLayer`` and ``LoraConfig`` in ``peft/tuners/lora``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.audit.source.orders import expected_orders, is_known
from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.hf import Source
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of

CONFIG = "adapter_config.json"
ALPHA = "adapter.lora.alpha"
_A, _B = ".lora_a", ".lora_b"
_PART = re.compile(r"\.lora_(embedding_)?(?P<part>[AB])(\.weight)?$")
_WRAPPER = "base_model.model."
_PREFIXES = 3
"""How many words, at most and one, a whole model puts before its language model's names."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Both factors of one update, ``scale · B · A``.

    Attributes:
        name: of the tensor that it updates.
        a: shape of A as ggml counts it, ``(in, rank)``; None if it is missing. Of the token
            embedding ``(rank, tokens)``.
        b: likewise ``(rank, out)``.
    """

    name: str
    a: tuple[int, ...] | None
    b: tuple[int, ...] | None

    @property
    def is_embedding(self) -> bool:
        """Whether it updates the token embedding, whose A is stored the other way round."""
        return self.name == "token_embd.weight"

    @property
    def rank(self) -> int | None:
        """As llama.cpp takes it: the columns of B."""
        return self.b[0] if self.b else None

    @property
    def fits(self) -> bool:
        """Whether both are there and of one rank."""
        if not self.a or not self.b or len(self.a) < 2 or len(self.b) < 2:
            return False
        return self.a[0 if self.is_embedding else 1] == self.b[0]

    @property
    def is_usable(self) -> bool:
        """Whether llama.cpp can apply it, and as what it is."""
        return self.fits and not self.is_exchanged

    @property
    def is_exchanged(self) -> bool:
        """Whether A is in the place of B: the short side is where the other's should be."""
        if not self.a or not self.b or self.is_embedding or len(self.a) < 2 or len(self.b) < 2:
            return False
        (inside, a_rank), (b_rank, outside) = self.a[:2], self.b[:2]
        return inside == outside < min(a_rank, b_rank)


def pairs(file: ModelFile) -> dict[str, Pair]:
    """The updates of an adapter, by the name of the tensor."""
    names = (n.removesuffix(end) for n in file.tensors for end in (_A, _B) if n.endswith(end))
    shapes = {name: tuple(info.shape) for name, info in file.tensors.items()}
    return {n: Pair(n, shapes.get(n + _A), shapes.get(n + _B)) for n in dict.fromkeys(names)}


def left_over(file: ModelFile) -> list[str]:
    """Tensors that are no factor of an update."""
    return [name for name in file.tensors if not name.endswith((_A, _B))]


@dataclass(frozen=True)
class Module:
    """An update as PEFT saved it.

    Attributes:
        name: of the module in the base model.
        a: name of the tensor of A; None if it is missing.
        b: of B.
        rank: of the pair.
    """

    name: str
    a: str | None
    b: str | None
    rank: int


class Peft:
    """A folder that PEFT saved.

    Args:
        source: the folder, open.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.config: Mapping[str, Any] = source.read_json(CONFIG) or {}
        self.modules = {m.name: m for m in self._modules()}

    def _modules(self) -> Iterable[Module]:
        parts: dict[str, dict[str, str]] = {}
        for name in self._source.tensors:
            if found := _PART.search(name):
                module = name[: found.start()].removeprefix(_WRAPPER)
                parts.setdefault(module, {})[found["part"]] = name
        for module, named in parts.items():
            a = named.get("A")
            rank = self._source.tensors[a].shape[0] if a else 0
            yield Module(module, a, named.get("B"), rank)

    @property
    def others(self) -> dict[str, str]:
        """Tensors that belong to no update, and what they are."""
        return {n: _called(n) for n in self._source.tensors if not _PART.search(n)}

    def scale(self, module: Module) -> float | None:
        """What PEFT multiplies ``B · A`` by; None where the config does not tell."""
        alpha = _of_pattern(self.config.get("alpha_pattern"), module.name)
        alpha = self.config.get("lora_alpha") if alpha is None else alpha
        if not isinstance(alpha, (int, float)) or not module.rank:
            return None
        return float(alpha) / self._divisor(module.rank)

    def _divisor(self, rank: int) -> float:
        return math.sqrt(rank) if self.is_rank_stabilized else float(rank)

    @property
    def is_rank_stabilized(self) -> bool:
        """Whether the scale is alpha by the root of the rank (rsLoRA)."""
        return self.config.get("use_rslora") is True

    def values(self, module: Module) -> tuple[Matrix, Matrix] | None:
        """A ``(rank, in)`` and B ``(out, rank)``; None where one is missing or no matrix."""
        if module.a is None or module.b is None:
            return None
        a, b = (np.asarray(self._source.read(n), np.float64) for n in (module.a, module.b))
        return (a, b) if a.ndim == b.ndim == 2 else None


def _called(name: str) -> str:
    if "magnitude" in name:
        return "DoRA's magnitudes"
    if name.endswith(".bias"):
        return "a bias"
    if "trainable_tokens" in name:
        return "rows of trained tokens"
    return "a module that was trained whole"


def _of_pattern(patterns: object, module: str) -> float | None:
    """The number that a pattern gives a module (``get_pattern_key`` of PEFT)."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        try:
            fits = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error:
            continue
        if fits and isinstance(value, (int, float)):
            return float(value)
    return None


def targets(file: ModelFile, names: Iterable[str]) -> dict[str, str]:
    """The tensor of the base model's GGUF file that each module's weight becomes.

    As many words are taken off the front of all names as lets the most modules be found;
    one that gguf-py does not know is left out.
    """
    names = tuple(names)
    arch = next((a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == file.architecture), None)
    if arch is None:
        return {}
    layers = [int(n) for name in names for n in re.findall(r"\.(\d+)\.", name)]
    known = gguf.get_tensor_name_map(arch, 1 + max(layers, default=0))

    def found(n_words: int) -> dict[str, str]:
        full = {name: known.get_name(name.split(".", n_words)[-1]) for name in names}
        return {name: f"{target}.weight" for name, target in full.items() if target}

    return max((found(n) for n in range(_PREFIXES)), key=len)


def values(file: ModelFile, pair: Pair) -> tuple[Matrix, Matrix] | None:
    """A ``(rank, in)`` and B ``(out, rank)`` of a file; None where they cannot be had."""
    if not pair.is_usable:
        return None
    try:
        a, b = (np.asarray(read_tensor(file, pair.name + e), np.float64) for e in (_A, _B))
    except InputError:
        return None
    return (a.T if pair.is_embedding else a, b) if a.ndim == b.ndim == 2 else None


@dataclass(frozen=True)
class Likeness:
    """What a file's factor is to the source's.

    Attributes:
        factor: all values are those of the source times this; None where no factor explains them.
        in_order: whether inputs and outputs stand as the converter puts them; None where it is
            not known how it does.
    """

    factor: float | None
    in_order: bool | None = None


def likeness(architecture: str, name: str, part: str, ours: Matrix, theirs: Matrix) -> Likeness:
    """A factor beside the source's, whatever the order of its inputs or outputs.

    Gram matrices over the rank do not depend on that order: ``A·Aᵀ`` and ``Bᵀ·B``.

    Args:
        architecture: of the base model.
        name: of the tensor that is updated.
        part: ``A`` or ``B``.
        ours: the file's factor.
        theirs: the source's.
    """
    if ours.shape != theirs.shape:
        return Likeness(None)
    grams = [m @ m.T if part == "A" else m.T @ m for m in (ours, theirs)]
    factor = _factor(*grams)
    if factor is None:
        return Likeness(None)
    orders = [o * factor for o in _orders(architecture, name, part, theirs)]
    in_order = [_near(ours, sign * o) for sign in (1, -1) for o in orders]
    if not any(in_order):
        return Likeness(factor, False if orders else None)
    return Likeness(factor if any(in_order[: len(orders)]) else -factor, True)


def _orders(architecture: str, name: str, part: str, theirs: Matrix) -> list[Matrix]:
    """The source's factor in each order that the converter may give it; none if unknown."""
    role = name.removesuffix(".weight").split(".")[-1]
    steps = {s for order in expected_orders(architecture, role) for s in order}
    if steps == {_INTERLEAVED}:
        return [theirs] if part == "A" else [*_interleaved(theirs)]
    is_known_role = is_known(architecture, role, (_INTERLEAVED,))
    # Conv1D's weights are transposed, and PEFT's factors of them are not.
    return [theirs] if is_known_role and steps <= {"transposed"} else []


_INTERLEAVED = "heads interleaved"


def _interleaved(rows: Matrix) -> Iterable[Matrix]:
    """With each number of heads that the rows allow: no config says which."""
    for heads in range(1, len(rows) // 4 + 1):
        if len(rows) % (2 * heads) == 0:
            yield rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


_SAME = 0.02
"""Largest relative difference that a type of 8 bits explains."""


def _near(a: Matrix, b: Matrix) -> bool:
    return bool(np.linalg.norm(a - b) <= _SAME * np.linalg.norm(b))


def _factor(ours: Matrix, theirs: Matrix) -> float | None:
    """The factor of the values behind two Gram matrices; None if none explains them."""
    size = float(np.vdot(theirs, theirs))
    if not size:
        return None if np.any(ours) else 1.0
    square = float(np.vdot(ours, theirs)) / size
    if square <= 0 or not _near(ours, square * theirs):
        return None
    factor = math.sqrt(square)
    return 1.0 if abs(factor - 1) < _ROUNDED else factor


_ROUNDED = 2e-3
"""What rounding to 8 bits does to the size of a factor."""


def layer(pair: Pair) -> int | None:
    """Of the tensor that it updates."""
    return layer_of(pair.name)
