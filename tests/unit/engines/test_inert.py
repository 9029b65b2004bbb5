"""Branches of a graph that nothing reads are no hook points."""

from __future__ import annotations

from ggufnorm.engines.base import Node
from ggufnorm.engines.llama.inert import inert_nodes


def graph(*nodes: tuple[str, tuple[int | str, ...]]) -> list[Node]:
    return [
        Node(i, f"n{i}", f"n{i}", op, "F32", (4,), b"", sources, ())
        for i, (op, sources) in enumerate(nodes)
    ]


def test_a_look_up_for_mixed_batches_is_inert() -> None:
    nodes = graph(
        ("GET_ROWS", ("token_embd.weight", "inp_tokens")),
        ("GET_ROWS", ("token_embd.weight", "inp_mixed_tokens")),
        ("DUP", ("inp_mixed_embd",)),
        ("SET_ROWS", (1, "inp_mixed_slots", 2)),
        ("MUL_MAT", ("output.weight", 0)),
    )
    assert inert_nodes(nodes) == {1, 2, 3}


def test_writes_into_caches_and_states_are_not() -> None:
    nodes = graph(
        ("MUL_MAT", ("blk.0.attn_k.weight", "x")),
        ("VIEW", ("cache_k_l0",)),
        ("SET_ROWS", (0, "indices", 1)),
        ("MUL_MAT", ("blk.0.attn_v.weight", "x")),
        ("CPY", (3, "state")),
        ("MUL_MAT", ("output.weight", "x")),
    )
    assert inert_nodes(nodes) == frozenset()


def test_a_write_that_is_read_through_its_target_is_not() -> None:
    nodes = graph(
        ("DUP", ("a",)),
        ("CPY", ("b", 0)),
        ("ADD", (0, "c")),
    )
    assert inert_nodes(nodes) == frozenset()
