"""The commands as a user runs them: whole processes, exit codes, both streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import models
from tests.processes import ggufnorm, one_line_error


def test_inspect_prints_one_row_per_norm(sample: Path) -> None:
    done = ggufnorm("inspect", sample)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line for line in done.stdout.splitlines() if "norm.weight" in line]
    assert len(rows) == 11
    cells = rows[1].split()
    assert (cells[:4], cells[-1]) == (["0", "ffn", "rms", "1e-05"], "blk.0.ffn_norm.weight")
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "\x1b" not in done.stdout


def test_inspect_writes_json_by_the_suffix(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "norms.json"
    done = ggufnorm("inspect", sample, "-o", out)
    assert (done.returncode, done.stdout) == (0, "")
    norms = json.loads(out.read_text())["norms"]
    assert norms[0]["tensor"] == "blk.0.attn_norm.weight"
    assert (norms[0]["layer"], norms[0]["role"], norms[0]["kind"]) == (0, "attn", "rms")
    assert (norms[0]["epsilon"], norms[0]["dtype"], norms[0]["shape"]) == (1e-05, "F32", [256])
    assert norms[0]["epsilon_key"] == "llama.attention.layer_norm_rms_epsilon"
    assert norms[-1]["layer"] is None


# -- errors ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "drift"])
def test_files_that_are_not_models(command: str, sample: Path, tmp_path: Path) -> None:
    text, empty, cut = (tmp_path / n for n in ("text.gguf", "empty.gguf", "cut.gguf"))
    text.write_text("Once upon a time there was no model.")
    empty.touch()
    cut.write_bytes(sample.read_bytes()[: 1 << 20])
    for bad, words in (
        (text, ["not a GGUF file", "byte 0"]),
        (empty, ["empty"]),
        (cut, ["truncated"]),
        (tmp_path / "missing.gguf", ["cannot open", "No such file"]),
    ):
        models_given = [bad] if command == "inspect" else [sample, bad]
        one_line_error(ggufnorm(command, *models_given), 3, str(bad), *words)
    if command == "drift":
        done = ggufnorm(command, sample, tmp_path)
        assert done.returncode == 2
        assert "is a folder of GGUF files: use ggufnorm drift" in done.stderr


@pytest.mark.slow
def test_models_that_do_not_belong_together(tiny: dict[str, Path], tmp_path: Path) -> None:
    deep = models.llama(tmp_path / "deep.gguf", models.Shape(n_layer=4))
    one_line_error(ggufnorm("drift", tiny["llama"], deep), 3, "number of layers is 4 and not 3")
    wide = models.llama(tmp_path / "wide.gguf", models.Shape(n_vocab=330))
    one_line_error(ggufnorm("drift", tiny["llama"], wide), 3, "vocabulary is 330 and not 320")


@pytest.mark.parametrize(
    "arguments",
    [
        ["drift"],
        ["no-such-command"],
        ["inspect", "x.gguf", "--format", "pdf"],
        ["inspect", "x.gguf", "-o", "x.pdf"],
        ["drift", "a", "b", "--min-top1", "2"],
        ["drift", "a", "b", "-c", "7"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    done = ggufnorm(*arguments)
    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_that_cannot_be_written_is_an_error(sample: Path, tmp_path: Path) -> None:
    one_line_error(ggufnorm("inspect", sample, "-o", tmp_path / "no" / "x.json"), 3, "cannot write")


def test_a_terminal_gets_colour_and_a_pipe_does_not(sample: Path) -> None:
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
    command = [
        sys.executable,
        "-c",
        "from ggufnorm.cli.main import main; main()",
        "inspect",
        sample,
    ]
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the terminal is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0
    assert b"\x1b[1m" in shown
