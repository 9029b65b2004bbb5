"""Matrices that llama.cpp's converter writes in another order than the source's."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ggufnorm.analysis.crosscheck.orders import in_source_order
from ggufnorm.core.matrices import distance
from ggufnorm.core.observed import Array
from ggufnorm.formats.gguf import GGUFFile

HEAD, K_HEADS, V_HEADS, WIDTH = 4, 2, 6, 8
CONFIG = {
    "num_attention_heads": V_HEADS, "num_key_value_heads": K_HEADS, "hidden_size": WIDTH,
    "linear_num_key_heads": K_HEADS, "linear_num_value_heads": V_HEADS,
    "linear_key_head_dim": HEAD, "linear_value_head_dim": HEAD, "head_dim": HEAD,
}  # fmt: skip
QKV = (2 * K_HEADS + V_HEADS) * HEAD
VALUES = V_HEADS * HEAD


def tiled(w: Array) -> Array:
    """V heads of one K head apart, as ``_reorder_v_heads`` (conversion/qwen.py) has them."""
    return w.reshape(K_HEADS, V_HEADS // K_HEADS, HEAD, -1).swapaxes(0, 1).reshape(w.shape)


def qkv_tiled(w: Array) -> Array:
    begin = 2 * K_HEADS * HEAD
    return np.concatenate([w[:begin], tiled(w[begin:])])


def regrouped(w: Array) -> Array:
    """Queries, keys and values of all heads, of those of each (``GPTNeoXModel``)."""
    return w.reshape(V_HEADS, 3, HEAD, -1).swapaxes(0, 1).reshape(w.shape)


CASES = {
    "qwen35 attn_qkv": ((QKV, WIDTH), qkv_tiled),
    "qwen35 attn_gate": ((VALUES, WIDTH), tiled),
    "qwen35 ssm_out": ((WIDTH, VALUES), lambda w: tiled(w.T).T),
    "qwen4exp attn_gate": ((VALUES, WIDTH), tiled),
    "gptneox attn_qkv": ((3 * VALUES, WIDTH), regrouped),
    "bloom attn_qkv": ((3 * VALUES, WIDTH), regrouped),
}


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_order_of_the_converter_is_undone(case: str, is_known: bool, tmp_path: Path) -> None:
    architecture, role = case.split()
    shape, convert = CASES[case]
    theirs = np.random.default_rng(4).standard_normal(shape, np.float32)
    name = f"blk.0.{role}.weight"
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor(name, convert(theirs))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    known, others = ({name: theirs}, []) if is_known else ({}, [-theirs, theirs])
    with GGUFFile(path) as file:
        for factor in (1.0, 1.5):  # an error does not hide the order
            ours = np.float32(factor) * convert(theirs)
            found = in_source_order(file, CONFIG, {name: ours}, known, others)[name]
            assert np.array_equal(found, np.float32(factor) * theirs)
        # Neither an order that no converter makes is mended, nor one that it did not make.
        for wrong in (theirs[:, ::-1], theirs):
            found = in_source_order(file, CONFIG, {name: wrong}, known, others)[name]
            assert distance(found, theirs) > 0.5
