"""Does ``check`` name the right suspect, and nobody where nothing is wrong?

``python -m tests.engine.test_check`` prints the table of docs/how-to/find-the-culprit.md.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggufnorm
from ggufnorm.core.check import SUSPECTS, CheckReport, SuspectName
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.runs.options import SideOptions
from tests import conversions, in_process, models
from tests.engine import test_tokenizer_faults as tokenizers
from tests.engine.test_audit_whole import FAULTS, Planted
from tests.engine.test_verdict import biased, halves
from tests.pairs import NETWORKS, whole

DOCUMENT = Path(__file__).parents[2] / "docs" / "how-to" / "find-the-culprit.md"
TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 4

RUN = ("llama", "qwen3moe", "gemma3")
BUILD: dict[str, Callable[[Path], Path]] = {name: getattr(models, name) for name in (*RUN, "phi2")}


def check(*locations: Path, **more: object) -> CheckReport:
    with in_process.engine():
        return ggufnorm.check(
            *locations, text=TEXT * 4, n_ctx=64, chunks=4, n_threads=1, **more  # type: ignore[arg-type]
        )  # fmt: skip


def accused(report: CheckReport) -> list[SuspectName]:
    return [s.name for s in report.guilty]


# -- the file beside its source ----------------------------------------------------------------

_OF_FAULTS: tuple[tuple[str, SuspectName], ...] = (
    ("another pooling", "pooling"),
    ("another EOS", "tokenizer"),
    ("BOS added", "tokenizer"),
    ("another pre-tokenizer", "tokenizer"),
    ("chat template missing", "tokenizer"),
    ("quantized by way of Q4_0", "quantization"),
    ("made by way of BF16", "quantization"),
    ("merged in NF4", "quantization"),
    ("merged in INT8", "quantization"),
    ("a token too many at the front", "tokenizer"),
    ("two tokens exchanged", "tokenizer"),
    ("merges in another order", "tokenizer"),
    ("merges cut off", "tokenizer"),
    ("bytes behind the last tensor", "download"),
)
_HARMLESS = ("another label of the type",)


def suspect_of(planted: Planted) -> SuspectName:
    """Who is to be named, by the fault's own words."""
    return dict(_OF_FAULTS).get(planted.words, "file against source")


@dataclass(frozen=True)
class Outcome:
    """Whom ``check`` accused of a planted fault."""

    words: str
    suspect: SuspectName
    accused: tuple[SuspectName, ...]

    @property
    def is_right(self) -> bool:
        """Whether the right one was named first."""
        return self.accused[:1] == (self.suspect,)


def of_conversions(folder: Path) -> Iterator[Outcome]:
    """Each fault of a whole file once, in one architecture after the other."""
    for i, planted in enumerate(f for f in FAULTS if f.words not in _HARMLESS):
        for j in range(len(planted.names)):
            name = planted.names[(i + j) % len(planted.names)]
            made = whole(name, planted.dtype, planted.file_types[0])
            if planted.spoil(made) is None:
                continue
            place = folder / f"{i}-{name}"
            place.mkdir()
            with without_engines():
                report = ggufnorm.check(*made.write(place))
            yield Outcome(planted.words, suspect_of(planted), tuple(accused(report)))
            break


def of_tokenizers(folder: Path) -> Iterator[Outcome]:
    """Each fault of tokenizers, options and types, in one architecture after the other."""
    for i, fault in enumerate(tokenizers.FAULTS):
        made = fault.make(whole(fault.names[i % len(fault.names)]))
        fault.spoil(made)
        place = folder / f"tokenizer-{i}"
        place.mkdir()
        with without_engines():
            report = ggufnorm.check(*made.write(place))
        yield Outcome(fault.words, fault.suspect, tuple(accused(report)))


class without_engines:  # noqa: N801
    """These files are weights without a vocabulary: nothing can run them."""

    def __enter__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr("ggufnorm.verbs.check.steps.chosen_libraries", lambda: None)
        self._patch.setattr("ggufnorm.verbs.check.steps.missing_packages", lambda *names: names)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_nobody_is_accused_of_a_right_conversion(name: str, tmp_path: Path) -> None:
    with without_engines():
        report = ggufnorm.check(*whole(name).write(tmp_path))

    assert accused(report) == []
    found = states(report)
    # gguf-py does not know the newest: its norms are compared as any other tensor.
    assert found["normalization"] == ("partly" if name == "newest" else "cleared")
    assert found["file against source"] == found["quantization"] == "cleared"
    assert found["pooling"] == ("partly" if name == "bert" else "cleared")  # it was not run


# -- runs --------------------------------------------------------------------------------------


def sound(folder: Path, arch: str) -> Path:
    path = folder / f"{arch}.gguf"
    return path if path.exists() else BUILD[arch](path)


def to_type(path: Path, file_type: str) -> Path:
    target = path.with_name(f"{path.stem}-{file_type}.gguf")
    with in_process.engine():
        quantize(path, target, file_type, n_threads=1)
    return target


def to_q8(path: Path) -> Path:
    return to_type(path, "Q8_0")


def damaged(folder: Path, arch: str) -> CheckReport:
    """A matrix was damaged before it was quantized."""
    ref = sound(folder, arch)
    name = halves(ref)[-1]
    spoilt = models.rewritten(
        ref, folder / f"{arch}-damaged.gguf", tensors={name: models.noise(0.5)}
    )
    return check(to_q8(spoilt), ref)


def other_base(folder: Path, arch: str) -> CheckReport:
    """The base of rotary positions is not the better quant's."""
    ref = sound(folder, arch)
    other = models.rewritten(ref, folder / f"{arch}-base.gguf", {f"{arch}.rope.freq_base": 500.0})
    return check(to_q8(other), ref)


def other_norm(folder: Path, arch: str) -> CheckReport:
    """A norm's weight is not the better quant's."""
    ref = sound(folder, arch)
    change = {"blk.1.attn_norm.weight": lambda w: w * np.linspace(0.5, 1.5, w.size, dtype=w.dtype)}
    return check(models.rewritten(ref, folder / f"{arch}-norm.gguf", tensors=change), ref)


def ruined_cache(folder: Path, layer: int) -> CheckReport:
    """The keys of one layer have a bias that leaves a small type nothing."""
    ref = sound(folder, "phi2")
    path = models.rewritten(ref, folder / f"biased-{layer}.gguf", tensors=biased(layer))
    return check(path, options=SideOptions(cache_type_k="q4_0"))


RUNS: tuple[tuple[str, SuspectName, Callable[[Path, str], CheckReport], tuple[str, ...]], ...] = (
    ("matrix damaged before it was quantized", "quantization", damaged, RUN),
    ("another rope base than the better quant's", "file against source", other_base, RUN),
    ("another norm than the better quant's", "normalization", other_norm, RUN),
)


@pytest.mark.parametrize("arch", RUN)
@pytest.mark.parametrize(("_words", "suspect", "make", "_archs"), RUNS, ids=lambda v: str(v)[:20])
def test_a_run_beside_a_better_quant_names_the_suspect(
    _words: str,
    suspect: SuspectName,
    make: Callable[[Path, str], CheckReport],
    _archs: tuple[str, ...],
    arch: str,
    tmp_path: Path,
) -> None:
    assert accused(make(tmp_path, arch))[0] == suspect


@pytest.mark.parametrize("layer", [0, 2])
def test_a_cache_that_is_ruined_by_its_type_is_named(layer: int, tmp_path: Path) -> None:
    report = ruined_cache(tmp_path, layer)

    assert accused(report) == ["K/V cache"]
    assert "K is cached in q4_0" in report.answer


@pytest.mark.parametrize("arch", RUN)
def test_nobody_is_accused_of_a_sound_quantization(arch: str, tmp_path: Path) -> None:
    ref = sound(tmp_path, arch)

    report = check(to_q8(ref), ref)

    assert accused(report) == []
    found = states(report)
    assert (found["quantization"], found["K/V cache"]) == ("cleared", "not examined")
    assert found["engine and device"] == "partly"


def states(report: CheckReport) -> dict[SuspectName, str]:
    return {s.name: s.state for s in report.suspects}


def other_entry(folder: Path, arch: str, name: str, at: int, value: object) -> Path:
    """A sound model with another entry in one of its tokenizer's lists."""
    path = sound(folder, arch)
    reader = gguf.GGUFReader(path)
    values = reader.fields[f"tokenizer.ggml.{name}"].contents()
    values[at] = value
    return models.rewritten(path, folder / "other.gguf", arrays={f"tokenizer.ggml.{name}": values})


@pytest.mark.parametrize(
    ("name", "at", "value"), [("scores", 270, -5000.0), ("tokens", 270, "zz"), ("token_type", 1, 1)]
)
def test_another_tokenizer_than_the_better_quants_is_named(
    name: str, at: int, value: object, tmp_path: Path
) -> None:
    ref = sound(tmp_path, "llama")

    report = check(to_q8(other_entry(tmp_path, "llama", name, at, value)), ref)

    assert accused(report)[0] == "tokenizer"
    assert f"tokenizer.ggml.{name} at {at}" in report.answer


def test_a_window_that_no_text_reached_is_not_cleared(tmp_path: Path) -> None:
    plain = sound(tmp_path, "gemma3")
    windows = [
        models.rewritten(plain, tmp_path / f"{n}.gguf", {"gemma3.attention.sliding_window": n})
        for n in (512, 4096)
    ]

    report = check(to_q8(windows[1]), windows[0])

    assert accused(report) == ["file against source"]
    assert "gemma3.attention.sliding_window is 512 in the better quant" in report.answer
    quantization = next(s for s in report.suspects if s.name == "quantization")
    assert "in texts of more than 64 tokens was not run" in quantization.sentence


def test_an_encoder_of_another_size_is_named(tmp_path: Path) -> None:
    model = sound(tmp_path, "gemma3")
    small = conversions.write(tmp_path / "mmproj.gguf", conversions.encoder())

    report = check(model, small)

    assert accused(report) == ["preprocessing"]
    assert "its encoder ends in vectors of 64, and its own are 256 wide" in report.answer


def test_cache_types_that_llama_cpp_refuses_are_told(tmp_path: Path) -> None:
    side = SideOptions(cache_type_v="q4_0", flash_attention="off")

    report = check(sound(tmp_path, "llama"), options=side)

    assert accused(report) == ["K/V cache"]
    assert "refuses -ctv q4_0 with -fa off" in report.answer


@pytest.mark.parametrize("arch", ["llama", "qwen3moe"])
def test_a_layer_of_zeros_is_found_in_the_file_alone(arch: str, tmp_path: Path) -> None:
    name = "blk.1.attn_output.weight"
    path = models.rewritten(
        sound(tmp_path, arch), tmp_path / "zero.gguf", tensors={name: np.zeros_like}
    )

    report = check(path)

    assert accused(report) == ["file against source"]
    assert f"{name} is zero everywhere" in report.answer


def test_an_embedding_model_that_states_no_pooling_is_not_cleared_of_it(tmp_path: Path) -> None:
    path = models.bert(tmp_path / "bert.gguf")
    lacking = models.rewritten(path, tmp_path / "lacking.gguf", {"bert.pooling_type": None})

    assert states(check(lacking))["pooling"] == "not examined"


def test_a_decoder_whose_source_pools_and_that_states_no_pooling_is_guilty(
    tmp_path: Path,
) -> None:
    model, checkpoint = whole("qwen3").write(tmp_path)
    (checkpoint / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_lasttoken": True}
    (checkpoint / "1_Pooling" / "config.json").write_text(json.dumps(pooling))

    with without_engines():
        report = ggufnorm.check(model, checkpoint)

    assert accused(report) == ["pooling"]


def test_a_model_in_half_precision_may_have_been_quantized_before(tmp_path: Path) -> None:
    ref = sound(tmp_path, "llama")
    reader = gguf.GGUFReader(to_q8(ref))
    halved = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float16)
        for t in reader.tensors
        if t.tensor_type == gguf.GGMLQuantizationType.Q8_0
    }
    path = models.rewritten(ref, tmp_path / "halved.gguf", tensors=halved)

    assert states(check(path))["quantization"] == "partly"


def test_a_coarser_model_is_no_better_quant(tmp_path: Path) -> None:
    ref = sound(tmp_path, "llama")
    coarse = to_type(ref, "Q4_0")

    report = check(to_q8(ref), coarse)

    found = next(s for s in report.suspects if s.name == "quantization")
    assert found.state == "not examined"
    assert f"{coarse} is no better quant (Q4_0 against Q8_0)" in found.sentence
    assert accused(report) == []


# -- the document ------------------------------------------------------------------------------


def table() -> str:
    """Suspects, and how often each was named."""
    found: dict[SuspectName, list[bool]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for o in (*of_conversions(folder), *of_tokenizers(folder)):
            found.setdefault(o.suspect, []).append(o.is_right)
        for _words, suspect, make, archs in RUNS:
            for arch in archs:
                found.setdefault(suspect, []).append(accused(make(folder, arch))[:1] == [suspect])
        cached = [accused(ruined_cache(folder, layer)) == ["K/V cache"] for layer in range(3)]
    found["K/V cache"] = cached
    lines = ["| suspect | faults planted | named first |", "|---|---|---|"]
    lines += [
        f"| {suspect} | {len(found[suspect])} | {sum(found[suspect])} |"
        for suspect in SUSPECTS
        if suspect in found
    ]
    return "\n".join(lines)


def test_each_fault_of_a_conversion_is_laid_at_the_right_door(tmp_path: Path) -> None:
    outcomes = [*of_conversions(tmp_path), *of_tokenizers(tmp_path)]

    assert len(outcomes) == len(FAULTS) - len(_HARMLESS) + len(tokenizers.FAULTS)
    assert [o for o in outcomes if not o.is_right] == []
    told = re.findall(r"^\| ([a-zA-Z/ ]+) \| (\d+) \| (\d+) \|$", DOCUMENT.read_text("utf-8"), re.M)
    of_document = {suspect: (int(n), int(right)) for suspect, n, right in told}
    for suspect, n in Counter(o.suspect for o in outcomes).items():
        in_runs = sum(len(archs) for _, of_run, _, archs in RUNS if of_run == suspect)
        assert of_document[suspect] == (n + in_runs, n + in_runs)


def test_llama_cpp_s_steps_need_no_particular_package(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """xllamacpp's and fetched libraries do as well as llama-cpp-python, were it missing."""
    steps = "ggufnorm.verbs.check.steps"
    monkeypatch.setattr(f"{steps}.missing_packages", lambda *names: [*names])
    ran = {step.name for step in ggufnorm.check(sample).steps if not step.skipped}
    monkeypatch.setattr(f"{steps}.chosen_libraries", lambda: None)
    lacking = {s.name for s in ggufnorm.check(sample).steps if "no llama.cpp here" in s.skipped}
    assert lacking & ran


if __name__ == "__main__":
    print(table())
