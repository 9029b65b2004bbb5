"""torch and transformers, which may not be installed."""

from __future__ import annotations

from typing import Any

from ggufnorm.engines.pretrained import quiet
from ggufnorm.errors import EngineMissingError


def require_torch() -> tuple[Any, Any]:
    """The modules torch and transformers.

    Raises:
        EngineMissingError: one of them is not installed.
    """
    try:
        with quiet():
            import torch
            import transformers
    except ImportError as error:
        raise EngineMissingError(
            f"running a Hugging Face model needs torch and transformers ({error}):"
            ' pip install "ggufnorm[hf]"'
        ) from None
    return torch, transformers
