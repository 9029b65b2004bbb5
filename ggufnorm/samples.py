"""The bundled model and text, a picture and a sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError, TextError


def sample_path(name: str) -> Path:
    """Where a bundled file lies: in the installed package, or in a source tree.

    Raises:
        InputError: it is in neither.
    """
    package = Path(__file__).parent
    for folder in (package / "data", package.parent / "samples"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"the bundled file {name} is missing: reinstall ggufnorm")


def sample_model() -> Path:
    """The bundled F16 model (samples/README.md tells how it was trained)."""
    return sample_path("sotu-f16.gguf")


def default_text() -> str:
    """The bundled text, which the sample model has not seen: about 16,000 tokens for it."""
    return sample_path("heldout.txt").read_text(encoding="utf-8")


def default_picture() -> NDArray[np.uint8]:
    """Levels of a picture of slopes, waves and edges, ``(256, 256, 3)``, always the same."""
    y, x = np.mgrid[0:1:256j, 0:1:256j]
    channels = [
        x + 0.2 * np.sin(11 * y),
        y + 0.2 * np.sin(17 * x),
        1 - (x + y) / 2 + 0.2 * np.cos(13 * x * y),
    ]
    picture: NDArray[np.uint8] = np.clip(255 * np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
    picture[64:128, 96:160] = (230, 40, 90)
    return picture


DEFAULT_RATE = 16_000
"""Samples a second of the sound, as most audio encoders take them."""


def default_sound() -> NDArray[np.float32]:
    """Two seconds of a falling voice in syllables, over hiss, always the same."""
    rng = np.random.default_rng(0)
    t = np.arange(2 * DEFAULT_RATE) / DEFAULT_RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / DEFAULT_RATE
    voice = np.sum([np.sin(k * phase + k) / k**0.8 for k in range(1, 30)], axis=0)
    syllables = np.maximum(0, np.sin(2 * np.pi * 3.1 * t)) ** 2
    samples = syllables * (voice + 0.2 * rng.normal(size=len(t))) + 1e-3 * rng.normal(size=len(t))
    sound: NDArray[np.float32] = (0.5 * samples / np.abs(samples).max()).astype(np.float32)
    return sound


def text_to_run(text: str | None, name: str) -> tuple[str, str]:
    """A text and what reports call it.

    Args:
        text: None for the bundled one.
        name: what its owner calls it.

    Raises:
        TextError: it is empty.
    """
    if text is None:
        return default_text(), "bundled: State of the Union addresses"
    if not text.strip():
        raise TextError(f"{name}: the text is empty")
    return text, name
