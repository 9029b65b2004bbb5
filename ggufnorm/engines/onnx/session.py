"""ONNX Runtime as an engine: what goes into each norm and what comes out become outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.formula import Formula
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ModelOutput, ObservedNorm, ObservedRun
from ggufnorm.core.rounding import HALF_ULP, MATRIX_ROUNDING
from ggufnorm.engines.onnx.arranged import AGREES, HALVED, arranged, by_row, by_sample
from ggufnorm.engines.onnx.front import Front, read_front, same_front
from ggufnorm.engines.onnx.layers import read_layers
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.norms import (
    OnnxNorm,
    find_layer,
    find_norms,
    own_statistics,
    plain_name,
    site_name,
    takes_own_statistics,
)
from ggufnorm.errors import EngineError, EngineMissingError, InputError

Array = NDArray[np.float32]
Tokens = NDArray[np.int32]

_UNSTABLE = frozenset({
    "ArgMax", "ArgMin", "Bernoulli", "Multinomial", "NonMaxSuppression", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "TopK", "Unique",
})  # fmt: skip
"""Operations whose result rounding may turn over, or chance decides."""
_RESHAPED_IDS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_ROUNDINGS = 4
"""Half-precision operations of a norm that is written as several, each of which rounds."""
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
    """An ONNX file ready to run, on the CPU. All norms are observed, without any all layers.

    Args:
        path: of the file; weights that it keeps in other files must lie beside it.
        n_threads: CPU threads; None leaves ONNX Runtime's choice.
        also: names other values of the graph that are to be observed.

    Attributes:
        model: the graph.
        norms: that it has.
        front: what it does to its pixels before its first layer; None for nothing.

    Raises:
        EngineMissingError: onnx or onnxruntime is not installed.
        InputError: the file is not ONNX.
        EngineError: ONNX Runtime does not take it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_threads: int | None = None,
        also: Callable[[OnnxModel], Iterable[str]] = lambda _model: (),
    ) -> None:
        self._runtime = require_onnxruntime()
        self.engine = f"onnxruntime {self._runtime.__version__}"
        self.model = OnnxModel(path)
        self.norms, self._skipped = find_norms(self.model)
        self._inputs_of = [_input_of(norm, self.model) for norm in self.norms]
        self._outputs = [o.name for o in self.model.proto.graph.output]
        self._ends = self._ends_of_layers()
        self._also = tuple(also(self.model))
        self.front = read_front(self.model)
        self._undone = self.front
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
        rows = [n.spelled.rows for n in self.norms if n.spelled is not None]
        for name in dict.fromkeys([*wanted, *rows, *self._ends, *self._also]):
            if name not in there:
                proto.graph.output.add().name = name
        return proto

    def _ends_of_layers(self) -> tuple[str, ...]:
        """What to observe where there is no norm to look at."""
        if any(norm.kind is not None for norm in self.norms):
            return ()
        return tuple(dict.fromkeys(layer.end for layer in read_layers(self.model)))

    def _results(self) -> list[str]:
        return [norm.y for norm in self.norms]

    @property
    def takes_tokens(self) -> bool:
        """Whether one of its inputs is token ids."""
        return any(_role(i.name, i.type) == "ids" for i in self._session.get_inputs())

    @property
    def takes_mask(self) -> bool:
        """Whether one of its inputs tells tokens from padding."""
        return any("mask" in i.name.lower() for i in self._session.get_inputs())

    def run_beside(self, source: ObservedRun, front: Front | None) -> ObservedRun:
        """Run a model of pixels beside a source's run, so that both networks get the same.

        A source may normalize its pixels, and this model not, or in its first layer. So it gets
        what the source was fed, and what it is made for itself; the nearer run is given.

        Args:
            source: the source's run.
            front: what the source does to its pixels.

        Raises:
            EngineError: ONNX Runtime fails.
        """
        no_tokens = np.empty(0, np.int32)
        own = self.run(no_tokens)
        if same_front(self.front, front):
            return own
        self._undone = front
        same = self.run(no_tokens)
        self._undone = self.front
        a, b, c = source.result, own.result, same.result
        if a is None or b is None or c is None or not a.shape == b.shape == c.shape:
            return same
        nearer = relative_l2(a, b) < relative_l2(a, c)
        return replace(own, own_feed=True) if nearer else same

    def run_padded(
        self, tokens: NDArray[np.int64], mask: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """Run several texts at once, and give all that is observed, by name.

        Args:
            tokens: ids, ``(texts, tokens)``.
            mask: 1 for each token, 0 for padding, likewise.

        Raises:
            InputError: an input is of a type that is not known here.
            EngineError: ONNX Runtime fails: it may take no other batch or length.
        """
        feeds = {}
        for wanted in self._session.get_inputs():
            role, dtype = _role(wanted.name, wanted.type), _DTYPES.get(wanted.type)
            positions = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
            made = {"ids": tokens, "ones": mask, "zeros": 0 * mask, "positions": positions}.get(
                role
            )
            if dtype is None or made is None:
                raise InputError(f"{self.model.path}: its input {wanted.name} is {wanted.type}")
            feeds[wanted.name] = made.astype(dtype)
        return self._values_of(feeds)

    def _values_of(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [o.name for o in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:  # whatever a runtime raises
            raise EngineError(f"{self.model.path}: ONNX Runtime fails: {_line(error)}") from None

    @property
    def n_vocab(self) -> int:
        """Rows of the matrix that ids are looked up in.

        Raises:
            InputError: the graph does not show which that is.
        """
        at = {"Gather": 0, "EmbedLayerNormalization": 2}
        nodes = [n for n in self.model.nodes if n.op_type in at]
        ids = {i.name for i in self._session.get_inputs() if _role(i.name, i.type) == "ids"}
        # Positions are looked up too, and there may be more of them than words.
        of_ids = [n for n in nodes if n.op_type != "Gather" or self._origin(n.input[1]) in ids]
        tables = [n.input[at[n.op_type]] for n in of_ids or nodes]
        shapes = [self.model.shape(s) for t in tables if (s := self.model.source(t))]
        looked_up = [shape[0] for shape in shapes if len(shape) == 2]
        if not looked_up:
            raise InputError(f"{self.model.path}: its vocabulary is not to be seen in the graph")
        return int(max(looked_up))

    def _origin(self, value: str) -> str:
        """What ids were before they were reshaped or converted."""
        node = self.model.producers.get(value)
        while node is not None and node.op_type in _RESHAPED_IDS:
            value = node.input[0]
            node = self.model.producers.get(value)
        return value

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
        values = self._values_of(feeds)
        norms, skipped = self._observed({**feeds, **values}, len(tokens))
        logits = values.get(next((n for n in values if "logits" in n.lower()), ""))
        return ObservedRun(
            engine=self.engine,
            location=self.model.path,
            norms=tuple(norms),
            logits=None if logits is None else _logits(logits, len(tokens)),
            skipped=(*self._skipped, *skipped),
            rounding=self._rounding(),
            result=self._result(values),
            outputs=tuple(self._floats(values)),
            behind={name: values[name].astype(np.float32) for name in self._ends},
        )

    def _result(self, values: Mapping[str, NDArray[Any]]) -> Array | None:
        first = values[self._outputs[0]]
        return first.astype(np.float32) if first.dtype.kind == "f" else None

    def _floats(self, values: Mapping[str, NDArray[Any]]) -> Iterator[ModelOutput]:
        for name in self._outputs:
            value = values[name]
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                unstable = self.model.leads_to(name, _UNSTABLE)
                yield ModelOutput(name, value.astype(np.float32), unstable)

    def _rounding(self) -> float:
        types = [dtype for _name, dtype, _shape in self.model.matrices()]
        # What is fed in half precision is rounded too.
        fed = (i.type.tensor_type.elem_type for i in self.model.proto.graph.input)
        types += [self.model.type_name(t) for t in fed]
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
        made = np.random.default_rng(0).standard_normal(shape)
        if self._undone is not None and self._undone.fits(made.shape):
            # Noise behind what the graph does to its pixels: the network gets what it is made for.
            made = self._undone.undo(made)
        return np.asarray(made, dtype)

    def _observed(
        self, values: Mapping[str, NDArray[Any]], n_tokens: int
    ) -> tuple[list[ObservedNorm], list[Skipped]]:
        norms, skipped = [], []
        for norm, name in zip(self.norms, self._inputs_of, strict=True):
            try:
                if norm.spelled is not None:
                    rows = values[norm.spelled.rows]
                    norms.append(
                        self._of_several(norm, rows, values[name], values[norm.y], n_tokens)
                    )
                else:
                    norms.append(self._norm(norm, values[name], values[norm.y], n_tokens))
            except ValueError as error:
                skipped.append(Skipped(site_name(norm, self.model), str(error)))
        return norms, skipped

    def _norm(
        self, norm: OnnxNorm, x: NDArray[Any], y: NDArray[Any], n_tokens: int
    ) -> ObservedNorm:
        if takes_own_statistics(self.model, self.model.nodes[norm.node]):
            raise ValueError(f"{norm.op} {own_statistics(self.model, self.model.nodes[norm.node])}")
        if norm.perm is not None:
            x = np.transpose(x, norm.perm)
        if norm.mean_axis is not None and norm.mean_axis not in (-1, x.ndim - 1):
            raise ValueError("the mean is taken off over other axes")
        if norm.kind is None:
            raise ValueError(f"{norm.op} has fixed statistics: it is a scale and a bias")
        weight, bias = (self._stored(v) for v in (norm.weight_value, norm.bias_value))
        lost = HALF_ULP["F16"] if y.dtype == np.float16 else 0.0
        groups = (norm.groups or x.shape[1]) if norm.kind == "group" else None
        if norm.kind == "group":
            x, y, weight, bias = by_sample(x, y, weight, bias)
        else:
            x, y = (by_row(v, n_tokens, norm.axis) for v in (x, y))
        if weight is not None:
            weight = weight - np.float32(norm.offset)
        formula = Formula(norm.kind, norm.epsilon, groups, norm.divisor, norm.offset)
        return self._site(norm, formula, x, y, weight, bias, lost)

    def _of_several(
        self,
        norm: OnnxNorm,
        rows: NDArray[Any],
        x: NDArray[Any],
        y: NDArray[Any],
        n_tokens: int,
    ) -> ObservedNorm:
        """A norm of several operations, where NumPy agrees that it is one."""
        weight, bias = (self._stored(v) for v in (norm.weight_value, norm.bias_value))
        found = arranged(norm, rows, x, y, weight, bias, n_tokens)
        formula = replace(found.formula, offset=norm.offset)
        weight = None if found.weight is None else found.weight - np.float32(norm.offset)
        halved = np.dtype(np.float16) in (x.dtype, y.dtype)
        lost = _ROUNDINGS * HALF_ULP["F16"] if halved else 0.0
        site = self._site(norm, formula, found.x, found.y, weight, found.bias, lost)
        off = site.residual()
        if np.isfinite(off) and off > (HALVED if halved else AGREES):
            raise ValueError(
                f"it looks like {formula}, and gives something else (off by {off:.2g})"
            )
        return site

    def _site(
        self,
        norm: OnnxNorm,
        formula: Formula,
        x: Array,
        y: Array,
        weight: Array | None,
        bias: Array | None,
        rounding: float,
    ) -> ObservedNorm:
        channels, name = x.shape[-1], site_name(norm, self.model)
        layer = find_layer(name)
        return ObservedNorm(
            name=name,
            formula=formula,
            epsilon_stated=formula.epsilon,
            weight=None if weight is None else _fitting(weight, channels),
            bias=None if bias is None else _fitting(bias, channels),
            x=x,
            y=y,
            weight_name=plain_name(norm.weight),
            bias_name=plain_name(norm.bias),
            dtype=self.model.dtype(norm.weight) if norm.weight else None,
            layer=int(layer[1]) if layer else None,
            rounding=rounding,
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
