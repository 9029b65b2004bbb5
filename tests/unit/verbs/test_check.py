"""Suspects: what is given is taken for what it is, and nobody is cleared unseen."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest

import ggufnorm
from ggufnorm.cli.main import cli
from ggufnorm.cli.options import side_of
from ggufnorm.core.check import SUSPECTS, CheckReport, State, Suspect, SuspectName
from ggufnorm.errors import InputError
from ggufnorm.report.formats import render
from ggufnorm.runs.options import SideOptions
from ggufnorm.verbs.check.by_runs import of_cache
from ggufnorm.verbs.check.case import Case, RunOptions, open_case
from ggufnorm.verbs.check.given import sort_evidence
from ggufnorm.verbs.check.steps import STEPS
from ggufnorm.verbs.check.suspects import Judgement, answer, next_command, weigh
from tests.checkpoints import safetensors
from tests.conversions import build, encoder, write
from tests.results import drift_report


@pytest.fixture(autouse=True)
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """These models are headers and norms: nothing can run them."""
    monkeypatch.setattr("ggufnorm.verbs.check.steps.chosen_libraries", lambda: None)
    monkeypatch.setattr("ggufnorm.verbs.check.steps.missing_packages", lambda *names: list(names))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model.gguf", build("llama"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(safetensors({}))
    return folder


def suspect(report: CheckReport, name: str) -> Suspect:
    return next(s for s in report.suspects if s.name == name)


# -- what is given -----------------------------------------------------------------------------


def test_each_location_is_taken_for_what_it_is(
    model: Path, checkpoint: Path, tmp_path: Path
) -> None:
    better = write(tmp_path / "better.gguf", build("llama", "f32"))
    mmproj = write(tmp_path / "mmproj.gguf", encoder())

    talk, cat = tmp_path / "talk.txt", tmp_path / "cat.png"
    talk.write_text("some text")
    cat.write_bytes(b"\x89PNG\r\n\x1a\n")

    found = sort_evidence([talk, checkpoint, model, mmproj, better, cat])

    assert {g.role: g.location for g in found.given} == {
        "model": str(model), "source": str(checkpoint), "better quant": str(better),
        "encoder": str(mmproj), "text": str(talk), "picture": str(cat),
    }  # fmt: skip


@pytest.mark.parametrize("written", ["hf:{}", "{}", "{}/model.safetensors"])
def test_a_checkpoint_is_a_source_however_it_is_written(
    written: str, model: Path, checkpoint: Path
) -> None:
    assert sort_evidence([model, written.format(checkpoint)]).source == str(checkpoint)


def test_an_encoder_alone_is_the_model(tmp_path: Path) -> None:
    mmproj = write(tmp_path / "mmproj.gguf", encoder())

    assert sort_evidence([mmproj]).model == str(mmproj)


def test_a_wrong_turn_names_the_command_that_was_meant(
    model: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for locations, words in (
        ([tmp_path], "is a folder of GGUF files: use ggufnorm check .*model.gguf"),
        ([model, "net.onnx"], "net.onnx is an ONNX model: use ggufnorm compare"),
        ([checkpoint], "is a checkpoint's folder: use ggufnorm check MODEL .*checkpoint"),
        ([model, model, model], "is one model too many"),
        ([model, tmp_path / "modell.gguf"], "did you mean .*model.gguf"),
    ):
        with pytest.raises(InputError, match=words):
            sort_evidence(locations)


# -- what follows ------------------------------------------------------------------------------


def said(**states: State) -> list[Judgement]:
    spoken = {name.replace("_", " "): state for name, state in states.items()}
    return [
        Judgement(name, spoken.get(name, "not examined"), f"{name} is {spoken.get(name)}", "do it")
        for name in SUSPECTS
    ]


def test_what_accuses_goes_before_what_clears() -> None:
    cleared = Judgement("tokenizer", "cleared", "the ids are the source's")

    found = weigh([cleared, *said(tokenizer="guilty"), cleared])

    one = next(s for s in found if s.name == "tokenizer")
    assert (one.state, one.sentence) == ("guilty", "tokenizer is guilty")


def test_a_step_that_did_not_run_takes_nothing_back() -> None:
    cleared = Judgement("tokenizer", "cleared", "the ids are the source's")
    part = Judgement("tokenizer", "partly", "the keys are the source's", "run it")

    one = next(s for s in weigh([part, cleared, *said()]) if s.name == "tokenizer")

    assert (one.state, one.sentence, one.do) == ("cleared", "the ids are the source's", "")


def test_the_answer_names_what_was_not_examined() -> None:
    told, do = answer(weigh(said(download="cleared", normalization="partly")))

    assert told.startswith("Nobody is found guilty. Cleared: download.")
    assert "in what was examined of normalization" in told
    assert "Not examined: file against source, tokenizer" in told
    assert do == "do it"


def test_the_certain_culprit_comes_first() -> None:
    told, _ = answer(weigh(said(download="probable", quantization="guilty")))

    assert told == "Guilty: quantization: quantization is guilty. Also download."


# -- files -------------------------------------------------------------------------------------


def test_a_file_alone_is_cleared_of_nothing_that_needs_more(model: Path) -> None:
    report = ggufnorm.check(model)

    states = {s.name: s.state for s in report.suspects}
    assert tuple(states) == SUSPECTS
    assert states["tokenizer"] == states["K/V cache"] == "not examined"
    assert states["file against source"] == states["normalization"] == "partly"
    assert not report.guilty
    assert report.next_step == "add its checkpoint: ggufnorm check MODEL FOLDER"
    assert {step.skipped for step in report.steps} >= {"", "no source was given"}


def test_a_truncated_file_is_a_download(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-4096])

    report = ggufnorm.check(model)

    assert [s.name for s in report.guilty] == ["download"]
    assert suspect(report, "normalization").state == "not examined"


def test_a_file_that_is_no_gguf_is_a_download(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:200])

    report = ggufnorm.check(model)

    assert report.answer.startswith("Guilty: download: ")
    assert "byte" in suspect(report, "download").sentence


def test_a_digest_that_is_known_is_compared(model: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    blob = tmp_path / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir()
    blob.write_bytes(model.read_bytes())
    link = tmp_path / "linked.gguf"
    link.symlink_to(blob)

    assert suspect(ggufnorm.check(link), "download").state == "cleared"

    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    report = ggufnorm.check(link)

    assert [s.name for s in report.guilty] == ["download"]
    assert "SHA-256" in report.answer


# -- for scripts -------------------------------------------------------------------------------


def test_the_next_command_of_a_file_alone_is_complete_but_for_what_is_lacking(model: Path) -> None:
    report = ggufnorm.check(model)

    assert report.next_command == f"ggufnorm check {model} FOLDER"
    assert report.exit_code == 0


def test_what_a_finding_says_reaches_scripts(tmp_path: Path) -> None:
    spoilt = build("llama")
    spoilt.metadata["llama.attention.layer_norm_rms_epsilon"] = 0.0
    path = write(tmp_path / "zero.gguf", spoilt)

    report = ggufnorm.check(path)

    found = suspect(report, "normalization")
    assert report.exit_code == 1
    assert found.rules == ("E102",)
    assert found.figures["epsilon"] == 0
    assert report.next_command == found.command
    assert json.loads(render(report, "json"))["suspects"][3]["rules"] == ["E102"]


def test_what_fix_mends_is_the_next_command() -> None:
    said = [Judgement("tokenizer", "guilty", "BOS", "add it", "ggufnorm audit m", fixable=True)]

    found = next_command(weigh([*said_of_all(), *said]), said, "m", "ggufnorm fix m -o f")

    assert found == "ggufnorm fix m -o f"


def said_of_all() -> list[Judgement]:
    return [Judgement(name, "not examined", "nothing") for name in SUSPECTS]


@pytest.mark.parametrize(
    ("side", "suspect_named", "do"),
    [
        ({"flash_attention": "on"}, "engine and device", "run with -fa off"),
        ({"cache_type_k": "q4_0"}, "K/V cache", "run with -ctk f16, or -ctk q8_0"),
        ({"cache_type_v": "q8_0"}, "K/V cache", "run with -ctv f16"),
        ({"cache_type_k": "q4_0", "cache_type_v": "q4_0"}, "K/V cache",
         "run with -ctk f16 -ctv f16, or -ctk q8_0 -ctv q8_0"),
    ],
)  # fmt: skip
def test_what_the_cache_is_told_depends_on_what_is_not_its_default(
    side: dict[str, str], suspect_named: SuspectName, do: str
) -> None:
    report = drift_report(3)
    options = replace(report.run.quant, **{**PLAIN_SIDE, **side})
    run = replace(report.run, quant=options)

    found = [j for j in of_cache(replace(report, run=run), "ggufnorm drift") if j.figures]

    assert [(j.suspect, j.do) for j in found] == [(suspect_named, do)]
    assert found[0].figures["mean_kld"] > 0


PLAIN_SIDE = {"flash_attention": "auto", "cache_type_k": "f16", "cache_type_v": "f16"}


# -- commands that do one step again ----------------------------------------------------------


@pytest.fixture
def case(model: Path, checkpoint: Path, tmp_path: Path) -> Case:
    better = write(tmp_path / "better.gguf", build("llama", "f32"))
    return open_case(sort_evidence([model, better, checkpoint]), RunOptions())


def commands(case: Case) -> dict[str, list[str]]:
    """The words of each command line by its verb; of ``drift`` those of the last."""
    lines = [shlex.split(step.command(case)) for step in STEPS]
    return {line[1]: line[2:] for line in lines if line[0] == "ggufnorm"}


def test_commands_run_models_as_the_check_ran_them(case: Case, tmp_path: Path) -> None:
    text = tmp_path / "my text.txt"
    text.write_text("some text")
    side = SideOptions(
        offload_devices=("Vulkan0", "RPC0"),
        rpc=("127.0.0.1:50052",),
        tensor_split=(3, 1.5),
        tensor_overrides=((r"blk\.\d+\.ffn .*", "CPU"),),
        n_cpu_moe=2,
        kv_offload=False,
        op_offload=False,
        n_ubatch=64,
    )
    options = RunOptions("some text", str(text), 128, 2, 3, "all", side)

    found = commands(replace(case, options=options))

    for verb in ("audit", "drift"):
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        values = command.make_context(verb, [*found[verb]]).params
        assert values["gpu_layers"] == "all"
        assert values["threads"] == 3
        assert replace(side_of(values), n_gpu_layers=None) == side
    assert values["text_file"] == text
    assert (values["ctx_size"], values["chunks"]) == (128, 2)


def test_the_cache_types_are_run_again_with_the_kernels_of_the_check(case: Case) -> None:
    side = SideOptions("on", "q4_0", "q8_0", use_extra_bufts=True, unfused_norms=True)
    options = replace(case.options, side=side, check_memory=False)
    step = next(s for s in STEPS if "cache types" in s.name)
    command = cli.get_command(click.Context(cli), "drift")
    assert command is not None

    words = shlex.split(step.command(replace(case, options=options)))[2:]

    values = command.make_context("drift", words).params
    assert replace(side_of(values), n_gpu_layers=None) == side
    assert values["no_memory_check"]


def test_commands_say_nothing_of_what_was_left_to_llama_cpp(case: Case) -> None:
    found = commands(case)

    assert found["audit"] == [case.evidence.model, "--run", "--select", "C"]
    assert found["compare"] == [f"hf:{case.evidence.source}", case.evidence.model]
    assert found["drift"] == [case.evidence.reference, case.evidence.model, "--chunks", "4"]


def test_a_build_of_llama_cpp_is_named_in_the_commands(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGUFNORM_LLAMA_CPP", "/opt/a build/libllama.so")

    for verb in ("compare", "drift"):
        assert commands(case)[verb][-2:] == ["--llama-cpp", "/opt/a build/libllama.so"]


def test_an_encoder_is_compared_on_the_picture_that_was_given(
    checkpoint: Path, tmp_path: Path
) -> None:
    cat = tmp_path / "cat.png"
    cat.write_bytes(b"\x89PNG\r\n\x1a\n")
    mmproj = write(tmp_path / "mmproj.gguf", encoder())
    case = open_case(sort_evidence([mmproj, checkpoint, cat]), RunOptions("text", str(cat)))

    assert commands(case)["compare"] == [f"hf:{checkpoint}", str(mmproj), "--image", str(cat)]
