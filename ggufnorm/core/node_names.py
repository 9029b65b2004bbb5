"""What llama.cpp's labels of graph nodes stand for, in words."""

from __future__ import annotations

import re

_LABEL = re.compile(r"(?P<name>[A-Za-z_]\w*?)(?:-(?P<layer>\d+))?(?:@.*)?")

_WORDS = {
    "inp_embd": "the embedding of the tokens",
    "attn_norm": "the norm before the attention",
    "attn_post_norm": "the norm behind the attention",
    "Qcur": "queries", "Kcur": "keys", "Vcur": "values",
    "Qcur_normed": "normalized queries", "Kcur_normed": "normalized keys",
    "kq": "products of queries and keys", "kq_soft_max": "weights of the attention",
    "kqv": "the attention's sums of values", "kqv_out": "the attention, before its output matrix",
    "attn_out": "the attention's output", "kqv_wo": "the attention's output",
    "sa_out": "the residual stream behind the attention",
    "ffn_inp": "the residual stream behind the attention",
    "attn_residual": "the residual stream behind the attention",
    "ffn_norm": "the norm before the feed-forward network",
    "ffn_post_norm": "the norm behind the feed-forward network",
    "ffn_up": "the feed-forward network's up projection",
    "ffn_gate": "the feed-forward network's gate",
    "ffn_gate_par": "the feed-forward network's activation",
    "ffn_swiglu": "the feed-forward network's activation",
    "ffn_geglu": "the feed-forward network's activation",
    "ffn_down": "the feed-forward network's output",
    "ffn_out": "the feed-forward network's output",
    "ffn_moe_logits": "the router's scores", "ffn_moe_probs": "the router's probabilities",
    "ffn_moe_out": "the experts' output", "ffn_moe_down": "each expert's output",
    "ffn_shexp": "the shared expert's output",
    "l_out": "the residual stream that leaves the layer",
    "result_norm": "the last norm", "result_output": "the logits",
    "result_embd": "the embedding of the text",
}  # fmt: skip
"""Labels that ``llm_graph_context::cb`` gives (``src/llama-graph.cpp``, ``src/models/*.cpp``)."""


def node_words(node: str, tensor: str | None = None) -> str:
    """A node as people know it: ``sa_out-14 (the residual stream behind the attention)``.

    Args:
        node: llama.cpp's label, with its layer.
        tensor: that the node reads; None if it reads none, or if that was said.
    """
    found = _LABEL.fullmatch(node)
    words = _WORDS.get(found["name"]) if found else None
    said = ", ".join(filter(None, (words, tensor)))
    return f"{node} ({said})" if said else node
