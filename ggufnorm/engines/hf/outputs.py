"""What a checkpoint without predictions gives for a text: an embedding, or a score."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from ggufnorm.core.observed import Array, SourceOutput
from ggufnorm.engines.hf.model import HFModel, Tokens
from ggufnorm.engines.hf.norms import as_array
from ggufnorm.engines.hf.padding import padded_output
from ggufnorm.engines.hf.sentence import sentence_modules
from ggufnorm.engines.pretrained import quiet

_ANSWERS = ("yes", "no")
"""What a reranker that predicts answers (``_find_rerank_config`` in ``conversion/qwen.py``)."""


def source_output(model: HFModel, tokens: Tokens, predicted: Array | None = None) -> SourceOutput:
    """The states of the last layer, how the checkpoint pools them, and its score.

    Args:
        model: to run.
        tokens: ids.
        predicted: its logits behind the last token; None of a model that predicts nothing.
    """
    with quiet(), torch.inference_mode():
        found = model.model.base_model(**model.inputs(tokens))
    states = getattr(found, "last_hidden_state", None)
    behind = sentence_modules(Path(model.folder))
    made_for = getattr(model.model.config, "architectures", None) or ()
    scores = [name for name in made_for if name.endswith("ForSequenceClassification")]
    scorer = _scorer(model) if scores else None
    score, head = (None, {}) if scorer is None else _score(scorer, model.inputs(tokens))
    # What only predicts is not used with padding.
    pools = score is not None or behind.pooling is not None or predicted is None
    return SourceOutput(
        states=None if states is None else as_array(states[0]),
        pooling=behind.pooling,
        modules=behind.others,
        classifier=scores[0] if scores else None,
        score=score,
        head=head,
        normalizes=behind.normalizes,
        dense=behind.dense,
        padded=padded_output(model, tokens, scorer) if pools else None,
        typed=None if score is None else _typed(model, scorer, tokens),
        labels=_labels(model),
        predicted=predicted,
        unread=_unread(model, head),
        made_for=made_for[0] if made_for else None,
    )


def _unread(model: HFModel, head: Mapping[str, Any]) -> tuple[str, ...]:
    """Tensors that neither the network nor the head that was run has.

    A head for another purpose, such as the one of BERT's training, is none that users miss.
    """
    of_head = (*head, *_OF_TRAINING)
    return tuple(n for n in model.unread if not n.endswith(of_head) and not _IS_HEAD.match(n))


_OF_TRAINING = ("position_ids", "inv_freq", "masked_bias", "num_batches_tracked")
"""Ends of names of what no result depends on."""
_IS_HEAD = re.compile(
    r"(.*\.)?(cls|lm_head|pooler|score|classifier|qa_outputs|vocab_transform|mtp)\."
)
"""What the classes for predictions, scores and answers have; those that matter are told apart."""


def _scorer(model: HFModel) -> Any | None:
    """The checkpoint with its head; None where Transformers does not load that."""
    try:
        with quiet():
            return transformers.AutoModelForSequenceClassification.from_pretrained(
                model.folder,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
            ).eval()
    except Exception:  # whatever a library or a model's own code raises
        return None


def _score(scorer: Any, inputs: dict[str, Any]) -> tuple[Array | None, dict[str, Array]]:
    """The scores of a text, and the weights behind the network that make them."""
    try:
        with quiet(), torch.inference_mode():
            logits = scorer(**inputs).logits
    except Exception:  # whatever a library or a model's own code raises
        return None, {}
    inner = {id(p) for n, p in scorer.base_model.named_parameters() if not n.startswith("pooler")}
    head = {n: as_array(p) for n, p in scorer.named_parameters() if id(p) not in inner}
    return as_array(logits[0]), head


def _typed(model: HFModel, scorer: Any, tokens: Tokens) -> Array | None:
    """The score where the second half is a second text; None where that has no type of its own."""
    n_types = getattr(scorer.config, "type_vocab_size", 0) or 0
    if n_types < 2 or not (model.tokenizer is None or model.tokenizer.gives_types):
        return None
    types = torch.zeros((1, len(tokens)), dtype=torch.long)
    types[:, len(tokens) // 2 :] = 1
    return _score(scorer, {**model.inputs(tokens), "token_type_ids": types})[0]


def _labels(model: HFModel) -> dict[str, int]:
    if model.tokenizer is None:
        return {}
    ids = {answer: model.tokenizer.id_of(answer) for answer in _ANSWERS}
    return {answer: i for answer, i in ids.items() if i is not None and i < model.n_vocab}
