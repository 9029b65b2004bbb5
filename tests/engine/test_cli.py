"""The commands that run models, as a user runs them: whole processes, exit codes, both streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import models
from tests.processes import ggufnorm, interrupt, interruptible, one_line_error


def test_drift_keeps_data_and_progress_apart(
    tiny: dict[str, Path], small: list[str | Path]
) -> None:
    done = ggufnorm("drift", tiny["llama"], tiny["llama"], *small, "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["verdict"].startswith("No drift")
    first, memory, times = done.stderr.splitlines()
    assert first == "drift …"
    assert memory.startswith("drift: memory: about ")
    assert "more chunks of" in times


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


def test_interrupting_a_run_reports_what_was_done(
    sample: Path, sample_q4: Path, tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "report.json", tmp_path / "checkpoint"
    file = tmp_path / "long.txt"
    file.write_text(Path(sample.parent / "heldout.txt").read_text() * 30)
    command = ["drift", sample, sample_q4, "-f", file, "-o", out, "--resume", checkpoint]
    with interruptible(*command) as process:
        said = interrupt(process, checkpoint.exists)
    assert "drift: interrupted: finishing this chunk; once more ends it" in said
    run = json.loads(out.read_text())["run"]
    assert 0 < run["n_chunks"] < run["n_chunks_planned"]


@pytest.fixture
def small(text: str, tmp_path: Path) -> list[str | Path]:
    """Options that make drift of the tiny models quick."""
    file = tmp_path / "text.txt"
    file.write_text(text)
    return ["-f", file, "-c", "32", "--chunks", "2"]
