"""What llama.cpp's graph of an architecture fixes, whatever the config says.

Facts of ``build_ffn`` in ``src/models/*.cpp``: the activation of the feed-forward network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggufnorm.analysis.audit.source.keys.facts import Configs

_SILU = """
afmoe arctic baichuan bailingmoe bailingmoe2 chameleon cohere2 command-r dbrx deepseek deepseek2
deepseek32 dots1 dream ernie4_5 ernie4_5-moe exaone exaone4 exaone-moe falcon-h1 glm4moe granite
granitemoe granitehybrid grovemoe hunyuan-dense hunyuan-moe internlm2 jais jamba kimi-linear laguna
lfm2 lfm2moe llada llada-moe llama llama4 mellum minicpm minicpm3 minimax-m2 mistral3 olmo olmo2
olmoe orion phi3 phimoe plamo qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next
qwen3vl qwen3vlmoe refact rnd1 seed-oss smollm3 stablelm xverse
"""
_GELU = """
bert bloom codeshell falcon gemma gemma2 gemma3 gemma4 gemma-embedding gpt2 gptneox grok phi2
starcoder starcoder2
"""
_SQUARED_RELU = "arcee jais2 nemotron nemotron_h plm"

_FIXED = {
    architecture: kind
    for kind, names in (("silu", _SILU), ("gelu", _GELU), ("relu2", _SQUARED_RELU))
    for architecture in names.split()
}

_NAMES = {"silu": ("silu", "swish", "swiglu"), "relu2": ("relu2", "relu_squared", "squared_relu")}
"""What configs call them; GELU has many names for approximations that differ little."""

_WORDS = {"silu": "SiLU", "gelu": "GELU", "relu2": "squared ReLU"}


@dataclass(frozen=True)
class Fixed:
    """An option of the config that llama.cpp's graph does not follow.

    Attributes:
        option: of config.json.
        message: one sentence.
        is_grave: whether every text is computed otherwise.
    """

    option: str
    message: str
    is_grave: bool


def fixed_options(c: Configs) -> Iterator[Fixed]:
    """Options that the graph of the file's architecture does not have."""
    yield from _activation(c)
    window = c.first("sliding_window")
    if (
        c.flag("use_sliding_window") is True
        and window is not None
        and isinstance(window[1], int)
        and window[1] < (c.file.metadata.integer(c.key("context_length")) or 0)
        and not c.reads("attention.sliding_window")
    ):
        message = (
            f"config.json has use_sliding_window true: llama.cpp's {c.architecture} attends to all"
            f" positions, so texts of more than {window[1]:,} tokens are computed otherwise"
        )
        yield Fixed("use_sliding_window", message, False)


def _activation(c: Configs) -> Iterator[Fixed]:
    kind = _FIXED.get(c.architecture)
    # Where a config has both, hidden_activation is what the model's class reads.
    said = c.first("hidden_activation", "hidden_act", "activation_function")
    if kind is None or said is None or not isinstance(said[1], str):
        return
    name = said[1].lower()
    known = any(name in names for names in _NAMES.values()) or "gelu" in name or name == "relu"
    right = name in _NAMES.get(kind, ()) or (kind == "gelu" and name.startswith("gelu"))
    if known and not right:
        message = (
            f"config.json has {said[0]} {said[1]}: llama.cpp's {c.architecture} computes"
            f" {_WORDS[kind]}"
        )
        yield Fixed(said[0], message, True)
