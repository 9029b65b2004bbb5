"""Labels of graph nodes, in words."""

from __future__ import annotations

import pytest

from ggufnorm.core.node_names import node_words


@pytest.mark.parametrize(
    ("node", "tensor", "words"),
    [
        ("sa_out-14", None, "sa_out-14 (the residual stream behind the attention)"),
        ("ffn_norm-3", "blk.3.ffn_norm.weight",
         "ffn_norm-3 (the norm before the feed-forward network, blk.3.ffn_norm.weight)"),
        ("result_norm", None, "result_norm (the last norm)"),
        ("l_out-4@2", None, "l_out-4@2 (the residual stream that leaves the layer)"),
        ("node_31", None, "node_31"),
        ("node_31", "blk.0.x.weight", "node_31 (blk.0.x.weight)"),
        ("", None, ""),
    ],
)  # fmt: skip
def test_a_node_comes_with_what_it_is(node: str, tensor: str | None, words: str) -> None:
    assert node_words(node, tensor) == words
