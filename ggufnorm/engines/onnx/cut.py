"""ONNX graphs made of others: a part of one, fed at its ends; one with a value patched.

Nothing is written: a graph is built as a protocol buffer, and weights that a file keeps in other
files stay there. ONNX Runtime's optimizations are off, so that every value is computed as the
graph says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.onnx.model import OnnxModel, require_onnx
from ggufnorm.engines.onnx.products import captured
from ggufnorm.engines.onnx.session import require_onnxruntime
from ggufnorm.errors import EngineError

FED, RAW, DELTA, SHAPE = (f"ggufnorm/{what}/" for what in ("fed", "raw", "delta", "shape"))
"""Prefixes of the names of values that are added here."""

FLOATS: Mapping[str, int] = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(double)": 11}
"""Real types that NumPy has, by ONNX Runtime's name: ONNX's number."""
_NUMPY = {1: np.float32, 10: np.float16, 11: np.float64}

Values = Mapping[str, NDArray[Any]]


class Session:
    """A graph ready to run in ONNX Runtime on the CPU.

    Args:
        proto: the graph.
        model: of which it was made; names it in errors, and has its weights' folder.
        n_threads: CPU threads; None leaves ONNX Runtime's choice.
        optimized: whether the runtime may optimize it.

    Raises:
        EngineError: ONNX Runtime does not take it.
    """

    def __init__(
        self, proto: Any, model: OnnxModel, n_threads: int | None, *, optimized: bool = False
    ) -> None:
        runtime = require_onnxruntime()
        self.path = model.path
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.enable_mem_pattern = False
        if not optimized:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if n_threads:
            options.intra_op_num_threads = n_threads
        folder = str(Path(model.path).resolve().parent)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
        try:
            self._session = runtime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # whatever a runtime raises
            raise EngineError(
                f"{self.path}: ONNX Runtime does not take it: {_line(error)}"
            ) from None
        self.types = {o.name: str(o.type) for o in self._session.get_outputs()}
        self._inputs = {i.name for i in self._session.get_inputs()}

    def run(self, feeds: Values, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Some outputs, all if None; feeds that the graph does not take are passed over.

        Raises:
            EngineError: ONNX Runtime fails.
        """
        names = list(self.types if outputs is None else outputs)
        given = {name: value for name, value in feeds.items() if name in self._inputs}
        try:
            return dict(zip(names, self._session.run(names, given), strict=True))
        except Exception as error:  # whatever a runtime raises
            raise EngineError(f"{self.path}: ONNX Runtime fails: {_line(error)}") from None


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{text[0] if text else type(error).__name__}"[:300]


@dataclass(frozen=True)
class Change:
    """Other constants than the file's.

    Attributes:
        constants: by name.
        axes: of ``DequantizeLinear`` nodes, by the name of their result.
    """

    constants: Values = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)


NO_CHANGE = Change()


def region(model: OnnxModel, outputs: Iterable[str], stops: Collection[str]) -> list[Any]:
    """The nodes that compute some values from others, in order.

    Args:
        model: the graph.
        outputs: what is computed.
        stops: where to stop on the way back, beside the inputs.
    """
    wanted: set[int] = set()
    waiting = list(outputs)
    first = set(waiting)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        node = model.producers.get(name)
        if node is None or (name in stops and name not in first) or name in seen:
            continue
        first.discard(name)  # the next time it is an input
        seen.add(name)
        if id(node) not in wanted:
            wanted.add(id(node))
            waiting += [i for i in (*node.input, *captured(node)) if i]
    return [node for node in model.nodes if id(node) in wanted]


def all_captured(model: OnnxModel) -> set[str]:
    """Names that any node's inner graph takes: these can be read, and not cut."""
    return set().union(*(captured(node) for node in model.nodes))


def ends_of(nodes: Iterable[Any], stops: Collection[str]) -> list[str]:
    """At which of the stops a region begins."""
    return list(dict.fromkeys(name for node in nodes for name in node.input if name in stops))


def cut(
    model: OnnxModel,
    outputs: Sequence[str],
    stops: Mapping[str, int],
    change: Change = NO_CHANGE,
    *,
    shapes: Iterable[str] = (),
) -> Any:
    """A part of a graph whose inputs are values of the whole.

    Args:
        model: the whole.
        outputs: of the part.
        stops: values that are fed, as :data:`FED` + name, and their types.
        change: other constants.
        shapes: values whose shape becomes an output, as :data:`SHAPE` + name.
    """
    onnx = require_onnx()
    shapes = list(shapes)
    nodes = region(model, [*outputs, *shapes], stops)
    proto = _empty_like(model)
    graph = proto.graph
    for node in nodes:
        if node.op_type == "Constant" and node.output[0] in change.constants:
            continue
        copy = graph.node.add()
        copy.CopyFrom(node)
        for i, name in enumerate(copy.input):
            if name in stops:
                copy.input[i] = FED + name
        if copy.output[0] in change.axes:
            _set_axis(copy, change.axes[copy.output[0]])
    for name in ends_of(nodes, stops):
        graph.input.append(onnx.helper.make_tensor_value_info(FED + name, stops[name], None))
    _add_ends(model, proto, nodes, change, stops)
    for name in dict.fromkeys(outputs):
        graph.output.add().name = name
    for name in shapes:
        graph.node.append(onnx.helper.make_node("Shape", [name], [SHAPE + name]))
        graph.output.add().name = SHAPE + name
    return proto


def _empty_like(model: OnnxModel) -> Any:
    proto = type(model.proto)()
    proto.ir_version = model.proto.ir_version
    proto.opset_import.extend(model.proto.opset_import)
    proto.functions.extend(model.proto.functions)
    proto.graph.name = model.proto.graph.name
    return proto


def _add_ends(
    model: OnnxModel, proto: Any, nodes: Sequence[Any], change: Change, stops: Collection[str]
) -> None:
    """The inputs and constants that some nodes take."""
    numpy_helper = require_onnx().numpy_helper
    taken = {name for node in nodes for name in (*node.input, *captured(node))} - set(stops)
    taken |= {name for node in nodes for name in captured(node)}
    stored = {t.name for t in model.proto.graph.initializer}
    proto.graph.input.extend(
        i for i in model.proto.graph.input if i.name in taken and i.name not in stored
    )
    proto.graph.initializer.extend(
        t
        for t in model.proto.graph.initializer
        if t.name in taken and t.name not in change.constants
    )
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, order="C"), name)
        for name, value in change.constants.items()
        if name in taken
    )


def _set_axis(node: Any, axis: int) -> None:
    for a in node.attribute:
        if a.name == "axis":
            a.i = axis
            return
    node.attribute.append(require_onnx().helper.make_attribute("axis", axis))


def whole(model: OnnxModel, change: Change = NO_CHANGE) -> Any:
    """A graph with all its outputs, and other constants."""
    return cut(model, [o.name for o in model.proto.graph.output], {}, change)


def patchable(model: OnnxModel, values: Mapping[str, int]) -> Any:
    """A graph in which something, given as :data:`DELTA` + name, is added to values.

    Args:
        model: the graph.
        values: and their types.
    """
    helper = require_onnx().helper
    proto = whole(model)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        mine = [(i, name) for i, name in enumerate(node.output) if name in values]
        for i, name in mine:
            node.output[i] = RAW + name
        proto.graph.node.append(node)
        for _i, name in mine:
            proto.graph.node.append(helper.make_node("Add", [RAW + name, DELTA + name], [name]))
    there = {name for node in proto.graph.node for name in node.output}
    for name, kind in values.items():
        if name in there:
            proto.graph.input.append(helper.make_tensor_value_info(DELTA + name, kind, None))
    return proto


def zero(kind: int) -> NDArray[Any]:
    """What leaves a value as it is, when it is added."""
    return np.zeros((), _NUMPY[kind])


def as_type(value: NDArray[Any], kind: int) -> NDArray[Any]:
    """A value in a type of :data:`FLOATS`; what is too large for it becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(value, _NUMPY[kind])
