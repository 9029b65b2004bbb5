"""A text alone, and beside a longer one in a padded batch. Imported where torch is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import Array, Padded
from ggufnorm.core.tolerances import SAME_DOWNSTREAM
from ggufnorm.engines.hf.model import HFModel, Tokens
from ggufnorm.engines.hf.norms import as_array
from ggufnorm.engines.pretrained import quiet

_FEWEST = 2


def padded_output(model: HFModel, tokens: Tokens, scorer: Any | None) -> Padded | None:
    """What a checkpoint gives for the first half of a text, alone and padded to the whole.

    Args:
        model: whose network makes the states.
        tokens: ids of the longer text.
        scorer: makes scores of a text; None to look at the states.

    Returns:
        None of a text that is too short, and of an encoder-decoder.
    """
    n = len(tokens) // 2
    if n < _FEWEST or model.is_encoder_decoder:
        return None
    side = model.padding_side
    batch, mask = _batch(model, tokens, n, side)
    network = model.model.base_model if scorer is None else scorer
    with quiet(), torch.inference_mode():
        try:
            alone = _result(network, batch[1:, :n], mask[1:, :n], n, side)
            padded = _result(network, batch, mask, n, side)
        except Exception as error:  # whatever a library or a model's own code raises
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return Padded(n, side, None, None, line)
        cause = "" if _is_same(alone, padded) else _cause(model, scorer, batch, mask, n, side)
    return Padded(n, side, alone, padded, cause)


def _batch(model: HFModel, tokens: Tokens, n: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``n`` ids and all of them as one batch; which of it is text."""
    ids = np.full((2, len(tokens)), model.padding_id, np.int64)
    mask = np.zeros_like(ids)
    place = slice(0, n) if side == "right" else slice(len(tokens) - n, None)
    ids[0, place], mask[0, place] = tokens[:n], 1
    ids[1], mask[1] = tokens, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _result(
    network: Any, ids: torch.Tensor, mask: torch.Tensor, n: int, side: str, **more: Any
) -> Array:
    """Scores of the first text of a batch, or the states of its tokens."""
    found = network(input_ids=ids, attention_mask=mask, **more)
    scores = getattr(found, "logits", None)
    if scores is not None:
        return as_array(scores[0])
    states = as_array(found.last_hidden_state[0])
    return states[:n] if side == "right" else states[-n:]


def _is_same(a: Array, b: Array) -> bool:
    return relative_l2(a, b) <= SAME_DOWNSTREAM


def _cause(
    model: HFModel, scorer: Any | None, batch: torch.Tensor, mask: torch.Tensor, n: int, side: str
) -> str:
    """Why padding changes a result, where that can be tried."""
    network = model.model.base_model
    try:
        alone = _result(network, batch[1:, :n], mask[1:, :n], n, side)
        if scorer is not None and _is_same(alone, _result(network, batch, mask, n, side)):
            return (
                "the states of its tokens are the same, but the head takes others:"
                f" pad_token_id {getattr(model.model.config, 'pad_token_id', None)} decides which"
            )
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        if _is_same(alone, _result(network, batch, mask, n, side, position_ids=positions)):
            return "the positions of its tokens count the padding, unless position_ids are given"
    except Exception:  # whatever a library or a model's own code raises
        return ""
    return "its tokens see the padding: the attention mask does not hide it"
