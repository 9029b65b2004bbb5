"""Feature extractors with front ends of their own, and what pipelines do wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ggufnorm.core.front_ends import FrontEnd, Logarithm, Scaling

EXTRACTORS: dict[str, dict[str, Any]] = {
    "Gemma3nAudioFeatureExtractor": {"feature_size": 128},
    "Gemma4AudioFeatureExtractor": {"feature_size": 128},
    "ParakeetFeatureExtractor": {"feature_size": 80, "n_fft": 512, "win_length": 400},
    "SeamlessM4TFeatureExtractor": {"feature_size": 80, "num_mel_bins": 80, "stride": 2},
    "Speech2TextFeatureExtractor": {"feature_size": 80, "num_mel_bins": 80},
    "ASTFeatureExtractor": {"feature_size": 1, "num_mel_bins": 128, "max_length": 300},
}
"""Configurations by class."""

Wrong = Callable[[FrontEnd], FrontEnd]


def of_mel(**changed: Any) -> Wrong:
    """Energies computed otherwise."""
    return lambda f: replace(f, mel=replace(f.mel, **changed))


def of_bank(**changed: Any) -> Wrong:
    """Another filter bank."""
    return lambda f: replace(f, mel=f.mel.with_bank(replace(f.mel.bank, **changed)))


def of_log(**changed: Any) -> Wrong:
    """Another logarithm."""
    return lambda f: replace(f, log=replace(f.log, **changed))


def of_scaling(scaling: Scaling) -> Wrong:
    """Another scaling."""
    return lambda f: replace(f, scaling=scaling)


def wrong(front: FrontEnd) -> dict[str, Wrong]:
    """Mistakes by name that show with that formula."""
    bins = front.scaling.kind == "bins"
    found: dict[str, Wrong] = {
        "mel-scale-of-another": of_bank(scale="slaney" if front.mel.bank.scale == "htk" else "htk"),
        "window-missing": of_mel(window="none"),
        "window-of-another": of_mel(window="hamming"),
        "magnitudes" if front.mel.power == 2 else "squares": of_mel(power=3 - front.mel.power),
    }
    if not bins:
        found["common-logarithm"] = of_log(base="10")
        name = "mel-normalized" if not front.mel.bank.area else "mel-not-normalized"
        found[name] = of_bank(area=not front.mel.bank.area)
        found["logarithm-missing"] = lambda f: replace(f, log=Logarithm("none"))
        found["normalized"] = of_scaling(Scaling("bins"))
    if front.mel.preemphasis:
        found["pre-emphasis-missing"] = of_mel(preemphasis=0.0)
    if front.scaling.kind != "none":
        found["not-normalized"] = of_scaling(Scaling())
        found["normalized-over-all"] = of_scaling(Scaling("all", unbiased=False))
    return found


def write_front_end_mmproj(path: Path, projector: str, n_mel: int) -> Path:
    """An audio encoder with as few blocks as mtmd loads, for what it is fed.

    Args:
        path: where.
        projector: ``gemma4ua``, ``gemma4a`` or ``lfm2a``.
        n_mel: its ``clip.audio.num_mel_bins``.
    """
    rng, width, channels = np.random.default_rng(0), 512, 4
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool(gguf.Keys.Clip.HAS_AUDIO_ENCODER, True)
    writer.add_clip_projector_type(projector)
    writer.add_audio_num_mel_bins(n_mel)
    writer.add_audio_projection_dim(width)
    writer.add_audio_embedding_length(width)
    writer.add_audio_feed_forward_length(width)
    writer.add_audio_block_count(int(projector == "gemma4a"))
    writer.add_audio_head_count(2)
    writer.add_audio_attention_layernorm_eps(1e-5)

    def matrix(name: str, *shape: int, dtype: type[np.floating] = np.float32) -> None:
        writer.add_tensor(name, rng.normal(0, 0.1, shape).astype(dtype))

    if projector == "gemma4ua":
        matrix("mm.a.input_projection.weight", width, 640)
    elif projector == "gemma4a":
        for i, into in ((0, 1), (1, channels)):
            matrix(f"a.conv1d.{i}.weight", channels, into, 3, 3, dtype=np.float16)
            matrix(f"a.conv1d.{i}.norm.weight", channels)
        matrix("a.input_projection.weight", width, channels * n_mel // 4)
        matrix("mm.a.input_projection.weight", width, width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out", "attn_k_rel", "ffn_up", "ffn_down",
                     "ffn_up_1", "ffn_down_1", "conv_pw2"):  # fmt: skip
            matrix(f"a.blk.0.{name}.weight", width, width)
        matrix("a.blk.0.conv_pw1.weight", 2 * width, width)
        matrix("a.blk.0.conv_dw.weight", width, 5)
        for name in ("ffn_norm", "ffn_norm_1", "conv_norm", "norm_conv", "ln1", "ln2"):
            matrix(f"a.blk.0.{name}.weight", width)
    else:
        for i, into, size in ((0, 1, 3), (2, 1, 3), (3, channels, 1), (5, 1, 3), (6, channels, 1)):
            matrix(f"a.conv1d.{i}.weight", channels, into, size, size, dtype=np.float16)
            matrix(f"a.conv1d.{i}.bias", channels, 1, 1)
        matrix("a.pre_encode.out.weight", width, channels * n_mel // 8)
        matrix("a.pre_encode.out.bias", width)
        matrix("a.position_embd.weight", 1000, width)
        matrix("mm.a.mlp.0.weight", width)
        matrix("mm.a.mlp.0.bias", width)
        for i in (1, 3):
            matrix(f"mm.a.mlp.{i}.weight", width, width)
            matrix(f"mm.a.mlp.{i}.bias", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
