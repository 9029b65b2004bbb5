"""Small networks exported by torch, and what ONNX Runtime's tools make of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper, version_converter
from torch import nn

WIDTH, HEADS, VOCABULARY, TOKENS = 32, 4, 100, 16
OUTLIERS = (5, 17)
"""Channels of the first block's last matrix that are stretched in a network with outliers."""


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (
            f(x).view(b, t, HEADS, d // HEADS).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        a = torch.softmax(q @ k.transpose(-1, -2) / (d // HEADS) ** 0.5, -1) @ v
        x = self.norm1(x + self.o(a.transpose(1, 2).reshape(b, t, d)))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Embeds ids, and gives a state for each and their mean."""

    def __init__(self, n_layers: int = 2, outlier: float | None = None) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(_Block() for _ in range(n_layers))
        for name, p in self.named_parameters():
            if "norm" in name:
                p.data += 0.3 * torch.randn_like(p)
        if outlier is not None:
            for channel in OUTLIERS:
                self.layers[0].down.weight.data[:, channel] *= outlier

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.emb(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x, x.mean(1)


class Convolutions(nn.Module):
    """Convolutions with batch norms, one of them depthwise, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 32, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x)


def export(network: nn.Module, path: Path, *, dynamo: bool = False, opset: int = 17) -> Path:
    """Write a network as torch exports it."""
    encoder = isinstance(network, Encoder)
    example = torch.randint(0, VOCABULARY, (1, TOKENS)) if encoder else torch.randn(1, 3, 32, 32)
    names: dict[str, Any] = {
        "input_names": ["input_ids" if encoder else "x"],
        "output_names": ["hidden", "pooled"] if encoder else ["y"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (example,), str(path), dynamo=dynamo, opset_version=opset, **names
        )
    return path


class _Calibration:
    """Inputs like those that are run."""

    def __init__(self, encoder: bool, n: int = 32) -> None:
        self._inputs = iter([_sample(encoder, seed) for seed in range(n)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)


def _sample(encoder: bool, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    if encoder:
        return {"input_ids": rng.integers(0, VOCABULARY, (1, TOKENS))}
    return {"x": rng.standard_normal((1, 3, 32, 32)).astype(np.float32)}


def dynamic(ref: Path, out: Path, **options: Any) -> Path:
    """Integers with scales taken from each input."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly():
        quantize_dynamic(ref, out, **{"weight_type": QuantType.QInt8, **options})
    return out


def static(ref: Path, out: Path, **options: Any) -> Path:
    """Integers with stored scales, in the QDQ format unless asked otherwise."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(_Calibration, CalibrationDataReader):
        pass

    encoder = onnx.load(ref).graph.input[0].name == "input_ids"
    with _quietly():
        quantize_static(ref, out, Reader(encoder), **{"weight_type": QuantType.QInt8, **options})
    return out


def four_bits(ref: Path, out: Path) -> Path:
    """Matrices in blocks of 4 bits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quietly():
        quantizer = MatMulNBitsQuantizer(onnx.load(ref), block_size=16, is_symmetric=True)
        quantizer.process()
        quantizer.model.save_model_to_file(str(out))
    return out


def half(ref: Path, out: Path) -> Path:
    """Half precision."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quietly():
        onnx.save(convert_float_to_float16(onnx.load(ref)), out)
    return out


def fused(ref: Path, out: Path) -> Path:
    """The transformers optimizer's: Attention, SkipLayerNormalization, BiasGelu."""
    from onnxruntime.transformers.optimizer import optimize_model

    with _quietly():
        model = optimize_model(str(ref), "bert", num_heads=HEADS, hidden_size=WIDTH, opt_level=1)
        model.save_model_to_file(str(out))
    return out


def opset(ref: Path, out: Path, version: int) -> Path:
    """The same graph in another opset."""
    onnx.save(version_converter.convert_version(onnx.load(ref), version), out)
    return out


class _quietly:  # noqa: N801
    """Without what these tools log and warn of."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)

    def __exit__(self, *failure: object) -> None:
        logging.disable(logging.NOTSET)
        self._warnings.__exit__(None, None, None)


# -- planted faults --------------------------------------------------------------------------


def edited(path: Path, out: Path, edit: Callable[[Any], None]) -> Path:
    """A copy of a file with an edit."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, out)
    return out


def node(model: Any, name: str) -> Any:
    return next(n for n in model.graph.node if n.name == name)


def change(model: Any, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    """Another value of an initializer, in its type."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor)
    new = np.asarray(how(values.copy())).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(new, name))


def set_attribute(model: Any, name: str, attribute: str, value: float | int | list[int]) -> None:
    where = node(model, name)
    kept = [a for a in where.attribute if a.name != attribute]
    del where.attribute[:]
    where.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value)])


def matrices(model: Any) -> Iterator[str]:
    for t in model.graph.initializer:
        if len(t.dims) == 2:
            yield t.name
