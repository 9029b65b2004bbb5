"""``quants``: several files beside one reference, decoded once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.analysis.quants import task
from ggufnorm.cli.main import cli
from ggufnorm.core.progress import Progress
from ggufnorm.core.quants import QuantFile, QuantsReport
from ggufnorm.engines import worker
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.engines.llama.session import LlamaContext
from ggufnorm.errors import InputError, TextError
from ggufnorm.samples import sample_model
from tests import models
from tests.in_process import call_here, engine

TYPES = ("Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "Q2_K")


@pytest.fixture(autouse=True)
def in_process() -> Iterator[None]:
    with engine():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quants")
    found = {"F16": sample_model()}
    with engine():
        for name in TYPES:
            found[name] = folder / f"sotu-{name}.gguf"
            quantize(found["F16"], found[name], name, n_threads=1)
    return found


@pytest.fixture(scope="module")
def report(files: dict[str, Path]) -> QuantsReport:
    with engine():
        return run(files, *TYPES)


def run(files: dict[str, Path], *names: str, **more: Any) -> QuantsReport:
    more = {"n_ctx": 128, "chunks": 4, "n_threads": 1, **more}
    return ggufnorm.quants(files["F16"], [files[n] for n in names], **more)


def of(report: QuantsReport, name: str) -> QuantFile:
    return next(f for f in report.files if f.model.path.endswith(f"{name}.gguf"))


def test_the_statistics_are_those_of_drift(files: dict[str, Path], report: QuantsReport) -> None:
    for name in ("Q8_0", "Q2_K"):
        alone = ggufnorm.drift(files["F16"], files[name], n_ctx=128, chunks=4, n_threads=1)
        found = of(report, name).logits
        assert alone.logits is not None
        assert found is not None
        assert found.n_tokens == alone.logits.n_tokens
        assert found.mean_kld == pytest.approx(alone.logits.mean_kld, rel=1e-6)
        assert found.same_top1 == alone.logits.same_top1
        assert found.ppl_quant == pytest.approx(alone.logits.ppl_quant, rel=1e-6)


def test_files_are_sorted_ranked_and_described(report: QuantsReport) -> None:
    sizes = [f.model.n_bytes for f in report.files]
    assert sizes == sorted(sizes, reverse=True)
    assert report.best == of(report, "Q8_0").model.path
    assert of(report, "Q2_K").standing == "frontier", "the smallest always is"
    assert {c.dtype for c in of(report, "Q4_K_M").types.matrices} == {"Q4_K", "Q6_K"}
    assert all(f.speed and f.speed.prompt > 0 and f.speed.generation for f in report.files)
    assert len(report.contrasts) == 10
    assert report.scored == "text"


def test_the_reference_is_decoded_once(files: dict[str, Path]) -> None:
    decoded: dict[str, int] = {}
    decode = LlamaContext.decode

    def counted(self: LlamaContext, batch: Any) -> None:
        if len(batch.tokens) > 1:
            decoded[self.model.path] = decoded.get(self.model.path, 0) + 1
        decode(self, batch)

    with mock.patch.object(LlamaContext, "decode", counted):
        run(files, "Q8_0", "Q4_0", "Q2_K", chunks=3)
    assert set(decoded.values()) == {3}


def test_files_that_do_not_fit_together_are_loaded_one_after_the_other(
    files: dict[str, Path], report: QuantsReport
) -> None:
    loaded: list[str] = []

    def note(progress: Progress) -> None:
        if progress.phase.startswith("loading"):
            loaded.append(Path(progress.phase.split()[1]).stem)

    with mock.patch("psutil.virtual_memory") as memory:
        memory.return_value.available = 20_000_000
        found = run(files, *TYPES, on_progress=note, check_memory=False)
    assert found.contrasts == report.contrasts
    assert [f.logits for f in found.files] == [f.logits for f in report.files]
    assert len(loaded) > 2 * len(TYPES), "loaded again for each block"


def test_a_copy_is_not_told_apart_and_the_reference_is_passed_over(
    files: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(files["Q4_K_M"].read_bytes())
    paths = [files["F16"], files["Q4_K_M"], copy, files["Q4_K_M"]]
    found = ggufnorm.quants(files["F16"], paths, n_ctx=128, chunks=4, n_threads=1)
    assert len(found.files) == 2
    (contrast,) = found.contrasts
    assert not contrast.told_apart
    assert {f.standing for f in found.files} == {"frontier"}
    assert "does not tell" in found.verdict


def test_a_file_with_nan_is_broken_and_the_others_are_ranked(
    files: dict[str, Path], tmp_path: Path
) -> None:
    def nan(data: np.ndarray) -> np.ndarray:
        data[3] = np.nan
        return data

    bad = models.edited(files["F16"], tmp_path / "bad.gguf", {"output_norm.weight": nan})
    found = ggufnorm.quants(
        files["F16"], [bad, files["Q8_0"], files["Q2_K"]], n_ctx=128, chunks=2, n_threads=1
    )
    assert of(found, "bad").standing == "broken"
    assert of(found, "Q8_0").standing == "frontier"
    assert found.verdict.startswith("NaN or infinite logits: bad.gguf.")


def test_a_broken_reference_accuses_no_file(files: dict[str, Path], tmp_path: Path) -> None:
    def nan(data: np.ndarray) -> np.ndarray:
        data[3] = np.nan
        return data

    bad = models.edited(files["F16"], tmp_path / "bad.gguf", {"output_norm.weight": nan})
    found = ggufnorm.quants(bad, [files["Q8_0"], files["Q2_K"]], n_ctx=128, chunks=2, n_threads=1)
    assert found.n_bad_reference == 126
    assert found.best is None
    assert {f.standing for f in found.files} == {"not ranked"}
    assert found.verdict.startswith("The reference has NaN or infinite logits at 126 positions")


def test_a_reference_that_is_coarser_than_a_file_is_told(files: dict[str, Path]) -> None:
    found = ggufnorm.quants(
        files["Q4_0"], [files["F16"], files["Q2_K"]], n_ctx=128, chunks=1, n_threads=1
    )
    (note,) = found.notes
    assert note.what == str(files["F16"])
    assert "finer than the reference (F16 against Q4_0)" in note.reason


def test_what_cannot_be_measured_is_reported(files: dict[str, Path], tmp_path: Path) -> None:
    other = models.llama(tmp_path / "other.gguf")
    found = ggufnorm.quants(
        files["F16"], [other, tmp_path / "missing.gguf", files["Q8_0"]],
        n_ctx=128, chunks=1, n_threads=1,
    )  # fmt: skip
    assert [Path(s.what).name for s in found.failed] == ["other.gguf", "missing.gguf"]
    assert [Path(f.model.path).name for f in found.files] == ["sotu-Q8_0.gguf"]
    with pytest.raises(InputError, match="is not a version of"):
        ggufnorm.quants(files["F16"], [other])
    with pytest.raises(InputError, match="no file beside the reference"):
        ggufnorm.quants(files["F16"], [files["F16"]])


def test_an_embedding_model_is_sent_to_drift(tmp_path: Path) -> None:
    bert, other = models.bert(tmp_path / "a.gguf"), models.bert(tmp_path / "b.gguf", seed=1)
    with pytest.raises(InputError, match="predicts no tokens: use ggufnorm drift"):
        ggufnorm.quants(bert, [other], text="abc " * 200, n_ctx=16, n_threads=1)


@pytest.mark.parametrize("make", [models.t5, models.mamba, models.qwen3moe, models.gemma2])
def test_other_architectures(make: Any, tmp_path: Path) -> None:
    a, b = make(tmp_path / "a.gguf"), make(tmp_path / "b.gguf", seed=1)
    found = ggufnorm.quants(a, [b], n_ctx=32, chunks=2, n_threads=1)
    alone = ggufnorm.drift(a, b, n_ctx=32, chunks=2, n_threads=1)
    assert alone.logits is not None
    (file,) = found.files
    assert file.logits is not None
    assert file.logits.n_tokens == alone.logits.n_tokens
    assert file.logits.mean_kld == pytest.approx(alone.logits.mean_kld, rel=1e-3)


def test_a_cancelled_run_has_the_blocks_that_all_files_finished(files: dict[str, Path]) -> None:
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.done == 8:  # the middle of the third passage, of three models
            cancel.set()

    def call(*args: Any, **kwargs: Any) -> Any:
        return call_here(*args, **kwargs, cancel=cancel)

    with mock.patch.object(worker, "call", call):
        found = run(files, "Q8_0", "Q2_K", on_progress=stop)
    assert found.run.cut == "interrupted"
    assert found.run.n_chunks == 2
    assert {f.logits.n_tokens for f in found.files if f.logits} == {2 * 63}


def test_a_run_goes_on_where_it_ended(
    files: dict[str, Path], report: QuantsReport, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"

    def die(progress: Progress) -> None:
        if progress.done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(files, *TYPES, resume=kept, save_every=0.0, on_progress=die)
    decoded = 0
    scored = task._Run._scored

    def counted(self: Any, k: int, i: int, context: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return scored(self, k, i, context)

    with mock.patch.object(task._Run, "_scored", counted):
        found = run(files, *TYPES, resume=kept)
    assert decoded == 12, "two of four passages were kept"
    assert [f.logits for f in found.files] == [f.logits for f in report.files]
    assert found.contrasts == report.contrasts


def test_what_it_takes_is_told_before(files: dict[str, Path]) -> None:
    told: list[str] = []
    run(files, "Q8_0", "Q2_K", on_progress=lambda p: told.append(p.phase) if p.note else None)
    assert "2 beside the reference, all loaded at once: about" in told[0]
    assert "3 models over 4 passages of up to 128 tokens: about" in told[1]


# -- the command -------------------------------------------------------------------------


def invoke(*arguments: object) -> Any:
    words = [*map(str, arguments), "-c", "128", "--chunks", "1", "-t", "1"]
    return CliRunner().invoke(cli, ["quants", *words], standalone_mode=False)


def test_the_table_for_a_model_card(files: dict[str, Path], tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    done = invoke(files["F16"], files["Q8_0"], files["Q2_K"], "--card", card, "--format", "json")
    assert done.return_value == 0
    lines = card.read_text().splitlines()
    assert lines[0].startswith("| File | Size | Bits/weight | KL divergence | KLD 99 % | Same top")
    assert [line.split(" | ")[0] for line in lines[2:5]] == [
        "| sotu-f16.gguf", "| sotu-Q8\\_0.gguf", "| sotu-Q2\\_K.gguf",
    ]  # fmt: skip
    assert "as measured in this run" in lines[-1]
    document = json.loads(done.stdout)
    assert [f["standing"] for f in document["files"]] == ["not ranked"] * 2
    assert "Nothing is ranked: a mean needs 100 scored positions" in document["verdict"]


def test_a_file_that_failed_is_exit_code_3_and_a_threshold_is_1(
    files: dict[str, Path], tmp_path: Path
) -> None:
    other = models.llama(tmp_path / "other.gguf")
    assert invoke(files["F16"], other, files["Q8_0"]).return_value == 3
    done = invoke(files["F16"], files["Q8_0"], files["Q2_K"], "--max-kld", "0.005")
    assert done.return_value == 1
    assert "sotu-Q2_K.gguf: --max-kld 0.005: crossed" in done.stderr
    assert "Q8_0.gguf: --max-kld" not in done.stderr


def test_drift_of_several_files_names_the_command(files: dict[str, Path]) -> None:
    paths = [str(files[n]) for n in ("F16", "Q8_0", "Q2_K")]
    done = CliRunner().invoke(cli, ["drift", *paths])
    assert done.exit_code == 2
    assert f"use ggufnorm quants {' '.join(paths)}" in done.output


# -- chats -------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
"""ChatML in the special tokens of the sample's vocabulary."""

REWRITES = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ 'short' }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
"""Earlier answers are told in other words, as templates do with thoughts."""


def chat(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]}


CHATS = (
    chat("What did the Congress do?", "The Congress of the United States passed an act."),
    chat("And then?", "The treaty was made with Great Britain.", "Why?", "For the peace of all."),
)


@pytest.fixture
def instruct(files: dict[str, Path], tmp_path: Path) -> Any:
    def make(template: str | None, other: str | None = None) -> tuple[Path, Path]:
        found = []
        for name, text in (("F16", template), ("Q2_K", other or template)):
            path = tmp_path / f"chat-{name}.gguf"
            keys = {} if text is None else {"tokenizer.chat_template": text}
            found.append(models.rewritten(files[name], path, keys))
        return found[0], found[1]

    return make


def jsonl(folder: Path, *chats: Any) -> Path:
    path = folder / "chats.jsonl"
    path.write_text("\n".join(json.dumps(c) for c in chats) + "\n")
    return path


def passages_of(ref: Path, quant: Path, **more: Any) -> Any:
    """What was run, and the report."""
    kept: list[Any] = []
    original = task._Run.__init__

    def remember(self: Any, job: Any, *rest: Any) -> None:
        kept.append(job.passages)
        original(self, job, *rest)

    with mock.patch.object(task._Run, "__init__", remember):
        report = ggufnorm.quants(ref, [quant], n_threads=1, **more)
    return kept[0], report


def said(path: Path, passages: Any) -> list[str]:
    """The text of what is scored, in each passage."""
    from ggufnorm.engines.llama.session import EngineOptions, LlamaModel

    with LlamaModel(str(path), EngineOptions(8, 1), vocab_only=True) as model:
        found = []
        for i in range(len(passages)):
            start, end = passages.bounds(i)
            ids = [int(passages.tokens[t]) for t in passages.targets if start <= t < end]
            found.append("".join(map(model.piece, ids)))
        return found


def test_the_assistants_tokens_alone_are_scored(instruct: Any, tmp_path: Path) -> None:
    ref, quant = instruct(CHATML)
    passages, report = passages_of(ref, quant, chat=jsonl(tmp_path, *CHATS))
    assert report.scored == "assistant"
    first, second = said(ref, passages)
    assert first == "The Congress of the United States passed an act.</s>"
    assert second == "The treaty was made with Great Britain.</s>For the peace of all.</s>"
    (file,) = report.files
    assert file.logits.n_tokens == len(passages.targets)
    assert file.logits.mean_kld > 0


def test_special_tokens_are_tokens_and_bos_is_not_doubled(instruct: Any, tmp_path: Path) -> None:
    ref, quant = instruct(CHATML)
    passages, _ = passages_of(ref, quant, chat=jsonl(tmp_path, CHATS[0]))
    tokens = passages.tokens.tolist()
    assert tokens[0] == 1
    assert tokens[1] != 1
    assert tokens.count(1) == tokens.count(2) == 2


def test_a_template_that_rewrites_earlier_turns_runs_each_turn(
    instruct: Any, tmp_path: Path
) -> None:
    ref, quant = instruct(REWRITES)
    passages, _ = passages_of(ref, quant, chat=jsonl(tmp_path, CHATS[1]))
    assert said(ref, passages) == [
        "The treaty was made with Great Britain.</s>", "For the peace of all.</s>",
    ]  # fmt: skip


def test_long_chats_are_cut_and_told(instruct: Any, tmp_path: Path) -> None:
    ref, quant = instruct(CHATML)
    long = chat("Why? " * 200, "Because."), chat("Why?", "Because of " * 100)
    passages, report = passages_of(ref, quant, chat=jsonl(tmp_path, *long, CHATS[0]), n_ctx=64)
    assert len(passages) == 2
    assert passages.longest == 64
    assert [n.reason for n in report.notes] == [
        "2 cut to 64 tokens (-c)", "1 left out: no word of the assistant within them",
    ]  # fmt: skip


def test_a_file_with_another_template_is_named(instruct: Any, tmp_path: Path) -> None:
    ref, quant = instruct(CHATML, REWRITES)
    report = ggufnorm.quants(ref, [quant], chat=jsonl(tmp_path, *CHATS), n_threads=1)
    assert [n.reason for n in report.notes] == [
        "its chat template is another; the reference's was used"
    ]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}\n{{ m.content.x.y }}{% endfor %}", "fails, line 2: 'str object'"),
        ("a\n\n{% if %}", "fails, line 3: Expected an expression"),
        ("{{ raise_exception('no chats here') }}", "fails, line 1: no chats here"),
    ],
)
def test_a_template_that_fails_is_one_line(
    instruct: Any, tmp_path: Path, template: str, says: str
) -> None:
    ref, quant = instruct(template)
    with pytest.raises(InputError, match=says):
        ggufnorm.quants(ref, [quant], chat=jsonl(tmp_path, *CHATS))


def test_a_file_without_a_template(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no chat template .*: run a text with -f"):
        ggufnorm.quants(files["F16"], [files["Q8_0"]], chat=jsonl(tmp_path, *CHATS))


@pytest.mark.parametrize(
    ("lines", "error", "says"),
    [
        (["{"], InputError, "line 1: not JSON"),
        (['{"messages": []}', '{"text": "x"}'], InputError, "line 2: no chat: give"),
        (['[{"content": "x"}]'], InputError, "line 1: no chat"),
        (['[{"role": "user", "content": "x"}]'], TextError, "no chat has an answer"),
        ([], TextError, "is empty"),
    ],
)
def test_a_file_of_chats_that_is_none(
    files: dict[str, Path], tmp_path: Path, lines: list[str], error: Any, says: str
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(error, match=says):
        ggufnorm.quants(files["F16"], [files["Q8_0"]], chat=path)
