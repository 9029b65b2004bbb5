"""What a checkpoint without predictions gives for a text: an embedding, or a score."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ggufnorm.core.observed import Array, SourceOutput
from ggufnorm.engines.hf.model import HFModel, Tokens
from ggufnorm.engines.hf.norms import as_array
from ggufnorm.engines.pretrained import quiet

_MODES = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last", "pooling_mode_max_tokens": "max",
    "pooling_mode_weightedmean_tokens": "weighted mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean by the root of the length",
}  # fmt: skip
"""Sentence Transformers' names (``1_Pooling/config.json``)."""
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


def source_output(model: HFModel, tokens: Tokens) -> SourceOutput:
    """The states of the last layer, how the checkpoint pools them, and its score.

    Args:
        model: to run.
        tokens: ids.
    """
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    with quiet(), torch.inference_mode():
        found = model.model.base_model(**model.inputs(tokens))
    states = getattr(found, "last_hidden_state", None)
    folder = Path(model.folder)
    made_for = getattr(model.model.config, "architectures", None) or ()
    scores = [name for name in made_for if name.endswith("ForSequenceClassification")]
    score, head = _score(model, ids) if scores else (None, {})
    return SourceOutput(
        states=None if states is None else as_array(states[0]),
        pooling=_pooling(folder),
        modules=_more_modules(folder),
        classifier=scores[0] if scores else None,
        score=score,
        head=head,
        normalizes=_normalizes(folder),
    )


def _score(model: HFModel, ids: torch.Tensor) -> tuple[Array | None, dict[str, Array]]:
    """The scores of a text, and the weights behind the network that make them."""
    try:
        with quiet(), torch.inference_mode():
            loaded: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
                model.folder,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
            ).eval()
            logits = loaded(input_ids=ids).logits
    except Exception:  # whatever a library or a model's own code raises
        return None, {}
    inner = {id(p) for n, p in loaded.base_model.named_parameters() if not n.startswith("pooler")}
    head = {n: as_array(p) for n, p in loaded.named_parameters() if id(p) not in inner}
    return as_array(logits[0]), head


def _pooling(folder: Path) -> str | None:
    stated = _json(folder / "1_Pooling" / "config.json")
    if not isinstance(stated, Mapping):
        return None
    if isinstance(stated.get("pooling_mode"), str):
        return str(stated["pooling_mode"]).replace("lasttoken", "last")
    return next((mode for key, mode in _MODES.items() if stated.get(key) is True), None)


def _more_modules(folder: Path) -> tuple[str, ...]:
    """Sentence Transformers' modules that are no network, pooling or normalization."""
    stated = _json(folder / "modules.json")
    return tuple(_others(stated)) if isinstance(stated, list) else ()


def _normalizes(folder: Path) -> bool | None:
    stated = _json(folder / "modules.json")
    if not isinstance(stated, list):
        return None
    kinds = (str(m.get("type", "")) for m in stated if isinstance(m, dict))
    return any(kind.rpartition(".")[2] == "Normalize" for kind in kinds)


def _others(modules: list[Any]) -> Iterator[str]:
    for module in modules:
        kind = str(module.get("type", "")) if isinstance(module, dict) else ""
        if kind and kind.rpartition(".")[2] not in _KNOWN_MODULES:
            yield kind.rpartition(".")[2]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
