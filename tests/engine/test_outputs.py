"""Where results are written: tried beforehand, in place, complete or not at all."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ggufnorm
from ggufnorm.analysis.attribution.recipe import recipe
from ggufnorm.engines import worker
from ggufnorm.engines.llama import quantize as quantizer
from ggufnorm.errors import EngineError, MemoryLimitError, RefusedError
from ggufnorm.formats import output
from tests import models
from tests.fault_table import fault

MAIN = "from ggufnorm.entry import main; main()"


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", options.pop("script", MAIN), *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, **options
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return models.llama(folder / "m.gguf")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


# -- in place ----------------------------------------------------------------------------


@fault("Writing", "`-o` is a symbolic link", then="its target gets the report, the link stays")
def test_a_link_stays_and_its_target_gets_the_report(model: Path, place: Path) -> None:
    (place / "real.json").write_text("old")
    (place / "link.json").symlink_to("real.json")
    (place / "dangling.json").symlink_to("new.json")
    for name in ("link.json", "dangling.json"):
        assert run("inspect", model, "-o", place / name).returncode == 0
    assert (place / "link.json").readlink() == Path("real.json")
    assert json.loads((place / "real.json").read_text())["schema"] == "ggufnorm/inspect"
    assert (place / "new.json").exists()
    assert (place / "dangling.json").is_symlink()


@fault("Writing", "`-o` has mode 0600", then="the mode stays")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_modes_stay_and_new_files_follow_the_umask(model: Path, place: Path, umask: int) -> None:
    (place / "old.json").touch(0o600)
    (place / "old.json").chmod(0o640)
    for name in ("old.json", "new.json"):
        done = run("inspect", model, "-o", place / name, preexec_fn=lambda: os.umask(umask))
        assert done.returncode == 0
    modes = [stat.S_IMODE((place / n).stat().st_mode) for n in ("old.json", "new.json")]
    assert modes == [0o640, 0o666 & ~umask]


def test_nobody_reads_in_between_what_a_private_file_gets(place: Path) -> None:
    (place / "private").touch(0o600)
    with output.replacing(place / "private") as unfinished:
        assert stat.S_IMODE(unfinished.stat().st_mode) == 0o600


@fault("Writing", "`-o` has mode 0444", then="refused before the work, as root too")
def test_what_is_read_only_is_refused(model: Path, place: Path) -> None:
    (place / "r.json").write_text("old")
    (place / "r.json").chmod(0o444)
    done = run("inspect", model, "-o", place / "r.json")
    assert done.returncode == 3
    assert "read-only" in done.stderr
    assert (place / "r.json").read_text() == "old"


@fault("Writing", "`-o` is a FIFO", then="written to, never replaced")
def test_a_fifo_stays_one_and_its_reader_gets_the_report(model: Path, place: Path) -> None:
    os.mkfifo(place / "f.json")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((place / "f.json").read_text)
        assert run("inspect", model, "-o", place / "f.json").returncode == 0
        assert json.loads(read.result(10))["schema"] == "ggufnorm/inspect"
    assert stat.S_ISFIFO((place / "f.json").stat().st_mode)


@fault("Writing", "`-o` is a device", then="written to, never replaced")
def test_a_device_stays_one(model: Path, place: Path) -> None:
    try:
        os.mknod(place / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        (place / "null").symlink_to("/dev/null")
    assert run("inspect", model, "--format", "json", "-o", place / "null").returncode == 0
    assert stat.S_ISCHR((place / "null").stat().st_mode)


@fault("Writing", "`-o /dev/stdout`, appending to a file", then="the report follows what is there")
def test_standard_output_by_its_name_is_not_begun_again(model: Path, place: Path) -> None:
    (place / "all").write_text("first\n")
    with (place / "all").open("a") as file:
        command = [sys.executable, "-c", MAIN, "inspect", model, "--format", "json"]
        subprocess.run([*command, "-o", "/proc/self/fd/1"], stdout=file, check=True)
    first, rest = (place / "all").read_text().split("\n", 1)
    assert first == "first"
    assert json.loads(rest)["schema"] == "ggufnorm/inspect"


# -- refused beforehand ------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess[str], what: str) -> None:
    assert done.returncode == 3
    assert what in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@fault("Writing", "`-o` is an input of the command", then="refused before the work, by any name")
def test_inputs_are_not_written_over(model: Path, place: Path) -> None:
    """By every command that writes, through a link, and before anything is loaded."""
    other = models.llama(place / "other.gguf")
    link = place / "link.gguf"
    link.symlink_to(model)
    text, trace = place / "text.json", place / "t.json"
    text.write_text("some text")
    trace.write_text("not even a trace")
    saved, array, sound = place / "saved.json", place / "a.npy", place / "s.wav"
    saved.write_text('{"schema": "ggufnorm/inspect"}')
    array.write_bytes(b"\x93NUMPY and no more")
    sound.write_bytes(b"RIFF\0\0\0\0WAVE and no more")
    kept = {p: p.read_bytes() for p in (model, other, text, trace, saved, array, sound)}
    json_ = ["--format", "json"]
    for arguments, out in [
        (["inspect", model, *json_], model),
        (["inspect", model, other, *json_], link),
        (["audit", model, *json_], link),
        (["audit", model.parent, *json_], model),
        (["diff", model, other, *json_], other),
        (["drift", model, other, *json_], link),
        (["drift", model, other, *json_, "-f", text], text),
        (["drift", model, other, "--resume", trace], trace),
        (["attribute", model, other, *json_], other),
        (["compare", trace, model, *json_], trace),
        (["trace", model], link),
        (["trace", model, "-f", text], text),
        (["recipe", model, other, "--imatrix", trace, *json_], trace),
        (["report", saved], saved),
        (["pixels", place / "none.png", "--array", array, *json_], array),
        (["audio", sound, *json_], sound),
    ]:
        refused(run(*arguments, "-o", out), f"{out} is an input")
    refused(run("drift", model, other, "--resume", link), "is an input")
    for option in ("--apply", "--tensor-type-file"):
        refused(run("recipe", model, other, option, link), "is an input")
    assert {p: p.read_bytes() for p in kept} == kept


@fault("Writing", "`-o` is a shard, or a file of the source", then="refused before the work")
def test_shards_and_files_of_a_source_are_inputs(model: Path, place: Path) -> None:
    shards = [place / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for shard in shards:
        shard.write_bytes(model.read_bytes())
    refused(run("inspect", shards[0], "--format", "json", "-o", shards[1]), "is an input")
    config = place / "config.json"
    config.write_text("{}")
    refused(run("audit", model, "--source", place, "-o", config), "is an input")
    (place / "report.json").write_text("of an earlier run")
    done = run("audit", model, "--source", place, "-o", place / "report.json")
    assert "is an input" not in done.stderr


@fault("Writing", "two outputs are one file", then="refused before the work")
def test_no_two_outputs_are_one_file(model: Path, place: Path) -> None:
    out = place / "x.json"
    refused(run("drift", model, model, "-o", out, "--resume", out), "is an input")


@fault("Writing", "an output that cannot be written", then="refused before the models are opened")
@pytest.mark.parametrize(
    "arguments",
    [
        ["drift", "-o", "{}/x.json"],
        ["drift", "-o", "{}/x.html"],
        ["drift", "--resume", "{}/x"],
        ["attribute", "-o", "{}/x.json"],
        ["diff", "-o", "{}/x.json"],
        ["recipe", "--apply", "{}/x.gguf"],
        ["recipe", "--tensor-type-file", "{}/x.txt"],
        ["recipe", "--imatrix", "auto", "--save-imatrix", "{}/x.gguf"],
    ],
    ids=" ".join,
)
def test_outputs_are_tried_before_the_models_are_opened(arguments: list[str], place: Path) -> None:
    for folder in (place / "missing", place / "file"):
        (place / "file").touch()
        options = [a.format(folder) for a in arguments[1:]]
        done = run(arguments[0], place / "none.gguf", place / "none2.gguf", *options)
        refused(done, "error: cannot write")


def test_a_full_disk_is_found_beforehand(model: Path, place: Path) -> None:
    no_room = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))}
    done = run("trace", model, "-o", place / "trace", **no_room)
    refused(done, "File too large")
    assert list(place.iterdir()) == []


# -- failing all the same ----------------------------------------------------------------


def fails_at_the_end(target: str) -> str:
    """A command line whose last write fails, as on a disk that filled up in the meantime."""
    return (
        "import errno; from ggufnorm.formats import output\n"
        "def full(finished, target):\n"
        f"    if str(target).endswith({target!r}):\n"
        "        raise output.OutputError(f'cannot write {target}: No space left on device')\n"
        "    finished.replace(target)\n"
        f"output.move_to = full\n{MAIN}"
    )


@fault("Writing", "the disk is full at the end", then="the report is printed, exit code 3")
@pytest.mark.parametrize(("fmt", "shown"), [("json", "json"), ("html", "json"), ("txt", "text")])
def test_a_report_that_cannot_be_written_is_printed(
    model: Path, place: Path, fmt: str, shown: str
) -> None:
    if fmt == "html":
        pytest.importorskip("vl_convert")
    out = place / f"x.{fmt}"
    done = run("diff", model, model, "-o", out, script=fails_at_the_end(fmt))
    assert done.returncode == 3
    assert done.stderr.endswith(f"error: cannot write {out}: No space left on device\n")
    if shown == "json":
        assert json.loads(done.stdout)["schema"] == "ggufnorm/diff"
    else:
        assert "m.gguf" in done.stdout
    assert list(place.iterdir()) == []


@fault("Writing", "`--apply` fails at the end", then="the recipe is printed, exit code 3")
def test_a_recipe_that_cannot_be_applied_is_printed(model: Path, place: Path, text: str) -> None:
    quant = place / "q.gguf"
    quantizer.quantize(model, quant, "Q4_K_M", n_threads=1)
    (place / "text").write_text(text)
    options = ["-f", place / "text", "-c", "32", "--chunks", "1", "--types", "Q4_K,Q5_K"]
    options += ["--apply", place / "new.gguf", "--tensor-type-file", place / "types.txt"]
    before = {*place.iterdir()}
    done = run("recipe", model, quant, *options, script=fails_at_the_end("new.gguf"))
    assert done.returncode == 3
    assert "new.gguf: No space left on device" in done.stderr
    assert "llama-quantize" in done.stdout
    assert {*place.iterdir()} - before == {place / "types.txt"}


# -- ended ---------------------------------------------------------------------------------


def tracing(sample: Path, place: Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    """A long ``trace``, which has begun to write."""
    text = tmp_path / "long.txt"
    text.write_text(Path(sample.parent / "heldout.txt").read_text())
    # Under nohup the tests ignore a hang-up, and what they start would, too.
    script = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); {MAIN}"
    options = ["-f", text, "-o", place / "t", "--yes"]
    command = [sys.executable, "-c", script, "trace", sample, *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 1000 for p in place.glob(".ggufnorm-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@fault("Processes", "SIGTERM, SIGHUP", then="exit codes 143 and 129, nothing is left")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_nothing(
    sample: Path, place: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    import psutil

    with tracing(sample, place, tmp_path) as process:
        children = psutil.Process(process.pid).children()
        process.send_signal(number)
        process.send_signal(number)  # an impatient user
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in stderr
    assert list(place.iterdir()) == []
    assert children
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)


def test_an_ignored_signal_stays_ignored(model: Path) -> None:
    script = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from ggufnorm.cli import process\n"
        "with process.terminable(): os.kill(os.getpid(), signal.SIGHUP)\n" + MAIN
    )
    assert run("inspect", model, script=script).returncode == 0


@fault("Processes", "SIGKILL", then="the next run sweeps what is left")
def test_what_a_kill_leaves_is_swept(
    sample: Path, model: Path, place: Path, tmp_path: Path
) -> None:
    """Process ids repeat in containers, so a killed run must not block the next."""
    with tracing(sample, place, tmp_path) as process:
        process.kill()
    (left,) = place.iterdir()
    assert re.fullmatch(r"\.ggufnorm-[0-9a-f]{16}\.unfinished", left.name)
    assert run("inspect", model, "-o", place / "x.json").returncode == 0
    assert [p.name for p in place.iterdir()] == ["x.json"]


def test_only_what_is_ours_and_left_is_swept(place: Path) -> None:
    kept = [".ggufnorm-ignore.toml", ".ggufnorm-0.unfinished.gguf", "x.unfinished"]
    for name in kept:
        (place / name).touch()
    (place / ".ggufnorm-1.unfinished").symlink_to("x.unfinished")
    (place / ".ggufnorm-2.unfinished").mkdir()
    (place / ".ggufnorm-2.unfinished" / "model").touch()
    (place / ".ggufnorm-3.unfinished").touch()
    with output.replacing(place / "out") as a, output.temporary_folder(place) as b:
        output.sweep(place)
        assert a.exists()
        assert b.exists()
    assert {p.name for p in place.iterdir()} == {*kept, ".ggufnorm-1.unfinished", "out"}


@fault("Processes", "two runs into one folder", then="neither sweeps the other's")
def test_concurrent_runs_do_not_sweep_each_other(place: Path) -> None:
    """Processes and threads write into one folder, each sweeping it."""
    script = (
        "import sys; from ggufnorm.formats.output import write_text\n"
        "for i in range(50): write_text('x' * 1000, f'{sys.argv[1]}-{i}')"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(place / name)]) for name in "abcd"
    ]
    assert [w.wait(60) for w in writers] == [0] * 4
    files = list(place.iterdir())
    assert len(files) == 200
    assert all(f.read_text() == "x" * 1000 for f in files)


def test_an_ended_drift_leaves_no_half_checkpoint(
    model: Path, place: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_arguments: Any, **_options: Any) -> None:
        (place / ".ggufnorm-0.unfinished").write_text("half a checkpoint")
        raise EngineError("killed")

    monkeypatch.setattr(worker, "call", dies)
    with pytest.raises(EngineError, match="killed"):
        ggufnorm.drift(model, model, text=text, n_ctx=32, resume=place / "run")
    assert list(place.iterdir()) == []


# -- quantizers that are killed ------------------------------------------------------------

SMALL = {"n_ctx": 32, "chunks": 1, "types": ("Q4_K", "Q5_K"), "max_growth": 0.03}


@fault("Processes", "a quantizer that is killed or crashes", then="an error that says so, no skip")
@pytest.mark.parametrize("when", ["a type is tried", "a rival is made", "sizes are asked for"])
@pytest.mark.parametrize("error", [MemoryLimitError("killed (SIGKILL)"), EngineError("SIGSEGV")])
def test_a_quantizer_that_dies_is_no_refusal(
    tiny: dict[str, Path],
    sample_of_tiny: Path,
    text: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    error: EngineError,
) -> None:
    def dies(job: Any) -> bool:
        if isinstance(job, quantizer.DryRunJob):
            return when == "sizes are asked for" and len(job.file_types) > 1
        if not isinstance(job, quantizer.QuantizeJob):
            return False
        if when == "a type is tried":
            return job.tensor_types == {".": "Q5_K"}
        return when == "a rival is made" and not job.tensor_types

    inner = worker.call

    def child(task: Any, job: Any, *arguments: Any, **how: Any) -> Any:
        if dies(job):
            raise error
        return inner(task, job, *arguments, **how)

    monkeypatch.setattr(worker, "call", child)
    with pytest.raises(type(error), match=re.escape(str(error))) as raised:
        recipe(tiny["llama"], sample_of_tiny, text=text, apply=place / "out.gguf", **SMALL)
    assert not isinstance(raised.value, RefusedError)
    assert (raised.value.result is not None) == (when != "a type is tried")
    assert list(place.iterdir()) == []


@pytest.fixture(scope="module")
def sample_of_tiny(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("q") / "q4.gguf"
    quantizer.quantize(tiny["llama"], path, "Q4_K_M", n_threads=1)
    return path


def test_only_llama_cpps_own_refusal_is_one(tiny: dict[str, Path], place: Path) -> None:
    with pytest.raises(RefusedError, match="requires an imatrix"):
        quantizer.quantize(tiny["llama"], place / "x", "Q4_K_M", tensor_types={".": "IQ2_XS"})
    (place / "broken.gguf").write_bytes(tiny["llama"].read_bytes()[:-5000])
    with pytest.raises(EngineError) as raised:
        quantizer.quantize(place / "broken.gguf", place / "x", "Q4_K_M")
    assert not isinstance(raised.value, RefusedError)
    assert [p.name for p in place.iterdir()] == ["broken.gguf"]


def test_a_full_disk_is_no_refusal(tiny: dict[str, Path], place: Path) -> None:
    script = (
        "import sys; from ggufnorm.engines.llama.quantize import quantize\n"
        "from ggufnorm.errors import EngineError\n"
        "try: quantize(*sys.argv[1:], 'Q8_0')\n"
        "except EngineError as error: print(type(error).__name__, error)"
    )
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))}
    done = run(tiny["llama"], place / "x", script=script, **limit)
    assert done.stdout.startswith(f"EngineError quantizing {tiny['llama']}: llama.cpp failed: ")
    assert list(place.iterdir()) == []
