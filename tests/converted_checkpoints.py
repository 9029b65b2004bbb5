"""Checkpoints of :mod:`tests.right_checkpoints`, converted by llama.cpp's own converter.

``python -m tests.converted_checkpoints LLAMA_CPP FOLDER [NAME …]``: a process of its own, as the
converter brings its own gguf-py.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

TYPES = ("F32", "F16", "BF16", "Q8_0")
DONE = "made.json"
"""In each network's folder: its class, and why it has no files."""


def _converter(root: Path) -> Any:
    sys.path[:0] = [str(root / "gguf-py"), str(root)]
    import conversion
    from conversion.base import TextModel

    from tests import right_tokenizers

    def pre_tokenizer(self: Any, _tokenizer: Any) -> str:
        """Its name, which the converter finds by a digest of what it makes of a text."""
        config = json.loads((self.dir_model / "tokenizer_config.json").read_text(encoding="utf-8"))
        return str(config.get(right_tokenizers.PRE, "gpt-2"))

    TextModel.get_vocab_base_pre = pre_tokenizer
    return conversion


def _convert(conversion: Any, source: Path, name: str, target: Path) -> None:
    import gguf
    import torch

    kinds = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
    # Transformers drops keys that it has other names for now.
    written = json.loads((source / "config.json").read_text(encoding="utf-8"))
    hparams = {**conversion.ModelBase.load_hparams(source, False), **written}
    text = conversion.ModelType.TEXT
    kind = conversion.get_model_class(conversion.get_model_architecture(hparams, text))
    if getattr(kind, "supports_mtp_export", False):
        kind.no_mtp = True  # Transformers drops these layers
    with torch.inference_mode():
        file_type = gguf.LlamaFileType[kinds[name]]
        kind(source, file_type, target, eager=True, hparams=hparams).write()


def _make_one(conversion: Any, name: str, model_class: str, folder: Path) -> str:
    from tests import right_checkpoints

    shutil.rmtree(folder, ignore_errors=True)
    try:
        right_checkpoints.make(name, model_class, folder / "hf")
    except Exception as error:  # whatever a class has against its config
        (folder / "error.txt").parent.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return f"not built: {type(error).__name__}: {error}"[:200]
    gc.collect()
    try:
        for kind in TYPES:
            _convert(conversion, folder / "hf", kind, folder / f"{kind}.gguf")
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return f"not converted: {type(error).__name__}: {error}"[:200]
    return ""


def make(root: Path, folder: Path, names: list[str]) -> None:
    """Checkpoints and conversions that are not there yet."""
    conversion = _converter(root)
    import torch

    from tests import right_checkpoints

    torch.set_num_threads(1)
    for name, model_class in right_checkpoints.networks(conversion.TEXT_MODEL_MAP):
        here = folder / name
        if (names and name not in names) or (here / DONE).exists():
            continue
        failed = _make_one(conversion, name, model_class, here)
        (here / DONE).write_text(json.dumps({"class": model_class, "failed": failed}))
        print(f"{name}: {failed or 'made'}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
