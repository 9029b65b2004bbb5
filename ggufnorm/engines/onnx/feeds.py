"""What two ONNX files are fed in a drift run: the same values, each in its own type."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.products import graph_inputs, is_constant
from ggufnorm.engines.onnx.session import input_role
from ggufnorm.errors import InputError
from ggufnorm.formats.files import open_regular
from ggufnorm.formats.npy import read_numbers

Values = Mapping[str, NDArray[Any]]
Tokens = NDArray[np.int32]

SIDE, SAMPLES = 64, 16000
"""Lengths of open axes: of pictures, a multiple of common strides; of a waveform, one second."""
_MOST_BYTES = 1 << 31
_TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
"""NumPy's types by the number of ONNX's."""


@dataclass(frozen=True)
class Wanted:
    """An input of a graph.

    Attributes:
        name: of it.
        kind: number of its type.
        shape: with None for open axes.
        role: what it takes.
    """

    name: str
    kind: int
    shape: tuple[int | None, ...]
    role: str


def wanted_inputs(model: OnnxModel) -> list[Wanted]:
    """The inputs of a graph.

    Raises:
        InputError: one is of a type that is not known here.
    """
    found = []
    for i in graph_inputs(model):
        tensor = i.type.tensor_type
        if tensor.elem_type not in _TYPES:
            kind = model.type_name(tensor.elem_type)
            raise InputError(f"{model.path}: its input {i.name} is {kind}")
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        word = "int" if tensor.elem_type in (6, 7, 9) else "float"
        found.append(Wanted(i.name, tensor.elem_type, shape, input_role(i.name, word)))
    return found


def takes_ids(model: OnnxModel) -> bool:
    """Whether one of the inputs is token ids."""
    return any(w.role == "ids" for w in wanted_inputs(model))


def n_tokens(model: OnnxModel, default: int) -> int:
    """Tokens that a model is run on: its own number if that is fixed."""
    shapes = [w.shape for w in wanted_inputs(model) if w.role == "ids"]
    fixed = [shape[1] for shape in shapes if len(shape) > 1 and shape[1]]
    return fixed[0] or default if fixed else default


def vocabulary_size(model: OnnxModel) -> int:
    """Rows of the matrix that the ids are looked up in; of several tables the largest.

    Raises:
        InputError: the graph does not show which that is.
    """
    at = {"Gather": (0, 1), "EmbedLayerNormalization": (2, 0)}
    ids = {w.name for w in wanted_inputs(model) if w.role == "ids"}
    rows: dict[bool, list[int]] = {True: [], False: []}
    for node in model.nodes:
        table, index = (node.input[i] for i in at[node.op_type]) if node.op_type in at else ("", "")
        source = model.source(table) if table and is_constant(model, table) else None
        if source is not None and len(model.shape(source)) == 2:
            rows[_looked_up(model, index) in ids].append(model.shape(source)[0])
    found = rows[True] or rows[False]
    if not found:
        raise InputError(f"{model.path}: its vocabulary is not to be seen in the graph")
    return max(found)


def _looked_up(model: OnnxModel, index: str) -> str:
    """The value that indices are, without casts and reshapes."""
    node = model.producers.get(index)
    while node is not None and node.op_type in ("Cast", "Identity", "Reshape", "Flatten"):
        index = str(node.input[0])
        node = model.producers.get(index)
    return index


def made_feeds(model: OnnxModel, tokens: Tokens, seed: int) -> dict[str, NDArray[Any]]:
    """Ids with what goes with them, and normal values for what takes none.

    Args:
        model: the reference.
        tokens: ids; empty for a model that takes none.
        seed: of the normal values.
    """
    rng = np.random.default_rng(seed)
    return {w.name: _made(w, tokens, rng) for w in wanted_inputs(model)}


def _made(w: Wanted, tokens: Tokens, rng: np.random.Generator) -> NDArray[Any]:
    n, dtype = len(tokens), _TYPES[w.kind]
    by_token: dict[str, NDArray[Any]] = {
        "ids": tokens,
        "ones": np.ones(n),
        "zeros": np.zeros(n),
        "positions": np.arange(n),
    }
    if w.role in by_token and n:
        return np.asarray(by_token[w.role], dtype)[None]
    batch, *rest = w.shape or (1,)
    side = 0 if w.role == "past" else SAMPLES if len(rest) == 1 else SIDE
    shape = [batch or 1, *(side if size is None else size for size in rest)]
    if w.role == "ones":
        return np.ones(shape, dtype)
    return rng.standard_normal(shape).astype(dtype)


def read_feeds(model: OnnxModel, path: str) -> dict[str, NDArray[Any]]:
    """Inputs from a file: ``.npz`` with an array for each, or ``.npy`` for a single one.

    Raises:
        InputError: it cannot be read, or lacks an input.
    """
    wanted = wanted_inputs(model)
    if not path.endswith(".npz"):
        if len(wanted) != 1:
            names = ", ".join(w.name for w in wanted)
            raise InputError(f"{path}: the model takes {names}: give an .npz with these arrays")
        return {wanted[0].name: read_numbers(path).astype(_TYPES[wanted[0].kind])}
    arrays = _arrays(path)
    missing = [w.name for w in wanted if w.name not in arrays]
    if missing:
        raise InputError(f"{path}: it has no array {missing[0]}, which the model takes")
    return {w.name: arrays[w.name].astype(_TYPES[w.kind]) for w in wanted}


def _arrays(path: str) -> dict[str, NDArray[Any]]:
    try:
        with open_regular(path, _MOST_BYTES) as file, zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise InputError(f"{path}: it holds more than {_MOST_BYTES >> 30} GiB")
        with np.load(path, allow_pickle=False) as found:
            return {name: np.asarray(found[name]) for name in found.files}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{path} is no .npz file: {' '.join(str(error).split())}") from None


def feeds_of(model: OnnxModel, names: Mapping[str, str], feeds: Values) -> dict[str, NDArray[Any]]:
    """The reference's inputs under the names and in the types of another graph.

    Args:
        model: the other graph.
        names: of its inputs, to the reference's.
        feeds: of the reference.

    Raises:
        InputError: it takes something that the reference does not.
    """
    found: dict[str, NDArray[Any]] = {}
    for w in wanted_inputs(model):
        if names.get(w.name) not in feeds:
            raise InputError(f"{model.path}: the reference has no input {w.name}")
        found[w.name] = feeds[names[w.name]].astype(_TYPES[w.kind])
    return found
