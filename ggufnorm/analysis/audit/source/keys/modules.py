"""What sentence-transformers runs behind the network, beside what the file holds.

Made of ``EmbeddingGemma`` in ``conversion/gemma.py``: dense layers behind the pooling are
converted only when asked for (``--sentence-transformers-dense-modules``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ggufnorm.analysis.audit.source.keys.facts import Configs
from ggufnorm.errors import InputError

_DENSE = "Dense"
_MOST = 32


@dataclass(frozen=True)
class LostModules:
    """Modules of the source that the file has nothing of.

    Attributes:
        paths: their folders.
        message: one sentence.
    """

    paths: tuple[str, ...]
    message: str


def dense_modules(c: Configs) -> tuple[str, ...] | None:
    """Folders of the dense layers behind the pooling; None without ``modules.json``."""
    try:
        text = c.source.read_text("modules.json")
        found = None if text is None else json.loads(text)
    except (InputError, ValueError, RecursionError):
        return None
    if not isinstance(found, list):
        return None
    rows = [m for m in found[:_MOST] if isinstance(m, dict)]
    return tuple(
        str(m.get("path", "")) for m in rows if str(m.get("type", "")).rpartition(".")[2] == _DENSE
    )


def lost_modules(c: Configs, paths: Sequence[str]) -> LostModules | None:
    """The dense layers, if the file has fewer of them."""
    held = [n for n in c.file.tensors if n.startswith("dense_") and n.endswith(".weight")]
    if len(held) >= len(paths):
        return None
    names = " and ".join(paths[:4])
    message = (
        f"modules.json has {names} behind the pooling, and the file holds"
        f" {len(held) or 'none'} of them: embeddings are those before these layers"
    )
    return LostModules(tuple(paths), message)
