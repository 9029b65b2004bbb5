"""Networks of Transformers' classes, exported in every form: all agree with each other.

``python -m tests.frameworks.onnx_exports`` compares all of them, which takes minutes; the tests
take a few.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
import transformers as t

from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.core.frameworks import EngineComparison

Level = onnxruntime.GraphOptimizationLevel
N_TOKENS = 16


class _Result(torch.nn.Module):
    """One result of a model."""

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.m, self.name = model, name

    def forward(self, *given: Any) -> Any:
        if len(given) > 1:
            return self.m(input_ids=given[0], attention_mask=given[1])[self.name]
        return self.m(*given)[self.name]


def _vision(config: Any, model: Any, name: str = "pooler_output") -> Callable[[], _Result]:
    return lambda: _Result(model(config), name)


_SIZES: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "attn_implementation": "eager",
}  # fmt: skip
_WHISPER: dict[str, Any] = {
    "vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "num_mel_bins": 16, "max_source_positions": 20, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "attn_implementation": "eager",
}  # fmt: skip

NETWORKS: Mapping[str, Callable[[], _Result]] = {
    "resnet": _vision(
        t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        t.ResNetModel),
    "mobilenet": _vision(
        t.MobileNetV2Config(image_size=32, depth_multiplier=0.35), t.MobileNetV2Model),
    "convnext": _vision(
        t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2), t.ConvNextModel),
    "vit": _vision(
        t.ViTConfig(image_size=32, patch_size=8, **_SIZES), t.ViTModel, "last_hidden_state"),
    "swin": _vision(
        t.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 4],
                     window_size=4), t.SwinModel),
    "bert": lambda: _Result(t.BertModel(t.BertConfig(**_SIZES)), "last_hidden_state"),
    "gpt2": lambda: _Result(
        t.GPT2LMHeadModel(t.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2,
                                       use_cache=False, attn_implementation="eager")), "logits"),
    "llama": lambda: _Result(
        t.LlamaForCausalLM(t.LlamaConfig(use_cache=False, **_SIZES)), "logits"),
    "whisper": lambda: _Result(
        t.WhisperModel(t.WhisperConfig(**_WHISPER)).encoder, "last_hidden_state"),
}  # fmt: skip
OF_TEXT = ("bert", "gpt2", "llama")


def build(name: str) -> tuple[_Result, tuple[torch.Tensor, ...]]:
    """A network whose norms are not those it was initialized with, and what it takes."""
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    for key, values in net.state_dict().items():
        if not values.is_floating_point() or values.dim() != 1:
            continue
        if "running_var" in key:
            values.uniform_(0.2, 2)
        elif "running_mean" in key:
            values.normal_(0, 0.3)
        elif "norm" in key.lower() or "ln_" in key:
            values.add_(0.2 * torch.randn_like(values))
    if name in OF_TEXT:
        ids = torch.randint(3, 90, (1, N_TOKENS))
        return net, (ids, torch.ones_like(ids))
    return net, (torch.randn(1, 16, 40) if name == "whisper" else torch.randn(1, 3, 32, 32),)


def exported(name: str, folder: Path, forms: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files of a network; the first two are what the others are compared with.

    Args:
        name: in :data:`NETWORKS`.
        folder: where they are written.
        forms: which; empty for all.
    """
    net, given = build(name)
    names = ["input_ids", "attention_mask"] if name in OF_TEXT else ["pixels"]
    axes = {n: {0: "batch", 1: "tokens"} for n in names} if name in OF_TEXT else None
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    plain = {"input_names": names, "verbose": False}
    legacy = {**plain, "dynamo": False, "dynamic_axes": axes}
    kept = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    made: dict[str, Callable[[Path], object]] = {
        "legacy14": lambda p: torch.onnx.export(net, given, str(p), opset_version=14, **legacy),
        "kept": lambda p: torch.onnx.export(net, given, str(p), opset_version=17, **legacy, **kept),
        "legacy17": lambda p: torch.onnx.export(net, given, str(p), opset_version=17, **legacy),
        "dynamo": lambda p: torch.onnx.export(
            net, given, str(p), dynamo=True, external_data=False, **plain,
            dynamic_shapes=((dims,) * 2,) if name in OF_TEXT else None),
        "basic": lambda p: _optimized(folder / f"{name}-legacy17.onnx", p, Level.ORT_ENABLE_BASIC),
        "extended": lambda p: _optimized(
            folder / f"{name}-legacy17.onnx", p, Level.ORT_ENABLE_EXTENDED),
        "extended14": lambda p: _optimized(
            folder / f"{name}-legacy14.onnx", p, Level.ORT_ENABLE_EXTENDED),
        "half": lambda p: _halved(folder / f"{name}-legacy17.onnx", p),
        "bytes": lambda p: _quantized(folder / f"{name}-legacy17.onnx", p),
    }  # fmt: skip
    for form, make in made.items():
        left_out = form == "dynamo" and name == "swin"  # torch does not decompose its roll
        if left_out or (forms and form not in forms) or (form == "kept" and name in OF_TEXT):
            continue
        path = folder / f"{name}-{form}.onnx"
        make(path)
        yield path


def _optimized(source: Path, path: Path, level: Any) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _halved(source: Path, path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
    onnx.save(half, str(path))


def _quantized(source: Path, path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(source), str(path))


def compared(source: Path, engine: Path) -> EngineComparison:
    (found,) = compare_frameworks(
        str(source), [str(engine)], text="a", n_tokens=N_TOKENS, n_threads=1
    ).comparisons
    return found


def main() -> None:
    """Compare all forms of all networks, and print what is called a mistake."""
    n = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            paths = list(exported(name, Path(folder)))
            for source in paths[: 1 if name in OF_TEXT else 2]:
                for path in paths:
                    found = compared(source, path)
                    n += 1
                    if found.first_wrong or found.unmatched_source or found.unmatched_engine:
                        wrong += 1
                        print(source.stem, path.stem, found.verdict)
    print(f"{n} comparisons, {wrong} mistakes")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
