"""The commands as a user runs them: whole processes, exit codes, both streams."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import models


def ggufnorm(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ggufnorm.cli.main import main; main()"]
    command += [str(a) for a in arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def small(text: str, tmp_path: Path) -> list[str | Path]:
    """Options that make drift of the tiny models quick."""
    file = tmp_path / "text.txt"
    file.write_text(text)
    return ["-f", file, "-c", "32", "--chunks", "2"]


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


def test_drift_keeps_data_and_progress_apart(
    tiny: dict[str, Path], small: list[str | Path]
) -> None:
    done = ggufnorm("drift", tiny["llama"], tiny["llama"], *small, "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["verdict"].startswith("No drift")
    assert done.stderr == "drift …\n"


def test_drift_text_fits_100_columns(sample: Path, sample_q4: Path) -> None:
    done = ggufnorm("drift", sample, sample_q4, "--chunks", "1")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "…" not in done.stdout  # nothing was cut to fit
    assert "Drift enters gradually" in done.stdout


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["--max-kld", "10"], 0, ""),
        (["--max-kld", "0"], 1, "--max-kld 0: crossed: mean KL divergence is"),
        (["--min-top1", "1%"], 0, ""),
        (["--min-top1", "1"], 1, "--min-top1 1: crossed: same top token is"),
    ],
)
def test_thresholds_decide_the_exit_code(
    sample: Path, sample_q4: Path, options: list[str], code: int, line: str
) -> None:
    done = ggufnorm("drift", sample, sample_q4, "--chunks", "2", *options)
    assert done.returncode == code
    assert line in done.stderr
    assert "would pass" in done.stderr or code == 0


def test_demo_names_the_damaged_tensor() -> None:
    done = ggufnorm("demo", "--chunks", "2")
    assert done.returncode == 0
    assert "The report names the damaged tensor: blk.2.ffn_down.weight." in done.stdout


# -- errors ------------------------------------------------------------------------------


def one_line_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]


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
        (tmp_path, ["cannot open", "directory"]),
    ):
        if bad == tmp_path and command == "inspect":  # stands for the models in it
            continue
        models_given = [bad] if command == "inspect" else [sample, bad]
        one_line_error(ggufnorm(command, *models_given), 3, str(bad), *words)


def test_models_that_do_not_belong_together(tiny: dict[str, Path], tmp_path: Path) -> None:
    deep = models.llama(tmp_path / "deep.gguf", models.Shape(n_layer=4))
    one_line_error(ggufnorm("drift", tiny["llama"], deep), 3, "number of layers is 4 and not 3")
    wide = models.llama(tmp_path / "wide.gguf", models.Shape(n_vocab=330))
    one_line_error(ggufnorm("drift", tiny["llama"], wide), 3, "vocabulary is 330 and not 320")


def test_texts_that_cannot_be_run(tiny: dict[str, Path], tmp_path: Path) -> None:
    pair = [tiny["llama"], tiny["llama"]]
    file = tmp_path / "text.txt"
    one_line_error(ggufnorm("drift", *pair, "-f", file), 3, str(file), "No such file")
    file.touch()
    one_line_error(ggufnorm("drift", *pair, "-f", file), 3, str(file), "empty")
    file.write_bytes(b"\xff\xfe\x00")
    one_line_error(ggufnorm("drift", *pair, "-f", file), 3, str(file), "not UTF-8")
    file.write_text("short")
    one_line_error(ggufnorm("drift", *pair, "-f", file), 3, "fewer than one chunk of 512")


def test_an_engine_crash_is_told_with_its_log(
    tiny: dict[str, Path], small: list[str | Path], tmp_path: Path
) -> None:
    key = "llama.attention.layer_norm_rms_epsilon"
    bad = models.edited(tiny["llama"], tmp_path / "bad.gguf", floats={key: -1.0})
    out = tmp_path / "report.json"
    done = ggufnorm("drift", tiny["llama"], bad, *small, "-o", out)
    one_line_error(done, 4, "SIGABRT")
    assert "GGML_ASSERT(eps >= 0.0f) failed" in done.stderr
    assert not out.exists()


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


def test_interrupting_a_run_reports_what_was_done(
    sample: Path, sample_q4: Path, tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "report.json", tmp_path / "checkpoint"
    file = tmp_path / "long.txt"
    file.write_text(Path(sample.parent / "heldout.txt").read_text() * 30)
    # A shell lets what it starts in the background ignore SIGINT, and Python keeps to that.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{heeding}; from ggufnorm.cli.main import main; main()"
    command = [sys.executable, "-c", script, "drift", sample, sample_q4, "-f", file, "-o", out]
    with subprocess.Popen([*command, "--resume", checkpoint], stderr=subprocess.PIPE) as process:
        try:
            while not checkpoint.exists() and process.poll() is None:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert b"interrupted" in stderr
    run = json.loads(out.read_text())["run"]
    assert 0 < run["n_chunks"] < run["n_chunks_planned"]
