"""What a compute graph holds: which nodes read the file's tensors, which are norms.

Everything here is read off the graph that llama.cpp really runs; no table of
architectures is asked. A graph is the list of nodes that the scheduler offered to
``cb_eval`` during one decode, in order.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Container
from dataclasses import replace

from ggufnorm.core.model import NormKind, Skipped
from ggufnorm.engines.base import Graph, HookPoint, Node, NormPlan, OperationRole
from ggufnorm.engines.llama.binding import NodeView, is_readable
from ggufnorm.engines.llama.liveness import idle_nodes
from ggufnorm.formats.naming import layer_of

NORM_OPS: dict[str, NormKind] = {
    "RMS_NORM": "rms",
    "NORM": "layer",
    "GROUP_NORM": "group",
    "L2_NORM": "l2",
}
"""ggml's norm operations (``ggml_op_name``)."""

VIEW_OPS = frozenset({"RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"})
"""Operations that compute nothing: ``ggml_op_is_empty`` without NONE."""
COPY_OPS = frozenset({"CPY", "CONT", "CAST", "DUP"})


_ATTENTION = re.compile(r"(?:^|\.)kqv_out(?:-\d+)?(?:@\d+)?$")
"""The label of llm_graph_context::build_attn in src/llama-graph.cpp."""
_ROTATION = "attn_inp_v_rot"
"""The input of llama_kv_cache::build_input_v_rot in src/llama-kv-cache.cpp."""
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
    alone: bool = False,
) -> Graph:
    """Make sense of the nodes that one decode showed.

    Args:
        views: in the order of the scheduler's questions.
        tensors: names of the tensors in the model's file.
        prefix: put before each key: an encoder and a decoder use the same labels.
        unfused_norms: make each norm operation a hook point of its own.
        alone: make every operation one.
    """
    nodes = _nodes(views, tensors, prefix)
    finder = _NormFinder(nodes, tensors)
    norms, skipped = finder.find()
    idle = idle_nodes(views, nodes)
    norms = tuple(n for n in norms if n.output not in idle)
    hooks = _HookFinder(nodes, norms, finder, unfused_norms, alone=alone).find(idle)
    return Graph(nodes, norms, hooks, skipped)


_NUMBERED = re.compile(r"node_\d+$")
"""What ggml_build_forward_impl in ggml/src/ggml.c calls a node without a label."""


def _label(view: NodeView, sources: list[str], tensors: Container[str], before: str) -> str:
    """A name that does not change with the number of nodes ahead.

    Args:
        view: the node.
        sources: their names.
        tensors: names of the tensors in the model's file.
        before: the last label that llama.cpp gave.
    """
    if not _NUMBERED.match(view.name):
        return view.name
    read = next((name for name in sources if name in tensors), None)
    return f"{view.op.lower()} of {read}" if read else f"{view.op.lower()} after {before}"


def _nodes(views: list[NodeView], tensors: Container[str], prefix: str) -> tuple[Node, ...]:
    by_address = {v.address: i for i, v in enumerate(views)}
    by_name: dict[str, int] = {}
    times: dict[str, int] = {}
    nodes = []
    before = "start"
    for i, view in enumerate(views):
        sources: list[int | str] = []
        names = []
        shapes = []
        for address in view.sources:
            source = NodeView.at(address)
            names.append(source.name)
            shapes.append(source.shape)
            at = by_address.get(address)
            # A copy that the scheduler made for another backend bears its original's name.
            at = by_name.get(source.name) if at is None else at
            sources.append(source.name if at is None else at)
        label = _label(view, names, tensors, before)
        if label == view.name and " (" not in label:  # "x (view)" and the like are ggml's
            before = label
        n = times[label] = times.get(label, 0) + 1
        nodes.append(
            Node(
                index=i,
                key=prefix + (label if n == 1 else f"{label}@{n}"),
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
    return _turned_back(nodes)


def _turned_back(nodes: list[Node]) -> tuple[Node, ...]:
    """Give the key of a rotated attention result to the node that turns it back.

    With a quantized cache llama.cpp multiplies the values with a Hadamard matrix, and the
    attention's result once more, which undoes it (llm_graph_context::build_attn and
    llama_mul_mat_hadamard in src/llama-graph.cpp). Only then is it comparable.
    """
    for node in nodes:
        if node.op != "MUL_MAT" or node.sources[0] != _ROTATION:
            continue
        result = node.sources[1]
        while isinstance(result, int) and nodes[result].op == "RESHAPE":
            if _ATTENTION.search(nodes[result].key):
                key = nodes[result].key
                nodes[result] = replace(nodes[result], key=f"{key} (rotated)")
                last = node.index + 1  # a reshape to what it was
                nodes[last] = replace(nodes[last], key=key)
                break
            result = nodes[result].sources[0]
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
            if node.op not in VIEW_OPS and node.op not in COPY_OPS:
                return None
            source = node.sources[0]
        return source if source in self.tensors else None


class _HookFinder:
    """Chooses the hook points.

    All that read a tensor of the file are among them, so everything between two hook points is
    computed without any of the file's numbers: with the values at the hook points replaced by
    the reference's, what is between cannot differ. The rest (attention, activations,
    residual sums, recurrent states) shows where drift passes.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        norms: tuple[NormPlan, ...],
        finder: _NormFinder,
        unfused_norms: bool,
        *,
        alone: bool,
    ) -> None:
        self.nodes, self.tensor = nodes, finder.tensor
        self.outputs = {n.output for n in norms}
        self.inputs = {n.input for n in norms}
        # What lies inside a norm is no hook point: the engine may fuse it (RMS_NORM + MUL).
        self.inside = {i for n in norms for i in range(n.norm, n.output)} - self.inputs
        self.cores = {n.norm for n in norms} if unfused_norms else set()
        self.labelled_attention = any(_ATTENTION.search(n.key) for n in nodes)
        self.alone = alone

    def find(self, idle: Container[int]) -> tuple[HookPoint, ...]:
        """All but nodes that bear on no result."""
        hooks = []
        for node in self.nodes:
            if not is_readable(node.dtype) or node.index in idle:
                continue
            tensors = [t for t in map(self.tensor, node.sources) if t]
            role = self.role(node, bool(tensors))
            if role is None:
                continue
            # A reshape shows its source's values as they lie; other views may not.
            own = node.op not in VIEW_OPS or node.op == "RESHAPE"
            tensor = tensors[0] if tensors else None
            pin = own and node.dtype == "F32"
            layer = layer_of(tensor) if tensor else layer_of_node(node.key)
            hooks.append(HookPoint(node.index, node.key, node.op, role, tensor, layer, pin))
        return tuple(hooks)

    def role(self, node: Node, reads_file: bool) -> OperationRole | None:
        found = self.chosen_role(node, reads_file)
        return "other" if found is None and self.alone and node.op not in VIEW_OPS else found

    def chosen_role(self, node: Node, reads_file: bool) -> OperationRole | None:
        if node.index in self.outputs or node.index in self.cores:
            return "norm"
        if node.index in self.inside and node.op not in _MATMUL_OPS:
            return None
        computed = node.op not in VIEW_OPS and node.op not in COPY_OPS
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
            return _ATTENTION.search(node.key) is not None
        if node.op == "FLASH_ATTN_EXT":
            return True
        return node.op in _MATMUL_OPS and any(
            isinstance(s, int) and self.nodes[s].op == "SOFT_MAX" for s in node.sources[:2]
        )


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
