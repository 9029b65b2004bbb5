"""Every wrong turn has a sign: one sentence, and the command in it works when it is typed."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from ggufnorm.cli.main import cli
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.errors import GgufnormError
from ggufnorm.formats.forms import Kind, parse
from ggufnorm.verbs.kinds import TAKES, wrong_source, wrong_text, wrong_turn
from tests import framework_models, models, sounds, towers, vision
from tests.unit.analysis.test_audit_kinds import adapter, imatrix, vocabulary

FILES: dict[Kind, str] = {
    "gguf": "model.gguf", "adapter": "lora.gguf", "mmproj": "mmproj.gguf", "imatrix": "matrix.gguf",
    "vocabulary": "vocab.gguf", "onnx": "model.onnx", "safetensors": "hf/model.safetensors",
    "folder": "hf", "checkpoint": "hf:hf", "models": "quants", "directory": "empty",
    "picture": "photo.png", "sound": "speech.wav", "array": "pixels.npy", "text": "text.txt",
    "trace": "run.safetensors", "report": "diff.json", "pickle": "pytorch_model.bin",
    "repository": "org/repo", "webpage": "https://huggingface.co/org/repo/blob/main/m.gguf",
}  # fmt: skip
"""A location of each kind."""

STAND_INS = {
    "MODEL": "model.gguf", "QUANT": "quants/Q8_0.gguf", "REF": "model.gguf", "A": "model.gguf",
    "B": "quants/Q8_0.gguf", "hf:FOLDER": "hf:vision", "FOLDER": "vision", "IMAGE": "photo.png",
    "SOUND.wav": "speech.wav", "F16": "model.gguf", "F16.gguf": "model.gguf", "TEXT": "text.txt",
    "FILE.json": "diff.json",
}  # fmt: skip
"""What a user puts in a placeholder's place."""

PARTNERS = {
    "check": [], "inspect": [], "audit": [], "fix": [], "trace": [], "verify": [],
    "pixels": [], "audio": [], "report": [],
}  # fmt: skip
"""Verbs of one location; the others are given a model beside it, on either side."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="ggufnorm-turns-") as name:
        here = Path(name)
        network = framework_models.NETWORKS["llama"]
        model = framework_models.build(network)
        framework_models.with_tokenizer(
            "some text " * 99, framework_models.save(model, here / "hf")
        )
        tensors = framework_models.converted(model, network)
        framework_models.write(here / "model.gguf", network, tensors)
        framework_models.export(model, here / "model.onnx")
        (here / "quants").mkdir()
        quantize(here / "model.gguf", here / "quants" / "Q8_0.gguf", "Q8_0")
        (here / "empty").mkdir()
        tower = towers.TOWERS["gemma3"]
        seen = towers.build(tower)
        vision.write_processor(framework_models.save(seen, here / "vision"))
        towers.write(here / "mmproj.gguf", tower, towers.converted(seen, tower))
        sounds.write_extractor(here / "audio")
        adapter(here / "lora.gguf")
        vocabulary(here / "vocab.gguf")
        imatrix(here / "matrix.gguf")
        vision.write_picture(here / "photo.png", 48, 48)
        sounds.write_wav(here / "speech.wav", sounds.sound(1.0), dtype="<f4")
        np.save(here / "pixels.npy", np.zeros((3, 28, 28), np.float32))
        (here / "text.txt").write_text("some text to run " * 200)
        (here / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(26) + b"archive/data.pkl")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(here)
            for line in ("trace model.gguf -o run.safetensors --chunks 1 -c 32",
                         "diff model.gguf quants/Q8_0.gguf -o diff.json"):  # fmt: skip
                assert run(shlex.split(line)) is None
        yield here


def run(words: list[str]) -> Exception | None:
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    found: Any = done.exception
    return found


def locations(verb: str, kind: Kind) -> Iterator[list[str]]:
    if verb in PARTNERS:
        yield [FILES[kind]]
    else:
        yield [FILES[kind], "model.gguf"]
        yield ["model.gguf", FILES[kind]]


def signs(folder: Path) -> dict[str, str]:
    """Sentences by the command that they send to."""
    found = {}
    for verb in TAKES:
        for kind in FILES:
            for given in locations(verb, kind):
                sentence = wrong_turn(verb, given)
                if sentence is not None:
                    found[sentence.rpartition(": use ")[2]] = sentence
    return found


def test_each_file_is_of_its_kind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert {kind: parse(name).kind for kind, name in FILES.items()} == {
        kind: kind for kind in FILES
    }


@pytest.mark.parametrize("verb", TAKES)
def test_each_kind_is_taken_or_sent_on(
    verb: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for kind in FILES:
        for given in locations(verb, kind):
            sentence = wrong_turn(verb, given)
            if kind in TAKES[verb]:
                continue  # what was wrong with its partner is another row
            assert sentence is not None or kind == "safetensors", (verb, kind)
            if sentence is not None:
                assert "\n" not in sentence
                assert re.search(r": use (ggufnorm \w+|`)", sentence), sentence


def test_the_commands_of_signs_work_when_typed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    tried, failed = 0, []
    for line, sentence in signs(folder).items():
        if not line.startswith("ggufnorm ") or "hf://" in line:
            continue  # another program's, or not on this machine
        if re.match(r"ggufnorm (attribute|recipe) quants/", line):
            continue  # whose order is wrong, too
        words = [STAND_INS.get(word, word) for word in shlex.split(line)[1:]]
        if words[0] == "audio":
            words = ["audio" if word == "vision" else word for word in words]
        if "-o" in words:
            words[words.index("-o") + 1] = str(tmp_path / words[words.index("-o") + 1])
        if words[0] in ("trace", "drift", "quants", "attribute", "recipe") and ".onnx" not in line:
            words += ["--chunks", "1", "-c", "32"]
        if words[0] == "recipe":
            words += ["--max-size", "+10%"]
        if words[0] == "compare" and "mmproj.gguf" not in words:
            words = ["hf:hf" if word == "hf:vision" else word for word in words]
        tried += 1
        problem = run(words)
        if problem is not None:
            failed.append((sentence, words, problem))
        for path in tmp_path.iterdir():
            path.unlink()
    assert not failed, "\n".join(map(repr, failed))
    assert tried > 25


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("hf/model.safetensors", "ggufnorm audit model.gguf --source hf"),
        ("quants/Q8_0.gguf", "ggufnorm diff quants/Q8_0.gguf model.gguf"),
        ("model.onnx", "ggufnorm compare model.onnx model.gguf"),
        ("text.txt", "ggufnorm audit model.gguf --source FOLDER"),
        ("org/repo", "ggufnorm audit model.gguf --source hf://org/repo"),
    ],
)
def test_a_source_that_is_none_is_sent_on(
    given: str, meant: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    sentence = wrong_source("audit", "model.gguf", given)
    assert sentence is not None
    assert sentence.endswith(f": use {meant}")
    assert isinstance(run(["audit", "model.gguf", "--source", given]), click.UsageError)


def test_a_model_is_no_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert wrong_text("drift", "text.txt") is None
    assert wrong_text("drift", "absent.txt") is None
    sentence = wrong_text("drift", "model.gguf")
    assert sentence is not None
    assert sentence.endswith("use ggufnorm drift REF QUANT -f TEXT")
    assert isinstance(
        run(["drift", "model.gguf", "model.gguf", "-f", "lora.gguf"]), click.UsageError
    )


# -- what is wrong with arguments --------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("attribute quants/Q8_0.gguf model.gguf", "use ggufnorm attribute model.gguf quants/"),
        ("recipe quants/Q8_0.gguf model.gguf", "use ggufnorm recipe model.gguf quants/"),
        ("recipe quants/Q8_0.gguf quants/Q8_0.gguf", "is quantized (23 Q8_0), and the reference"),
        ("drift model.gguf", "missing QUANT: use ggufnorm drift model.gguf QUANT"),
        ("drift", "missing REF and QUANT: use ggufnorm drift REF QUANT"),
        ("compare hf:hf", "missing QUANT: use ggufnorm compare hf:hf QUANT"),
        ("recipe model.gguf quants/Q8_0.gguf matrix.gguf", "--imatrix matrix.gguf"),
        ("drift model.gguf quants/Q8_0.gguf text.txt", "quants/Q8_0.gguf -f text.txt"),
        ("quants model.gguf quants/Q8_0.gguf lora.gguf -f text.txt", "LoRA adapter"),
        ("quants model.gguf quants/Q8_0.gguf model.gguf text.txt", "Q8_0.gguf model.gguf -f text"),
        ("quants model.gguf quants/Q8_0.gguf -f lora.gguf", "use ggufnorm quants REF QUANT -f"),
        ("check model.gguf modell.gguf", "did you mean model.gguf?"),
        ("audit modle.gguf", "did you mean model.gguf?"),
        ("check", "missing MODEL: use ggufnorm check MODEL"),
        ("audit model.gguf --select norm-dup", "did you mean N402 norm-duplicated?"),
        ("attribute model.onnx model.onnx", "use ggufnorm drift model.onnx model.onnx"),
    ],
)
def test_wrong_arguments_are_answered_with_the_command(
    line: str, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    problem = run(shlex.split(line))
    assert isinstance(problem, (GgufnormError, click.UsageError)), problem
    assert says in str(problem)
    assert "\n" not in str(problem)


def test_exchanged_files_are_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for line, meant in (
        ("diff quants/Q8_0.gguf model.gguf", "diff model.gguf quants/Q8_0.gguf"),
        ("verify model.gguf --from quants/Q8_0.gguf", "verify quants/Q8_0.gguf --from model.gguf"),
        ("drift quants/Q8_0.gguf model.gguf --chunks 1 -c 32", "drift model.gguf quants/Q8_0.gguf"),
    ):
        done = CliRunner().invoke(cli, shlex.split(line), standalone_mode=False)
        assert f"swapped? (ggufnorm {meant})" in " ".join(done.output.split())


def test_what_lies_under_a_model_s_name_is_said(tmp_path: Path) -> None:
    for content, says in (
        (b"<!DOCTYPE html><html>", "but a web page: the download needs a login"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n", "but a picture"),
    ):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        assert parse(path).kind == "unknown"
        assert says in str(run(["inspect", str(path)]))


def test_a_repository_s_own_folder_may_hold_models_too(folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(folder / "model.gguf", tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text("{}")
    for verb in ("inspect", "audit"):
        assert run([verb, str(tmp_path)]) is None


def test_bundled_models_are_found_by_near_names(tmp_path: Path) -> None:
    models.llama(tmp_path / "llama.gguf")
    assert "did you mean" in str(run(["inspect", str(tmp_path / "lama.gguf")]))
    assert "did you mean" not in str(run(["inspect", str(tmp_path / "other.gguf")]))
