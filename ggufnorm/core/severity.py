"""How bad a divergence is, in a word, by what quantization is known to cost."""

from __future__ import annotations

USUAL_KLD = {"Q8_0": 0.0014, "Q4_K_M": 0.031, "Q2_K": 0.33}
"""Mean KL divergences of Llama 3 8B, in nats: llama.cpp's tools/perplexity/README.md."""

COSTS: dict[str, dict[str, float]] = {
    "Llama 2 7B": {"Q8_0": 0.00037, "Q6_K": 0.0021, "Q4_K_M": 0.0127, "Q2_K": 0.109},
    "Llama 3 8B": {"Q8_0": 0.0014, "Q6_K": 0.0055, "Q4_K_M": 0.0313, "Q2_K": 0.445},
}
"""Mean KL divergences without an importance matrix, in nats: the same page's tables."""

FEW_POSITIONS = 100
"""Fewer scored positions tell no mean: one of them moves it by more than its standard error."""

_WORDS = (
    (1e-5, "none"),
    (COSTS["Llama 3 8B"]["Q8_0"], "negligible"),
    (COSTS["Llama 3 8B"]["Q6_K"], "slight"),
    (COSTS["Llama 3 8B"]["Q4_K_M"], "moderate"),
    (USUAL_KLD["Q2_K"], "large"),
)
"""Mean KL divergences up to which a word holds; above them all it is severe."""


def severity(kld: float) -> str:
    """A mean KL divergence, in nats, in a word, from ``none`` to ``severe``."""
    return next((word for most, word in _WORDS if kld <= most), "severe")
