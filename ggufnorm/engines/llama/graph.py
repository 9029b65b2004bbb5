"""What a compute graph holds: which nodes read the file's tensors, which are norms.

Everything here is read off the graph that llama.cpp really runs; no table of
architectures is asked. A graph is the list of nodes that the scheduler offered to
``cb_eval`` during one decode, in order.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

from ggufnorm.core.model import NormKind, Skipped
from ggufnorm.engines.llama.binding import NodeView, is_readable

NORM_OPS: dict[str, NormKind] = {
    "RMS_NORM": "rms",
    "NORM": "layer",
    "GROUP_NORM": "group",
    "L2_NORM": "l2",
}
"""ggml's norm operations (``ggml_op_name``)."""

_VIEW_OPS = frozenset({"RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"})
"""Operations that compute nothing: ``ggml_op_is_empty`` without NONE."""
_COPY_OPS = frozenset({"CPY", "CONT", "CAST", "DUP"})


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        key: its name, with ``@k`` behind it for the k-th repetition of that name: one
            name and position in every run of one architecture.
        sources: for each source the index of a node, or the name of a leaf (a weight,
            an input, a cache).
        source_shapes: ggml's ``ne`` of each source.
    """

    index: int
    key: str
    name: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    params: bytes
    sources: tuple[int | str, ...]
    source_shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class NormPlan:
    """A norm in a graph: which nodes hold its input and its output.

    Attributes:
        key: name of the weight's tensor, or the output node's key for a norm without one.
        epsilon: that the operation really uses (from ``op_params``), float32.
        groups: of a GroupNorm.
        input: index of the node whose value is the hidden state.
        norm: index of the norm operation itself.
        output: index of the last node of norm, weight and bias.
        weight: tensor name, None for none.
        weight_shape: ggml's ``ne`` of the weight as the graph multiplies it.
        bias: tensor name, None for none.
        bias_shape: ggml's ``ne`` of the bias as the graph adds it.
    """

    key: str
    kind: NormKind
    epsilon: float
    groups: int | None
    input: int
    norm: int
    output: int
    weight: str | None
    weight_shape: tuple[int, ...]
    bias: str | None
    bias_shape: tuple[int, ...]


OperationRole = Literal[
    "embedding",
    "matmul",
    "bias",
    "attention",
    "recurrent",
    "activation",
    "norm",
    "residual",
    "norm_input",
    "output",
    "other",
]
"""What a watched node does; ``norm_input`` only where none of the others fits."""


@dataclass(frozen=True)
class Stop:
    """A node at which a run is watched.

    Attributes:
        index: of the node in its graph.
        key: of the node.
        tensor: the file's tensor that the node reads, None for none.
        pin: whether the value can be replaced (a view has no value of its own).
    """

    index: int
    key: str
    op: str
    role: OperationRole
    tensor: str | None
    pin: bool


@dataclass(frozen=True)
class Graph:
    """The nodes of one decode, and what they mean."""

    nodes: tuple[Node, ...]
    norms: tuple[NormPlan, ...]
    stops: tuple[Stop, ...]
    skipped: tuple[Skipped, ...]


_LAYER = re.compile(r"-(\d+)(?:@\d+)?$")


def layer_of_node(key: str) -> int | None:
    """Block number at the end of a label such as ``attn_norm-3`` (llama.cpp's cb())."""
    found = _LAYER.search(key)
    return int(found[1]) if found else None


def build_graph(
    views: list[NodeView],
    tensors: Container[str],
    *,
    prefix: str = "",
    unfused_norms: bool = False,
) -> Graph:
    """Make sense of the nodes that one decode showed.

    Args:
        views: in the order of the scheduler's questions.
        tensors: names of the tensors in the model's file.
        prefix: put before each key: an encoder and a decoder use the same labels.
        unfused_norms: make each norm operation a stop of its own.
    """
    nodes = _nodes(views, prefix)
    finder = _NormFinder(nodes, tensors)
    norms, skipped = finder.find()
    stops = _StopFinder(nodes, norms, finder, unfused_norms).find()
    return Graph(nodes, norms, stops, skipped)


def _nodes(views: list[NodeView], prefix: str) -> tuple[Node, ...]:
    by_address = {v.address: i for i, v in enumerate(views)}
    by_name: dict[str, int] = {}
    times: dict[str, int] = {}
    nodes = []
    for i, view in enumerate(views):
        sources: list[int | str] = []
        shapes = []
        for address in view.sources:
            source = NodeView.at(address)
            shapes.append(source.shape)
            at = by_address.get(address)
            # A copy that the scheduler made for another backend bears its original's name.
            at = by_name.get(source.name) if at is None else at
            sources.append(source.name if at is None else at)
        n = times[view.name] = times.get(view.name, 0) + 1
        nodes.append(
            Node(
                index=i,
                key=prefix + (view.name if n == 1 else f"{view.name}@{n}"),
                name=view.name,
                op=view.op,
                dtype=view.dtype,
                shape=view.shape,
                params=view.params,
                sources=tuple(sources),
                source_shapes=tuple(shapes),
            )
        )
        by_name[view.name] = i
    return tuple(nodes)


class _NormFinder:
    """Follows each norm operation to its weight and its bias."""

    def __init__(self, nodes: tuple[Node, ...], tensors: Container[str]) -> None:
        self.nodes = nodes
        self.tensors = tensors
        self.consumers: dict[int, list[Node]] = {}
        for node in nodes:
            for source in node.sources:
                if isinstance(source, int):
                    self.consumers.setdefault(source, []).append(node)

    def find(self) -> tuple[tuple[NormPlan, ...], tuple[Skipped, ...]]:
        norms: list[NormPlan] = []
        skipped: list[Skipped] = []
        for node in self.nodes:
            if node.op not in NORM_OPS:
                continue
            source = node.sources[0]
            if isinstance(source, str):
                skipped.append(Skipped(node.key, f"its input {source} is not computed by a node"))
            elif not is_readable(self.nodes[source].dtype):
                dtype = self.nodes[source].dtype
                skipped.append(Skipped(node.key, f"its input is {dtype}, which is not read"))
            else:
                norms += self.sites(node, source)
        return tuple(norms), tuple(skipped)

    def sites(self, norm: Node, source: int) -> list[NormPlan]:
        """One site per weight that the norm's result is multiplied with, or one without."""
        weighted = self.steps(norm, "MUL")
        found = []
        for output, weight, shape in weighted or [(norm, None, ())]:
            biased = self.steps(output, "ADD")
            last, bias, bias_shape = biased[0] if len(biased) == 1 else (output, None, ())
            if norm.op == "GROUP_NORM":
                groups, epsilon = struct.unpack_from("if", norm.params)
            else:
                groups, (epsilon,) = None, struct.unpack_from("f", norm.params)
            found.append(
                NormPlan(
                    key=weight or last.key,
                    kind=NORM_OPS[norm.op],
                    epsilon=epsilon,
                    groups=groups,
                    input=source,
                    norm=norm.index,
                    output=last.index,
                    weight=weight,
                    weight_shape=shape,
                    bias=bias,
                    bias_shape=bias_shape,
                )
            )
        return found

    def steps(self, node: Node, op: str) -> list[tuple[Node, str | None, tuple[int, ...]]]:
        """Consumers of ``node`` by ``op`` with a tensor of the file, seen through reshapes."""
        found: list[tuple[Node, str | None, tuple[int, ...]]] = []
        for user in self.consumers.get(node.index, []):
            if user.op in ("RESHAPE", "CONT"):
                found += self.steps(user, op)
            elif user.op == op:
                for source, shape in zip(user.sources, user.source_shapes, strict=True):
                    tensor = self.tensor(source)
                    if tensor is not None:
                        found.append((user, tensor, shape))
        return found

    def tensor(self, source: int | str) -> str | None:
        """The file's tensor behind a source: itself, or what a reshape or copy of it shows."""
        while not isinstance(source, str):
            node = self.nodes[source]
            if node.op not in _VIEW_OPS and node.op not in _COPY_OPS:
                return None
            source = node.sources[0]
        return source if source in self.tensors else None


class _StopFinder:
    """Chooses the nodes to watch.

    All that read a tensor of the file are among them, so everything between two stops is
    computed without any of the file's numbers: with the values at the stops replaced by
    the reference's, what is between cannot differ. The rest (attention, activations,
    residual sums, recurrent states) shows where drift passes.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        norms: tuple[NormPlan, ...],
        finder: _NormFinder,
        unfused_norms: bool,
    ) -> None:
        self.nodes, self.tensor = nodes, finder.tensor
        self.outputs = {n.output for n in norms}
        self.inputs = {n.input for n in norms}
        # What lies inside a norm is not watched: the engine may fuse it (RMS_NORM + MUL).
        self.inside = {i for n in norms for i in range(n.norm, n.output)} - self.inputs
        self.cores = {n.norm for n in norms} if unfused_norms else set()
        self.labelled_attention = any(n.name.startswith(_ATTENTION_LABEL) for n in nodes)

    def find(self) -> tuple[Stop, ...]:
        stops = []
        for node in self.nodes:
            if not is_readable(node.dtype):
                continue
            tensors = [t for t in map(self.tensor, node.sources) if t]
            role = self.role(node, bool(tensors))
            if role is None:
                continue
            # A reshape shows its source's values as they lie; other views may not.
            own = node.op not in _VIEW_OPS or node.op == "RESHAPE"
            tensor = tensors[0] if tensors else None
            pin = own and node.dtype == "F32"
            stops.append(Stop(node.index, node.key, node.op, role, tensor, pin))
        return tuple(stops)

    def role(self, node: Node, reads_file: bool) -> OperationRole | None:
        if node.index in self.outputs or node.index in self.cores:
            return "norm"
        if node.index in self.inside and node.op not in _MATMUL_OPS:
            return None
        computed = node.op not in _VIEW_OPS and node.op not in _COPY_OPS
        if reads_file and computed:
            return _ROLE_OF_READER.get(node.op, "other")
        found = self.role_without_tensor(node)
        return "norm_input" if found is None and node.index in self.inputs else found

    def role_without_tensor(self, node: Node) -> OperationRole | None:
        if node.name == "result_embd_pooled":  # llm_graph_context::build_pooling
            return "output"
        if self.is_attention(node):
            return "attention"
        if node.op.startswith(("SSM_", "RWKV_", "GATED_")):
            return "recurrent"
        if node.op in ("GLU", "UNARY"):
            return "activation"
        # Attention scores with a position bias added have heads on a third axis.
        if (
            node.op == "ADD"
            and len(node.shape) <= 2
            and not any(isinstance(s, str) for s in node.sources)
        ):
            return "residual"
        return None

    def is_attention(self, node: Node) -> bool:
        """The attention's result, by llama.cpp's label or else by its operations."""
        if self.labelled_attention:
            return node.name.startswith(_ATTENTION_LABEL)
        if node.op == "FLASH_ATTN_EXT":
            return True
        return node.op in _MATMUL_OPS and any(
            isinstance(s, int) and self.nodes[s].op == "SOFT_MAX" for s in node.sources[:2]
        )


_ATTENTION_LABEL = "kqv_out"
"""llm_graph_context::build_attn in src/llama-graph.cpp."""
_MATMUL_OPS = frozenset({"MUL_MAT", "MUL_MAT_ID"})
_ROLE_OF_READER: dict[str, OperationRole] = {
    "GET_ROWS": "embedding",
    "MUL_MAT": "matmul",
    "MUL_MAT_ID": "matmul",
    "ADD": "bias",
    "ADD_ID": "bias",
    "SSM_CONV": "recurrent",
    "SSM_SCAN": "recurrent",
}
