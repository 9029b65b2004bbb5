"""Nodes that bear on no result are not watched: graphs as newer llama.cpp builds them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import pytest

from ggufnorm.engines.llama.binding import NodeView, TensorStruct, op_name, type_name
from ggufnorm.engines.llama.graph import build_graph

OUTPUT, COMPUTE = 2, 16
WEIGHTS = ("token_embd.weight", "output.weight", "attn.weight")


def number(name: str, of: type) -> int:
    """ggml's number of an operation or a type."""
    names = op_name if of is NodeView else type_name
    return next(i for i in range(200) if names(i) == name)


class Graph:
    """Tensors as ggml holds them, in memory of our own."""

    def __init__(self) -> None:
        self.kept: list[TensorStruct] = []
        self.nodes: list[int] = []

    def add(
        self, name: str, op: str = "NONE", sources: Sequence[int] = (), *,
        flags: int = COMPUTE, target: int | None = None,
    ) -> int:  # fmt: skip
        t = TensorStruct(name=name.encode(), type=number("F32", TensorStruct), flags=flags)
        t.op = number(op, NodeView)
        t.ne[:] = (4, 2, 1, 1)
        for i, source in enumerate(sources):
            t.src[i] = source
        t.view_src = target
        self.kept.append(t)
        address = ctypes.addressof(t)
        if op != "NONE":
            self.nodes.append(address)
        return address

    def hooks(self) -> list[str]:
        views = [NodeView.at(address) for address in self.nodes]
        return [h.key for h in build_graph(views, WEIGHTS).hooks]


def ordinary(flags: int = COMPUTE, result: str = "result_output") -> tuple[Graph, int]:
    """A look-up of tokens, a matrix product, the logits; the graph and its embedding."""
    g = Graph()
    embedding = g.add("token_embd.weight")
    ids = g.add("inp_tokens")
    looked_up = g.add("embd", "GET_ROWS", [embedding, ids], flags=flags)
    hidden = g.add("attn", "MUL_MAT", [g.add("attn.weight"), looked_up], flags=flags)
    g.add(result, "MUL_MAT", [g.add("output.weight"), hidden], flags=flags)
    return g, embedding


@pytest.mark.parametrize("flags", [COMPUTE, 0])
def test_all_that_leads_to_the_logits_is_watched(flags: int) -> None:
    g, _ = ordinary(flags)
    assert g.hooks() == ["embd", "attn", "result_output"]


def test_a_second_look_up_that_nothing_reads_is_not_watched() -> None:
    g, embedding = ordinary()
    mixed = g.add("mixed", "GET_ROWS", [embedding, g.add("inp_mixed_tokens")])
    g.add("scaled", "MUL_MAT", [g.add("attn.weight"), mixed])
    assert g.hooks() == ["embd", "attn", "result_output"]


def test_a_source_that_was_not_chosen_is_not_watched() -> None:
    g, embedding = ordinary()
    other = g.add("mixed", "GET_ROWS", [embedding, g.add("inp_mixed_tokens")], flags=0)
    ids = g.add("inp_more")
    chosen = g.add("embd_too", "GET_ROWS", [embedding, ids])
    g.add("result_norm", "ADD", [chosen, other])
    assert g.hooks() == ["embd", "attn", "result_output", "embd_too", "result_norm"]


def test_what_is_written_into_a_cache_is_watched() -> None:
    g, _ = ordinary()
    keys = g.add("k", "MUL_MAT", [g.add("attn.weight"), g.nodes[0]])
    cache = g.add("cache_k_l0")
    g.add("k_written", "CPY", [keys, cache], target=cache)
    assert "k" in g.hooks()


def test_a_node_marked_as_output_is_a_result() -> None:
    g, embedding = ordinary()
    g.add("aux", "GET_ROWS", [embedding, g.add("inp_aux")], flags=COMPUTE | OUTPUT)
    assert "aux" in g.hooks()


def test_a_graph_that_names_no_result_is_watched_whole() -> None:
    g, embedding = ordinary(result="out")
    g.add("mixed", "GET_ROWS", [embedding, g.add("inp_mixed_tokens")])
    assert g.hooks() == ["embd", "attn", "out", "mixed"]
