"""How the memory of ``compare hf:`` grows with the tokens of a text.

    python -m benchmarks.bench_compare [--tokens 64 128 256 512]

A random BERT (12 layers of width 768), as a checkpoint and as GGUF in F16. For each length of
text, each in processes of its own: the largest call that a comparison makes, a batch of the text
and of half of it (as servers pad it), in Transformers by itself and in llama.cpp by itself,
nothing observed; then ``ggufnorm compare`` as a whole, the process that runs Transformers and
the largest that runs llama.cpp. Prints a Markdown table of peaks of resident memory, and the
size of the largest temporary file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

TOKENS = (64, 128, 256, 512)
MB = 1e6
_INTERVAL = 0.005
"""Seconds between two looks: a process's peak is the system's own, and read until it ends."""
_ALONE = {
    "transformers": """
import sys, torch
from ggufnorm.engines.hf.model import HFModel
model, n = HFModel(sys.argv[1], n_threads=2), int(sys.argv[3])
ids, mask = torch.arange(n)[None] % 2000, torch.ones(2, n, dtype=torch.long)
mask[0, n // 2 :] = 0
torch.set_num_threads(2)
with torch.inference_mode():
    model.model(input_ids=ids)
    model.model(input_ids=ids.repeat(2, 1), attention_mask=mask)
""",
    "llama.cpp": """
import sys, numpy as np
from dataclasses import replace
from ggufnorm.analysis.crosscheck.llama import EXACTLY
from ggufnorm.engines.llama.session import LlamaContext, LlamaModel
n = int(sys.argv[3])
options = replace(EXACTLY.engine(n), n_threads=2)
tokens = np.arange(n, dtype=np.int32) % 2000
with LlamaModel(sys.argv[2], options) as model:
    with LlamaContext(model, options, None, 2, 1) as context:
        context.decode_texts([tokens, tokens[: n // 2]])
""",
}


@dataclass(frozen=True)
class Peaks:
    """Most that a command's processes took, in bytes.

    Attributes:
        parent: resident memory of the command itself.
        child: of the largest process that it started; 0 without.
        file: of the largest temporary file.
    """

    parent: int
    child: int
    file: int


def write_models(folder: Path) -> tuple[Path, Path]:
    """Write the checkpoint, the GGUF file, and the text; give the latter two."""
    import gguf
    import torch
    from transformers import BertConfig, BertModel

    from benchmarks.bench_minilm import write_gguf

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(1995))]
    config = BertConfig(intermediate_size=1536, vocab_size=len(words), max_position_embeddings=2048)
    model = BertModel(config)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    text = folder / "text.txt"
    text.write_text(" ".join(words[5:]))
    file = write_gguf(folder / "f16.gguf", folder, model, gguf.GGMLQuantizationType.F16)
    return file, text


def measure(command: Sequence[str]) -> Peaks:
    """Run a command and look at its processes until it ends."""
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    peaks: dict[int, int] = {process.pid: 0}
    largest = 0
    while process.poll() is None:
        for pid in (process.pid, *_workers(process)):
            peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
            largest = max(largest, *_files(pid), 0)
        time.sleep(_INTERVAL)
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors.decode() or output.decode())
    parent = peaks.pop(process.pid)
    return Peaks(parent, max(peaks.values(), default=0), largest)


def _workers(process: psutil.Process) -> Iterator[int]:
    """Children that have become programs of their own: before they hold their parent's memory."""
    with suppress(psutil.Error):
        for child in process.children(recursive=True):
            if any("import worker" in part for part in child.cmdline()):
                yield child.pid


def _peak(pid: int) -> int:
    with suppress(OSError, StopIteration, IndexError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * int(next(v for v in lines if v.startswith("VmHWM:")).split()[1])
    return 0


def _files(pid: int) -> Iterator[int]:
    """Bytes of the files without a name that a process has open."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = str(entry.readlink())
                if target.endswith(" (deleted)") and not target.startswith("/memfd"):
                    yield entry.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, text = write_models(folder)
        print("| tokens | Transformers alone | `compare` | llama.cpp alone | its child | on disk |")
        print("|---:|---:|---:|---:|---:|---:|")
        for n in args.tokens:
            alone = [
                measure([sys.executable, "-c", code, name, str(file), str(n)]).parent
                for code in _ALONE.values()
            ]
            command = ["compare", f"hf:{name}", str(file), "-f", str(text), "--tokens", str(n)]
            whole = measure([sys.executable, "-m", "ggufnorm", *command, "-t", "2"])
            cells = (alone[0], whole.parent, alone[1], whole.child, whole.file)
            print(f"| {n:,} | {' | '.join(f'{c / MB:,.0f} MB' for c in cells)} |", flush=True)


if __name__ == "__main__":
    main()
