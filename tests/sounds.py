"""Sounds, feature extractors' folders and tiny audio encoders (mmproj) for the tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

RATE = 16_000
_WIDTH, _HEADS, _POSITIONS = 16, 2, 1500


def sound(seconds: float = 2.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Syllables of a falling voice over some hiss, between pauses, as speech has; float64."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(k * phase + k) / k**0.8 for k in range(1, 30))
    syllables = np.maximum(0, np.sin(2 * np.pi * 3.1 * t)) ** 2
    samples = syllables * (voice + 0.2 * rng.normal(size=len(t))) + 1e-4 * rng.normal(size=len(t))
    return 0.5 * samples / np.abs(samples).max()


def write_wav(
    path: Path, samples: np.ndarray, rate: int = RATE, dtype: str = "<i2", code: int | None = None
) -> Path:
    """A WAV file of samples from -1 to 1, ``(n,)`` or ``(n, channels)``.

    Args:
        path: where.
        samples: float.
        rate: in Hz.
        dtype: NumPy's, little-endian; integers are scaled to their range.
        code: the format's, by default 1 for integers and 3 for floats.
    """
    kind = np.dtype(dtype)
    if kind.kind == "i":
        samples = np.round(samples * (2 ** (8 * kind.itemsize - 1) - 1))
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    data = samples.astype(kind).tobytes()
    frame = channels * kind.itemsize
    code = {"i": 1, "f": 3, "u": 1}[kind.kind] if code is None else code
    fmt = struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, 8 * kind.itemsize)
    body = b"WAVE" + b"".join(
        name + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2)
        for name, part in ((b"fmt ", fmt), (b"LIST", b"INFOodd"), (b"data", data))
    )
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def write_extractor(folder: Path, **entries: Any) -> Path:
    """A folder with ``preprocessor_config.json``; by default Whisper's."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80,
        "sampling_rate": RATE,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
    } | entries
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_audio_mmproj(
    path: Path, n_mel: int = 80, projector: str = "qwen2a", width: int = _WIDTH
) -> Path:
    """An audio encoder of one block with random weights.

    Args:
        path: where.
        n_mel: its ``clip.audio.num_mel_bins``.
        projector: ``qwen2a``, ``qwen3a`` or ``ultravox``.
        width: of its states.
    """
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool(gguf.Keys.Clip.HAS_AUDIO_ENCODER, True)
    writer.add_clip_projector_type(projector)
    writer.add_audio_num_mel_bins(n_mel)
    writer.add_audio_projection_dim(width)
    writer.add_audio_embedding_length(width)
    writer.add_audio_feed_forward_length(2 * width)
    writer.add_audio_block_count(1)
    writer.add_audio_head_count(_HEADS)
    writer.add_audio_attention_layernorm_eps(1e-5)
    writer.add_audio_stack_factor(2)

    def matrix(name: str, *shape: int, dtype: type[np.floating] = np.float32) -> None:
        writer.add_tensor(name, rng.normal(0, 0.1, shape).astype(dtype))

    def linear(name: str, rows: int, columns: int) -> None:
        matrix(f"{name}.weight", rows, columns)
        matrix(f"{name}.bias", rows)

    if projector == "qwen3a":
        for i, channels in ((1, 1), (2, width), (3, width)):
            matrix(f"a.conv2d.{i}.weight", width, channels, 3, 3, dtype=np.float16)
            matrix(f"a.conv2d.{i}.bias", width)
        matrix("a.conv_out.weight", width, width * n_mel // 8)
    else:
        for i, channels in ((1, n_mel), (2, width)):
            matrix(f"a.conv1d.{i}.weight", width, channels, 3, dtype=np.float16)
            matrix(f"a.conv1d.{i}.bias", width, 1)
    matrix("a.position_embd.weight", _POSITIONS, width)
    for name in ("a.post_ln", "a.blk.0.ln1", "a.blk.0.ln2"):
        matrix(f"{name}.weight", width)
        matrix(f"{name}.bias", width)
    for part in ("attn_q", "attn_v", "attn_out"):
        linear(f"a.blk.0.{part}", width, width)
    matrix("a.blk.0.attn_k.weight", width, width)  # which alone has no bias
    linear("a.blk.0.ffn_up", 2 * width, width)
    linear("a.blk.0.ffn_down", width, 2 * width)
    if projector == "qwen2a":
        linear("mm.a.fc", width, width)
    elif projector == "qwen3a":
        linear("mm.a.mlp.1", width, width)
        linear("mm.a.mlp.2", width, width)
    else:
        matrix("mm.a.mlp.1.weight", 2 * width, 2 * width)
        matrix("mm.a.mlp.2.weight", width, width)
        matrix("mm.a.norm_pre.weight", 2 * width)
        matrix("mm.a.norm_mid.weight", width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
