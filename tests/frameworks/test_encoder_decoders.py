"""``compare`` of the T5 family: right files are quiet, faults are named in their half and layer.

``python -m tests.frameworks.test_encoder_decoders`` plants every fault in every network and
prints what was named; with a number behind it that many tensors of each kind of fault, network and
type, spread evenly. The tests run a part of it.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.core.frameworks import EngineComparison
from ggufnorm.errors import InputError
from ggufnorm.report.views.frameworks import frameworks_view
from tests import encoder_decoders as made
from tests import in_process
from tests.framework_models import Tensors, save

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 5
N_TOKENS = 47
NETWORKS = ("t5", "flan-t5", "mt5", "umt5", "t5encoder", "umt5encoder")
TYPES = ("F32", "F16", "Q8_0")

Change = Callable[[Tensors, str], None]


@dataclass(frozen=True)
class Fault:
    """What is done to a file, and what has to be named.

    Attributes:
        tensors: that are changed, one in each file.
        change: the tensors, in place, given the tensor's name.
        keys: of the metadata, that are changed.
        named: gives names that are right to name besides the tensor's own, by its name.
    """

    tensors: tuple[str, ...]
    change: Change = lambda _tensors, _name: None
    keys: Mapping[str, Any] = field(default_factory=dict)
    named: Callable[[str], str] = lambda name: name


def values(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def apply(tensors: Tensors, name: str) -> None:
        tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return apply


def noise(w: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.asarray(w + 0.3 * np.std(w) * rng.standard_normal(w.shape), np.float32)


def exchange(other: Callable[[str], str]) -> Change:
    def apply(tensors: Tensors, name: str) -> None:
        tensors[name], tensors[other(name)] = tensors[other(name)], tensors[name]

    return apply


def lose(tensors: Tensors, name: str) -> None:
    del tensors[name]


def layer_before(name: str) -> str:
    return name.replace("blk.1", "blk.0")


_NORMS = (
    "enc.blk.1.attn_norm", "enc.blk.1.ffn_norm", "enc.output_norm", "dec.blk.1.attn_norm",
    "dec.blk.1.cross_attn_norm", "dec.blk.1.ffn_norm", "dec.output_norm",
)  # fmt: skip
_SQUARE = (
    "enc.blk.1.attn_v", "enc.blk.1.attn_o", "dec.blk.1.attn_v", "dec.blk.1.attn_o",
    "dec.blk.1.cross_attn_v", "dec.blk.1.cross_attn_o",
)  # fmt: skip
_MATRICES = (
    *_SQUARE, "enc.blk.1.attn_q", "enc.blk.1.ffn_up", "enc.blk.1.ffn_down", "dec.blk.1.attn_k",
    "dec.blk.1.cross_attn_q", "dec.blk.1.cross_attn_k", "dec.blk.1.ffn_up", "dec.blk.1.ffn_down",
)  # fmt: skip
_BLOCK_NORMS = tuple(n for n in _NORMS if "blk" in n)
FAULTS = {
    "norm × 1.5": Fault(_NORMS, values(lambda w: w * np.float32(1.5))),
    "norm + 1": Fault(_NORMS, values(lambda w: w + np.float32(1))),
    "norm reversed": Fault(_NORMS, values(lambda w: w[::-1])),
    "norm of another layer": Fault(_BLOCK_NORMS, exchange(layer_before), named=layer_before),
    "matrix transposed": Fault(_SQUARE, values(lambda w: w.T)),
    "matrix rows reversed": Fault(_MATRICES, values(lambda w: w[::-1])),
    "matrix × 1.5": Fault(_MATRICES, values(lambda w: w * np.float32(1.5))),
    "noise of 30 %": Fault(_MATRICES, values(noise)),
    "matrix of another layer": Fault(_MATRICES, exchange(layer_before), named=layer_before),
    "matrix of the other half": Fault(
        ("enc.blk.0.attn_v", "enc.blk.0.ffn_down"),
        exchange(lambda n: n.replace("enc.", "dec.")),
    ),
    "self and cross exchanged": Fault(
        ("dec.blk.1.attn_v", "dec.blk.1.attn_o"),
        exchange(lambda n: n.replace("attn_", "cross_attn_")),
    ),
    "positions reversed": Fault(
        ("enc.blk.0.attn_rel_b", "dec.blk.0.attn_rel_b"), values(lambda w: w[::-1])
    ),
    "gate and up exchanged": Fault(
        ("enc.blk.1.ffn_gate", "dec.blk.1.ffn_gate"),
        exchange(lambda n: n.replace("gate", "up")),
        named=lambda n: n.replace("gate", "up"),
    ),
    "head × 1.5": Fault(("output",), values(lambda w: w * np.float32(1.5))),
    "trained head lost": Fault(
        ("output",), lose, named=lambda _n: "token_embd.weight"
    ),
    "epsilon": Fault(("enc.blk.0.attn_norm",), keys={"attention.layer_norm_rms_epsilon": 1e-2}),
    "decoder's start": Fault(("dec.output_norm",), keys={"decoder_start_token_id": 5}),
}  # fmt: skip
"""By what they do."""

_FOLDER = tempfile.TemporaryDirectory(prefix="ggufnorm-encoder-decoder-")


@cache
def model(name: str) -> Any:
    return made.build(name)


@cache
def checkpoint(name: str) -> Path:
    return save(model(name), Path(_FOLDER.name) / name)


def file_of(
    name: str, dtype: str, fault: Fault | None = None, tensor: str = "", **keys: Any
) -> Path:
    tensors = dict(made.converted(model(name)))
    if fault is not None:
        fault.change(tensors, f"{tensor}.weight")
    kind = gguf.GGMLQuantizationType[dtype]
    stated = {**({} if fault is None else fault.keys), **keys}
    return made.write(Path(_FOLDER.name) / f"{dtype}.gguf", tensors, keys=stated, dtype=kind)


def compared(source: Path, file: Path) -> tuple[EngineComparison, str]:
    report = compare_frameworks(
        f"hf:{source}", [str(file)], text=TEXT, n_tokens=N_TOKENS, n_threads=1
    )
    (view,) = frameworks_view(report)
    return report.comparisons[0], view.headline or ""


def planted() -> Iterator[tuple[str, str, str]]:
    for what, fault in FAULTS.items():
        for name in NETWORKS:
            if what == "decoder's start" and "encoder" in name:
                continue
            have = made.converted(model(name))
            for tensor in fault.tensors:
                other = fault.named(tensor)
                if f"{tensor}.weight" in have and (
                    "other half" not in what or "encoder" not in name
                ) and (what == "trained head lost" or f"{other}.weight" in have):  # fmt: skip
                    yield what, name, tensor


def sampled(n: int | None) -> Iterator[tuple[str, str, str, str]]:
    """What is planted, each in both types; of a kind, network and type ``n`` tensors, or all."""
    of: dict[tuple[str, str], list[str]] = {}
    for what, name, tensor in planted():
        of.setdefault((what, name), []).append(tensor)
    for (what, name), tensors in of.items():
        for k, dtype in enumerate(("F32", "Q8_0")):
            start = 5 * NETWORKS.index(name) + 2 * k  # others in each network and type
            step = max(1, len(tensors) // (n or len(tensors)))
            chosen = [tensors[(start + step * i) % len(tensors)] for i in range(n or len(tensors))]
            yield from ((what, name, tensor, dtype) for tensor in dict.fromkeys(chosen))


def outcome(what: str, name: str, tensor: str, dtype: str) -> tuple[str, str]:
    """``found``, ``half`` (its half and layer), ``misnamed`` or ``missed``; and what was said."""
    fault = FAULTS[what]
    found, _ = compared(checkpoint(name), file_of(name, dtype, fault, tensor))
    wrong = found.first_wrong
    if what == "decoder's start":
        told = found.tokenizer is not None and "decoder_start_token_id" in found.verdict
        return ("found" if told else "missed"), found.verdict
    if wrong is None:
        return "missed", found.verdict
    right = {f"{tensor}.weight", f"{fault.named(tensor)}.weight".replace(".weight.weight",
                                                                        ".weight")}  # fmt: skip
    named = {wrong.key, wrong.operation.tensor if wrong.operation else None}
    if named & right or (wrong.operation and tensor.endswith("rel_b") and
                         "bias" in wrong.operation.name):  # fmt: skip
        return "found", found.verdict
    half = tensor.partition(".")[0]
    same_half = wrong.key.startswith(f"{half}.") or (half in ("dec", "output")
                                                    and wrong.key == "logits")  # fmt: skip
    return ("half" if same_half and wrong.operation is None else "misnamed"), found.verdict


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    with in_process.engine():
        yield


@pytest.mark.parametrize("dtype", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", ["t5", "flan-t5", "umt5"])
def test_a_right_file_is_quiet(name: str, dtype: str) -> None:
    found, headline = compared(checkpoint(name), file_of(name, dtype))
    assert found.first_wrong is None, found.verdict
    assert "logits" in found.compared
    assert len(found.sites) == 2 * made.LAYERS + 3 * made.DECODER_LAYERS + 2
    assert found.unmatched_source == found.unmatched_engine == ()
    assert headline.startswith("No mistake in what was compared; not compared: token ids")


PART = [
    ("norm + 1", "flan-t5", "enc.blk.1.ffn_norm", "F32"),
    ("norm of another layer", "umt5", "dec.blk.1.cross_attn_norm", "Q8_0"),
    ("matrix rows reversed", "t5", "enc.blk.1.attn_q", "F32"),
    ("matrix transposed", "flan-t5", "dec.blk.1.cross_attn_v", "Q8_0"),
    ("matrix × 1.5", "mt5", "dec.blk.1.cross_attn_k", "F32"),
    ("self and cross exchanged", "t5", "dec.blk.1.attn_v", "F32"),
    ("positions reversed", "flan-t5", "dec.blk.0.attn_rel_b", "F32"),
    ("trained head lost", "umt5", "output", "F32"),
    ("decoder's start", "t5", "dec.output_norm", "F32"),
    ("matrix × 1.5", "t5encoder", "enc.blk.1.ffn_down", "Q8_0"),
]


@pytest.mark.parametrize(("what", "name", "tensor", "dtype"), PART)
def test_a_fault_is_named_in_its_half(what: str, name: str, tensor: str, dtype: str) -> None:
    result, verdict = outcome(what, name, tensor, dtype)
    assert result == "found", verdict
    half = {"enc": "encoder", "dec": "decoder"}.get(tensor.partition(".")[0])
    if "blk" in tensor and half:
        assert f"({half} layer" in verdict


def test_the_scale_of_t5_s_predictions_is_a_known_difference() -> None:
    found, headline = compared(checkpoint("t5"), file_of("t5", "F32"))
    assert [k.name for k in found.known] == ["the scale of predictions"]
    assert found.logits is not None
    assert found.logits.mean_kld is not None
    assert found.logits.mean_kld < 1e-6
    assert "the engines differ in the scale of predictions" in headline


def test_an_encoder_that_is_decoded_with_a_mask_is_named_with_its_mend() -> None:
    source = checkpoint("t5encoder")
    masked, _ = compared(source, file_of("t5encoder", "F32"))
    assert masked.first_wrong is not None
    assert masked.first_wrong.key == "token embeddings"
    assert "--override-kv t5encoder.attention.causal=bool:false" in masked.verdict
    keys: dict[str, Any] = {"attention.causal": False}
    right, _ = compared(source, file_of("t5encoder", "F32", **keys))
    assert right.first_wrong is None, right.verdict


def test_the_encoder_of_a_whole_checkpoint_is_compared() -> None:
    tensors = {n: v for n, v in made.converted(model("flan-t5")).items() if "dec." not in n}
    del tensors["output.weight"]
    file = made.write(
        Path(_FOLDER.name) / "encoder.gguf", tensors, keys={"attention.causal": False}
    )
    found, _ = compared(checkpoint("flan-t5"), file)
    assert found.first_wrong is None, found.verdict
    assert found.unmatched_source == ()


def test_a_decoder_that_the_source_has_not_is_refused() -> None:
    with pytest.raises(InputError, match="an encoder alone, and the GGUF file has a decoder"):
        compared(checkpoint("t5encoder"), file_of("flan-t5", "F32"))


def main() -> None:
    """Print found, half, misnamed and missed of each fault, and what is not found."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else None
    count: Counter[tuple[str, str]] = Counter()
    quiet = blamed = 0
    with in_process.engine():
        for name in NETWORKS:
            for dtype in TYPES:
                keys: dict[str, Any] = {"attention.causal": False} if "encoder" in name else {}
                wrong = compared(checkpoint(name), file_of(name, dtype, **keys))[0].first_wrong
                quiet, blamed = quiet + (wrong is None), blamed + (wrong is not None)
                if wrong is not None:
                    print(f"right {name} {dtype}: {wrong.reason}", file=sys.stderr)
        for what, name, tensor, dtype in sampled(n):
            result, why = outcome(what, name, tensor, dtype)
            count[what, result] += 1
            if result != "found":
                print(f"{result}: {what} {tensor} {name} {dtype}: {why}", file=sys.stderr)
    print("| fault | found | right half | misnamed | missed |")
    print("|---|--:|--:|--:|--:|")
    for what in FAULTS:
        row = [count[what, result] for result in ("found", "half", "misnamed", "missed")]
        print(f"| {what} | {' | '.join(map(str, row))} |")
    print(f"right files: {quiet} quiet, {blamed} blamed")


if __name__ == "__main__":
    main()
