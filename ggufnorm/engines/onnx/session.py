"""ONNX Runtime as an engine: what goes into each norm and what comes out become outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.formula import Formula
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ObservedNorm, ObservedRun, by_token
from ggufnorm.core.rounding import MATRIX_ROUNDING
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.norms import (
    OnnxNorm,
    find_layer,
    find_norms,
    plain_name,
    site_name,
    takes_own_statistics,
)
from ggufnorm.errors import EngineError, EngineMissingError, InputError

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]

_SIDE = 32
"""Length of an axis that a model without tokens leaves open, a multiple of common strides."""


def require_onnxruntime() -> Any:
    """The module onnxruntime.

    Raises:
        EngineMissingError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissingError(
            f'running ONNX needs onnx and onnxruntime ({error}): pip install "ggufnorm[onnx]"'
        ) from None
    return onnxruntime


def optimize(model: OnnxModel, out: Path) -> Path:
    """Write what ONNX Runtime makes of a graph on any machine: fused, and constants folded.

    Args:
        model: the graph.
        out: file to write.

    Raises:
        EngineError: ONNX Runtime does not take the model.
    """
    runtime = require_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    try:
        runtime.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever a runtime raises
        raise EngineError(f"{model.path}: ONNX Runtime does not take it: {_line(error)}") from None
    return out


class OnnxSession:
    """An ONNX file ready to run, on the CPU. All norms are observed.

    Args:
        path: of the file; weights that it keeps in other files must lie beside it.
        n_threads: CPU threads; None leaves ONNX Runtime's choice.

    Attributes:
        model: the graph.
        norms: that it has.

    Raises:
        EngineMissingError: onnx or onnxruntime is not installed.
        InputError: the file is not ONNX.
        EngineError: ONNX Runtime does not take it.
    """

    def __init__(self, path: str | os.PathLike[str], *, n_threads: int | None = None) -> None:
        self._runtime = require_onnxruntime()
        self.engine = f"onnxruntime {self._runtime.__version__}"
        self.model = OnnxModel(path)
        self.norms, self._skipped = find_norms(self.model)
        self._inputs_of = [_input_of(norm, self.model) for norm in self.norms]
        self._session = self._open(n_threads)

    def _open(self, n_threads: int | None) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is raised; the rest is not ours to tell
        if n_threads:
            options.intra_op_num_threads = n_threads
        folder = str(Path(self.model.path).resolve().parent)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
        try:
            return self._runtime.InferenceSession(
                self._watched().SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # whatever a runtime raises
            raise EngineError(
                f"{self.model.path}: ONNX Runtime does not take it: {_line(error)}"
            ) from None

    def _watched(self) -> Any:
        """The model with the ends of all norms among its outputs."""
        proto = type(self.model.proto)()
        proto.CopyFrom(self.model.proto)
        for norm, name in zip(self.norms, self._inputs_of, strict=True):
            if norm.sum_output is not None:
                outputs = proto.graph.node[norm.node].output
                while len(outputs) <= norm.sum_output:
                    outputs.append("")
                outputs[norm.sum_output] = name
        there = {o.name for o in proto.graph.output} | {i.name for i in proto.graph.input}
        wanted = [n for pair in zip(self._inputs_of, self._results(), strict=True) for n in pair]
        for name in dict.fromkeys(wanted):
            if name not in there:
                proto.graph.output.add().name = name
        return proto

    def _results(self) -> list[str]:
        return [norm.y for norm in self.norms]

    @property
    def takes_tokens(self) -> bool:
        """Whether one of its inputs is token ids."""
        return any(_role(i.name, i.type) == "ids" for i in self._session.get_inputs())

    @property
    def n_vocab(self) -> int:
        """Rows of the matrix that ids are looked up in.

        Raises:
            InputError: the graph does not show which that is.
        """
        at = {"Gather": 0, "EmbedLayerNormalization": 2}
        tables = [n.input[at[n.op_type]] for n in self.model.nodes if n.op_type in at]
        shapes = [self.model.shape(s) for t in tables if (s := self.model.source(t))]
        looked_up = [shape[0] for shape in shapes if len(shape) == 2]
        if not looked_up:
            raise InputError(f"{self.model.path}: its vocabulary is not to be seen in the graph")
        return int(max(looked_up))

    def run(self, tokens: Tokens, pixels: Array | None = None) -> ObservedRun:
        """Run the model once.

        Args:
            tokens: ids; a model that takes none gets normal values instead.
            pixels: the values that it gets then, ``(pictures, height, width, 3)``.

        Raises:
            InputError: an input is of another length, or of a type that is not known here.
            EngineError: ONNX Runtime fails.
        """
        feeds = {i.name: self._feed(i, tokens, pixels) for i in self._session.get_inputs()}
        names = [o.name for o in self._session.get_outputs()]
        try:
            values = dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:  # whatever a runtime raises
            raise EngineError(f"{self.model.path}: ONNX Runtime fails: {_line(error)}") from None
        norms, skipped = self._observed({**feeds, **values}, len(tokens))
        logits = values.get(next((n for n in names if "logits" in n.lower()), ""))
        return ObservedRun(
            engine=self.engine,
            location=self.model.path,
            norms=tuple(norms),
            logits=None if logits is None else _logits(logits, len(tokens)),
            skipped=(*self._skipped, *skipped),
            rounding=self._rounding(),
            result=self._result(values),
        )

    def _result(self, values: Mapping[str, NDArray[Any]]) -> Array | None:
        first = values[self.model.proto.graph.output[0].name]
        return first.astype(np.float32) if first.dtype.kind == "f" else None

    def _rounding(self) -> float:
        types = (dtype for _name, dtype, _shape in self.model.matrices())
        return max((MATRIX_ROUNDING.get(dtype, 0.0) for dtype in types), default=0.0)

    def _feed(self, wanted: Any, tokens: Tokens, pixels: Array | None) -> NDArray[Any]:
        role = _role(wanted.name, wanted.type)
        dtype = _DTYPES.get(wanted.type)
        if dtype is None:
            raise InputError(f"{self.model.path}: its input {wanted.name} is {wanted.type}")
        if role == "image" and pixels is not None:
            return self._pixels(wanted, pixels).astype(dtype)
        if role in ("image", "past"):
            return self._values(wanted, role, dtype)
        n = len(tokens)
        for size in wanted.shape[1:]:
            if isinstance(size, int) and size != n:
                raise InputError(
                    f"{self.model.path}: its input {wanted.name} takes {size} tokens, not {n}:"
                    f" give --tokens {size} (trace: -c {size})"
                )
        made: Mapping[str, NDArray[Any]] = {
            "ids": tokens,
            "ones": np.ones(n),
            "zeros": np.zeros(n),
            "positions": np.arange(n),
        }
        return np.asarray(made[role], dtype)[None]

    def _pixels(self, wanted: Any, pixels: Array) -> Array:
        found = np.moveaxis(pixels, -1, 1)
        pairs = zip(wanted.shape, found.shape, strict=False)
        if len(wanted.shape) != 4 or any(isinstance(a, int) and a != b for a, b in pairs):
            sizes = ("×".join(map(str, shape)) for shape in (wanted.shape, found.shape))
            raise InputError(
                f"{self.model.path}: its input {wanted.name} takes {next(sizes)}, the pixels are"
                f" {next(sizes)} (pictures, channels, height, width)"
            )
        return found

    def _values(self, wanted: Any, role: str, dtype: str) -> NDArray[Any]:
        batch, *rest = wanted.shape or [1]
        shape = [batch if isinstance(batch, int) else 1]
        open_side = 0 if role == "past" else _SIDE
        shape += [size if isinstance(size, int) else open_side for size in rest]
        rng = np.random.default_rng(0)
        return rng.standard_normal(shape).astype(dtype)

    def _observed(
        self, values: Mapping[str, NDArray[Any]], n_tokens: int
    ) -> tuple[list[ObservedNorm], list[Skipped]]:
        norms, skipped = [], []
        for norm, name in zip(self.norms, self._inputs_of, strict=True):
            try:
                norms.append(self._norm(norm, values[name], values[norm.y], n_tokens))
            except ValueError as error:
                skipped.append(Skipped(site_name(norm, self.model), str(error)))
        return norms, skipped

    def _norm(
        self, norm: OnnxNorm, x: NDArray[Any], y: NDArray[Any], n_tokens: int
    ) -> ObservedNorm:
        if takes_own_statistics(self.model, self.model.nodes[norm.node]):
            raise ValueError(f"{norm.op} takes mean and variance of its own input")
        if norm.kind is None:
            raise ValueError(f"{norm.op} has fixed statistics: it is a scale and a bias")
        weight, bias = (self._stored(v) for v in (norm.weight_value, norm.bias_value))
        groups = (norm.groups or x.shape[1]) if norm.kind == "group" else None
        if norm.kind == "group":
            x, y, weight, bias = _flat(x, y, weight, bias)
        else:
            x, y = (_rows(v, n_tokens, norm.axis) for v in (x, y))
        if weight is not None:
            weight = weight - np.float32(norm.offset)
        channels, name = x.shape[-1], site_name(norm, self.model)
        layer = find_layer(name)
        return ObservedNorm(
            name=name,
            formula=Formula(norm.kind, norm.epsilon, groups, norm.divisor, norm.offset),
            epsilon_stated=norm.epsilon,
            weight=None if weight is None else _fitting(weight, channels),
            bias=None if bias is None else _fitting(bias, channels),
            x=x,
            y=y,
            weight_name=plain_name(norm.weight),
            bias_name=plain_name(norm.bias),
            dtype=self.model.dtype(norm.weight) if norm.weight else None,
            layer=int(layer[1]) if layer else None,
        )

    def _stored(self, value: str | None) -> Array | None:
        if value is None:
            return None
        found = self.model.constant(value)
        if found is None:
            raise ValueError(f"its {value} depends on the input")
        return found.astype(np.float32)


def _input_of(norm: OnnxNorm, model: OnnxModel) -> str:
    """Name of what goes in, given one where the operation has not named it."""
    if norm.x is not None:
        return norm.x
    outputs = model.nodes[norm.node].output
    at = norm.sum_output or 0
    return outputs[at] if at < len(outputs) and outputs[at] else f"{norm.y}/ggufnorm_input"


def input_role(name: str, kind: str) -> str:
    """What an input takes: past, ones, zeros, positions, ids or image; the last for any reals."""
    lower = name.lower()
    if "past" in lower or "cache" in lower:
        return "past"
    if "mask" in lower:
        return "ones"
    if "type" in lower or "segment" in lower:
        return "zeros"
    if "position" in lower:
        return "positions"
    return "ids" if "int" in kind else "image"


_role = input_role


_DTYPES = {
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(float)": "float32",
    "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(bool)": "bool",
}  # fmt: skip


def _rows(value: NDArray[Any], n_tokens: int, axis: int) -> Array:
    channels = int(np.prod(value.shape[axis:]))
    if n_tokens and n_tokens in value.shape[:-1] and channels == value.shape[-1]:
        return by_token(value, n_tokens, channels)
    return np.ascontiguousarray(value, np.float32).reshape(-1, 1, channels)


def _flat(
    x: NDArray[Any],
    y: NDArray[Any],
    weight: Array | None,
    bias: Array | None,
) -> tuple[Array, Array, Array | None, Array | None]:
    """Samples as rows: a channel is a run of each."""
    n, channels = x.shape[0], x.shape[1]
    run = x[0].size // channels

    def spread(v: Array | None) -> Array | None:
        # Before opset 21 there is one weight for a group.
        return None if v is None else np.repeat(v.reshape(-1), channels // v.size * run)

    flat = [np.ascontiguousarray(v, np.float32).reshape(n, 1, -1) for v in (x, y)]
    return flat[0], flat[1], spread(weight), spread(bias)


def _fitting(v: Array, channels: int) -> Array:
    flat = v.reshape(-1)
    if flat.size == 1:
        return np.full(channels, flat[0], np.float32)
    if flat.size % channels:
        raise ValueError(f"{flat.size} weights do not fit {channels} channels")
    return flat if flat.size == channels else flat.reshape(-1, channels)


def _logits(value: NDArray[Any], n_tokens: int) -> Array | None:
    if value.ndim != 3 or value.shape[1] != n_tokens:
        return None
    return np.ascontiguousarray(value[0], np.float32)


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{text[0] if text else type(error).__name__}"[:300]
