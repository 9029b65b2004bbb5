"""Names of the factors between two results."""

from __future__ import annotations

import pytest

from ggufnorm.core.changes import named_factors


def test_a_factor_is_a_number_of_the_configuration_its_root_or_an_inverse() -> None:
    assert named_factors({"hidden_size": 64.0}) == {
        "hidden_size": 64, "1/hidden_size": 1 / 64, "√hidden_size": 8, "1/√hidden_size": 1 / 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["sliding_window", "attention.window", "vocab_size", "bos_token_id", "max_position_embeddings",
     "n_positions", "n_ctx", "rope_theta", "rms_norm_eps", "layer_norm_epsilon",
     "initializer_range", "hidden_dropout", "sliding_window_pattern"],
)  # fmt: skip
def test_what_no_network_multiplies_with_is_no_factor(name: str) -> None:
    assert named_factors({name: 16.0}) == {}


@pytest.mark.parametrize(
    "name",
    ["embedding_multiplier", "query_pre_attn_scalar", "head_dim", "hidden_size", "scale_emb",
     "dim_model_base", "num_hidden_layers", "routed_scaling_factor", "mup_base_width",
     "width_multiplier"],
)  # fmt: skip
def test_what_some_network_multiplies_with_is_one(name: str) -> None:
    assert name in named_factors({name: 16.0})
