"""The verbs: one function for every kind of location, and the way out of wrong turns."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.cli.main import cli
from ggufnorm.core.audit import AuditSet
from ggufnorm.core.model import InspectionSet
from ggufnorm.core.trace import SCHEMA
from ggufnorm.errors import ConfigError, InputError
from ggufnorm.formats.forms import FORMS, Form, Kind, Location, parse
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.verbs import runs
from ggufnorm.verbs.kinds import TAKES, wrong_turn
from tests import models, vision

ROOT = Path(__file__).parents[2]
READING = ROOT / "docs" / "reading.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of every kind, under the names of the documented forms."""
    from safetensors.numpy import save_file

    here = tmp_path_factory.mktemp("kinds")
    models.llama(here / "model.gguf")
    models.llama(here / "model-00002-of-00005.gguf")
    vision.write_mmproj(here / "mmproj.gguf", vision.CLIP)
    (here / "model.onnx").touch()
    arrays = {"tokens": np.zeros(1, np.int32)}
    save_file(arrays, here / "trace.safetensors", metadata={"schema": SCHEMA})
    save_file(arrays, here / "model.safetensors")
    (here / "checkpoint").mkdir()
    (here / "checkpoint" / "config.json").write_text("{}")
    (here / "text.gguf").write_text("no model")
    return here


# -- locations ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.example)
def test_every_documented_form_is_read_as_the_table_says(
    form: Form, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    place = parse(form.example.replace("-hf ", "hf://").replace("[", "").replace("]", ""))
    assert (place.scheme, place.kind) == (form.scheme, form.kind)


def test_the_documented_table_of_locations_is_that_of_the_code() -> None:
    rows = "".join(f"| `{form.example}` | {form.meaning} |\n" for form in FORMS)
    assert f"| location | is |\n|---|---|\n{rows}\n" in READING.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "scheme", "name"),
    [
        ("hf:org/repo", "checkpoint", "org/repo"),
        ("HF:folder", "checkpoint", "folder"),
        ("hf://org/repo:Q8_0", "hub", "hf://org/repo:Q8_0"),
        ("HTTPS://host/m.gguf", "http", "HTTPS://host/m.gguf"),
        ("ollama:me/tiny:2", "ollama", "me/tiny:2"),
        ("C:\\models\\m.gguf", "path", "C:\\models\\m.gguf"),
        ("https.gguf", "path", "https.gguf"),
        ("s3://bucket/m.gguf", "path", "s3://bucket/m.gguf"),
    ],
)
def test_a_location_is_taken_apart(text: str, scheme: str, name: str) -> None:
    assert parse(text) == Location(text, scheme, name)
    assert parse(Path("hf:folder")).scheme == "path"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("checkpoint", "folder"),
        (".", "models"),
        ("text.gguf", "unknown"),
        ("model.safetensors", "safetensors"),
        ("absent.gguf", "unknown"),
        ("absent.onnx", "onnx"),
        ("x\0y", "unknown"),
    ],
)
def test_what_is_no_model_has_a_kind_too(folder: Path, name: str, kind: Kind) -> None:
    assert parse(f"{folder}/{name}").kind == kind


def test_a_damaged_model_is_still_one(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes((folder / "model.gguf").read_bytes()[:40])
    assert parse(path).kind == "gguf"


@pytest.mark.parametrize("name", ["clip", "clipped", "cli", "llama"])
@pytest.mark.parametrize("key_first", [True, False])
def test_an_encoder_is_told_by_its_architecture(name: str, key_first: bool, tmp_path: Path) -> None:
    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    keys = [string("general.architecture") + struct.pack("<I", 8) + string(name)]
    keys.insert(key_first, string("general.name") + struct.pack("<I", 8) + string("a name"))
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + b"".join(keys) + bytes(64))
    assert parse(path).kind == ("mmproj" if name == "clip" else "gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert parse(tmp_path / "pipe").kind == "unknown"


# -- wrong turns -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "names", "meant"),
    [
        ("compare", ["model.gguf", "model.gguf"], "ggufnorm drift model.gguf model.gguf"),
        ("compare", ["checkpoint", "model.gguf"], "ggufnorm compare hf:checkpoint model.gguf"),
        ("compare", ["model.gguf", "hf:x"], "ggufnorm compare hf:x model.gguf"),
        ("compare", ["model.gguf", "model.onnx"], "ggufnorm compare model.onnx model.gguf"),
        ("compare", ["trace.safetensors", "hf:x"], "ggufnorm trace hf:x -o FILE, and compare FILE"),
        ("drift", ["trace.safetensors", "model.gguf"],
         "ggufnorm compare trace.safetensors model.gguf"),
        ("drift", ["model.gguf", "model.onnx"], "ggufnorm compare model.onnx model.gguf"),
        ("drift", ["model.gguf", "checkpoint"], "ggufnorm compare hf:checkpoint model.gguf"),
        ("drift", ["model.gguf", "mmproj.gguf"], "ggufnorm compare hf:FOLDER mmproj.gguf"),
        ("attribute", ["hf:a b", "model.gguf"], "ggufnorm compare 'hf:a b' model.gguf"),
        ("recipe", ["model.onnx", "model.gguf"], "ggufnorm compare model.onnx model.gguf"),
        ("diff", ["model.onnx", "model.onnx"], "ggufnorm drift model.onnx model.onnx"),
        ("trace", ["checkpoint"], "ggufnorm trace hf:checkpoint -o TRACE.safetensors"),
        ("trace", ["trace.safetensors"], "ggufnorm compare trace.safetensors MODEL"),
        ("inspect", ["trace.safetensors"], "ggufnorm compare trace.safetensors MODEL"),
        ("inspect", ["hf:x"], "ggufnorm audit MODEL --source x"),
        ("audit", ["model.onnx"], "ggufnorm inspect model.onnx"),
        ("audit", ["checkpoint"], "ggufnorm audit MODEL --source checkpoint"),
    ],
)  # fmt: skip
def test_a_wrong_turn_is_answered_with_the_command_that_was_meant(
    verb: str, names: list[str], meant: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    sentence = wrong_turn(verb, names)
    assert sentence is not None
    assert sentence.endswith(f": use {meant}")
    arguments = [verb, *names, *(["-o", "out"] if verb == "trace" else [])]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert str(done.exception) == sentence
    assert done.exception.exit_code in (2, 3)
    assert not (folder / "out").exists()
    with pytest.raises(InputError, match=re.escape(sentence)):
        getattr(ggufnorm, verb)(*names, *(["out"] if verb == "trace" else []))


@pytest.mark.parametrize("verb", TAKES)
def test_what_a_verb_takes_is_no_wrong_turn(verb: str, folder: Path) -> None:
    examples: dict[Kind, str] = {"gguf": "model.gguf", "mmproj": "mmproj.gguf",
                                 "onnx": "model.onnx", "trace": "trace.safetensors"}  # fmt: skip
    # tests/frameworks/test_wrong_turns.py makes files of the others
    for kind in TAKES[verb] & set(examples):
        assert wrong_turn(verb, [folder / examples[kind]]) is None
    models = verb not in ("pixels", "audio", "report")
    assert wrong_turn(verb, [folder / "absent", *["https://host/m.gguf"] * models]) is None


# -- dispatch ----------------------------------------------------------------------------


def test_sets_of_models_folders_and_patterns(folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "one.gguf", tmp_path / "b" / "two.gguf"
    for path in (one, two):
        path.parent.mkdir()
        path.write_bytes((folder / "model.gguf").read_bytes())
    bad = tmp_path / "bad.gguf"
    bad.write_text("no model")
    for verb in (ggufnorm.inspect, ggufnorm.audit):
        found = verb([one.parent, str(tmp_path / "b" / "*.gguf"), bad, folder / "model.onnx"][:3])
        assert isinstance(found, InspectionSet | AuditSet)
        assert [m.path for m in found.models] == [str(one), str(two)]
        assert [f.what for f in found.failed] == [str(bad)]
        assert verb([one]).models == (verb(one),)
    shown = ggufnorm.audit([one, folder / "model.onnx"])
    assert [f.reason.partition(": use ")[2] for f in shown.failed] == [
        f"ggufnorm inspect {folder / 'model.onnx'}"
    ]
    with pytest.raises(InputError, match="there is no GGUF file"):
        ggufnorm.inspect([tmp_path / "a" / "*.bin"])


def test_an_interrupted_audit_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ggufnorm.analysis.audit.fleet import run

    report = ggufnorm.audit(folder / "model.gguf")

    def one_of(models: object, *_rest: object) -> object:
        yield report
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "audit_all", one_of)
    paths = [folder / "model.gguf", folder / "mmproj.gguf"]
    found = ggufnorm.audit(paths)
    assert found.interrupted
    assert (found.models, found.failed[0].what) == ((report,), str(paths[1]))
    assert not ggufnorm.inspect(paths).failed


@pytest.mark.parametrize(
    ("location", "home", "first"),
    [
        ("{}/model.gguf", "ggufnorm.analysis.trace.run.trace", "{}/model.gguf"),
        ("hf:{}/checkpoint", "ggufnorm.analysis.trace.hf.trace_checkpoint", "{}/checkpoint"),
        ("{}/model.onnx", "ggufnorm.analysis.trace.onnx.trace_onnx", "{}/model.onnx"),
    ],
)
def test_a_trace_is_made_by_the_engine_of_the_kind(
    location: str, home: str, first: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = noted(home, monkeypatch)
    ggufnorm.trace(location.format(folder), "out.safetensors", n_ctx=16)
    ((arguments, options),) = called
    assert arguments == (first.format(folder), "out.safetensors")
    assert options["n_ctx"] == 16


@pytest.mark.parametrize(
    ("names", "home"),
    [
        (["trace.safetensors", "model.gguf"], "ggufnorm.analysis.trace.run.compare"),
        (["trace.safetensors", "trace.safetensors"], "ggufnorm.analysis.trace.run.compare"),
        (["trace.safetensors", "model.onnx"], "ggufnorm.analysis.trace.onnx.compare_with_onnx"),
        (["hf:x", "model.gguf"], "ggufnorm.analysis.crosscheck.run.compare_frameworks"),
        (["model.onnx", "model.gguf"], "ggufnorm.analysis.crosscheck.run.compare_frameworks"),
        (["hf:x", "mmproj.gguf", "model.onnx"],
         "ggufnorm.analysis.crosscheck.run.compare_frameworks"),
    ],
)  # fmt: skip
def test_compare_finds_how_from_the_kinds(
    names: list[str], home: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    called = noted(home, monkeypatch)
    ggufnorm.compare(*names, n_threads=3)
    ((arguments, options),) = called
    assert arguments[0] == names[0]
    assert options["n_threads"] == 3


def noted(home: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[object, ...], dict]]:
    """The calls of a function, which does nothing."""
    called: list[tuple[tuple[object, ...], dict]] = []
    monkeypatch.setattr(home, lambda *a, **k: called.append((a, k)))
    return called


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ggufnorm.trace("m.gguf", "o", ids="x"), "ids does not go with m.gguf"),
        (lambda: ggufnorm.trace("m.gguf", "o", trust_remote_code=True), "trust_remote_code"),
        (lambda: ggufnorm.trace("hf:x", "o", n_gpu_layers=1), "n_gpu_layers does not go with hf:x"),
        (lambda: ggufnorm.trace("m.onnx", "o", trust_remote_code=True), "trust_remote_code"),
        (lambda: ggufnorm.compare("a", "b", text="x"), "text does not go with traces"),
        (lambda: ggufnorm.compare("hf:x", "b", budget=1), "budget does not go with"),
        (lambda: ggufnorm.compare("a", "b", "c"), "unexpected c"),
    ],
)
def test_arguments_that_do_not_apply_are_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        call()


def test_the_verbs_of_python_are_those_of_the_command_line() -> None:
    from ggufnorm import api
    from ggufnorm.cli.main import _COMMANDS

    for verb in TAKES:
        assert verb in _COMMANDS
        if verb == "report":
            continue  # ggufnorm.load
        assert getattr(ggufnorm, verb) is getattr(api, verb)
    assert runs.compared_by("a", "b") == "traces"


# -- python -m ggufnorm ------------------------------------------------------------------


@pytest.fixture
def downloaded(tmp_path: Path, folder: Path) -> Path:
    """A repository with Python files that must not run."""
    for name in ("numpy", "json", "typing", "__future__", "gguf", "click", "rich"):
        (tmp_path / f"{name}.py").write_text(
            f"print('{name} ran', flush=True)\nraise SystemExit(9)"
        )
    (tmp_path / "model.gguf").write_bytes((folder / "model.gguf").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["inspect", "model.gguf"],
     ["drift", "model.gguf", "model.gguf", "-c", "16", "--chunks", "1", "-f", "text.txt"]],
)  # fmt: skip
def test_running_the_module_imports_nothing_from_the_current_folder(
    arguments: list[str], downloaded: Path, text: str
) -> None:
    (downloaded / "text.txt").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "ggufnorm", *arguments],
        cwd=downloaded,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ran" not in done.stdout.split()
    assert done.returncode == 0, done.stderr


def test_the_module_runs_from_a_source_tree(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ggufnorm", "rules"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "N101" in done.stdout


def test_other_modules_keep_the_current_folder(tmp_path: Path) -> None:
    package = tmp_path / "user"
    package.mkdir()
    (package / "__init__.py").write_text("import ggufnorm\n")
    (package / "__main__.py").write_text("import beside\n")
    (tmp_path / "beside.py").write_text("print('found')\n")
    done = subprocess.run(
        [sys.executable, "-m", "user"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "found\n"


def test_a_documented_model_is_opened_once_it_is_parsed(folder: Path) -> None:
    from ggufnorm.formats.location import is_encoder, open_model

    with open_model(parse(folder / "model.gguf")) as file, GGUFFile(folder / "model.gguf") as same:
        assert file.architecture == same.architecture
    assert is_encoder(folder / "mmproj.gguf")
    with pytest.raises(InputError, match="is a checkpoint for Transformers"):
        open_model("hf:x")
