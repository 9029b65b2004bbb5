"""A command as a process: standard streams of every kind, signals, faults of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufnorm.cli import process
from ggufnorm.core.audit import Finding
from ggufnorm.core.printable import printable
from ggufnorm.report.github import to_github
from tests import models
from tests.fault_table import fault

MAIN = "from ggufnorm.entry import main; main()"
FAILING = f"import ggufnorm.analysis.inspection as i; i.inspect = lambda *a, **k: 1 / 0; {MAIN}"


def run(*arguments: str | Path, script: str = MAIN, **options: Any) -> Any:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, check=False, timeout=120, **options)


def shell(line: str, *arguments: str | Path, script: str = MAIN, **options: Any) -> Any:
    """Run ``ggufnorm ARGUMENTS`` in the place of ``$@`` of a line of bash."""
    command = ["bash", "-c", line, "bash", sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=False, timeout=120, capture_output=True, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.llama(tmp_path_factory.mktemp("process") / "m.gguf")


# -- standard streams ----------------------------------------------------------------------


@fault("Processes", "standard output closed or full", then="exit code 3, in one line")
@pytest.mark.parametrize("command", [["inspect", "{}"], ["rules"], ["--help"], ["--version"]])
@pytest.mark.parametrize(
    ("line", "reason"),
    [('"$@" >/dev/full', "No space left on device"), ('"$@" >&-', "it is closed")],
)
def test_output_that_goes_nowhere_exits_with_3(
    model: Path, command: list[str], line: str, reason: str
) -> None:
    done = shell(line, *[a.format(model) for a in command])
    assert done.returncode == 3
    assert done.stderr.decode() == f"error: cannot write to standard output: {reason}\n"


@fault("Processes", "a reader that closes standard output", then="exit code 0")
def test_a_reader_that_has_seen_enough_is_no_error(model: Path, tmp_path: Path) -> None:
    line = '"$@" --format json | head -c 1; exit ${PIPESTATUS[0]}'
    done = shell(line, "inspect", *[model] * 40)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"{", b"")
    bad = models.edited(
        model, tmp_path / "bad.gguf", floats={"llama.attention.layer_norm_rms_epsilon": -1.0}
    )
    done = shell('"$@" | true; exit ${PIPESTATUS[0]}', "audit", bad)
    assert done.returncode == 1  # what audit found still counts


@fault("Processes", "standard error closed or full", then="errors go to standard output")
@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("arguments", "script", "code", "said"),
    [
        (["inspect", "none.gguf"], MAIN, 3, "error: cannot open none.gguf"),
        (["inspect"], MAIN, 2, "missing MODEL"),
        (["inspect", "none.gguf"], FAILING, 70, "ZeroDivisionError"),
    ],
)
def test_errors_are_told_without_standard_error(
    closed: str, arguments: list[str], script: str, code: int, said: str
) -> None:
    done = shell(f'"$@" {closed}', *arguments, script=script)
    assert done.returncode == code
    assert said in done.stdout.decode()


def test_a_run_without_standard_error_is_as_any_other(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(text)
    arguments = ["drift", tiny["llama"], tiny["llama"], "-f", tmp_path / "text", "-c", "32"]
    done = shell('"$@" 2>&- <&-', *arguments, "-o", tmp_path / "x.json")
    assert (done.returncode, done.stdout) == (0, b"")
    assert json.loads((tmp_path / "x.json").read_text())["verdict"].startswith("No drift")


def test_files_do_not_take_the_numbers_of_closed_streams(model: Path) -> None:
    script = (
        "from ggufnorm.cli import process; process.mend_streams()\n"
        "import sys; number = open(sys.argv[1]).fileno(); sys.exit(number)"
    )
    assert shell('"$@" >&- 2>&- <&-', model, script=script).returncode > 2


@fault("Processes", "standard output in ASCII, Latin-1, cp1252", then="no character is an error")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_encoding_can_be_written(model: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    text = run("inspect", model, env=environment)
    assert (text.returncode, text.stderr) == (0, b"")
    # click writes UTF-8 where the system says ASCII
    lines = text.stdout.decode(encoding.replace("ascii", "utf-8")).splitlines()
    same = run("inspect", model, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert list(map(len, lines)) == list(map(len, same.stdout.decode().splitlines()))
    document = run("inspect", model, "--format", "json", env=environment)
    assert json.loads(document.stdout.decode("utf-8"))["schema"] == "ggufnorm/inspect"


@fault("Names", "a name with `\\xff`", then="written as its escape")
def test_names_that_are_no_unicode(model: Path, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a\xffb.gguf")
    Path(path).write_bytes(model.read_bytes())
    for fmt in ("text", "json", "markdown", "csv"):
        out = tmp_path / f"x.{fmt}"
        printed = run("inspect", path, "--format", fmt)
        written = run("inspect", path, "--format", fmt, "-o", out)
        assert (printed.returncode, written.returncode) == (0, 0)
        assert printed.stderr == b""
        assert b"a\\udcffb.gguf: " in written.stderr
        assert printed.stdout.decode() == out.read_text()
        if fmt == "json":
            assert json.loads(out.read_text())["path"] == path  # as an escape it is still whole
    missing = run("inspect", f"{path}.no")
    assert missing.returncode == 3
    assert b"a\\udcffb.gguf.no" in missing.stderr


# -- names -----------------------------------------------------------------------------------


@fault("Names", "a name of 20 MB, of escapes, of bidi characters", then="cut and escaped")
def test_hostile_names_are_escaped_and_cut() -> None:
    assert printable("blk.0.attn_norm.weight") == "blk.0.attn_norm.weight"
    assert printable("a\x1b[31m\r\n\u202eb\udcff") == r"a\x1b[31m\r\n\u202eb\udcff"
    assert printable("é 中 🙂") == "é 中 🙂"
    long = printable("x" * 20_000_000)
    assert long.endswith("x… (19,998,000 more characters)")
    assert len(long) < 2100
    assert len(printable("\x1b" * 20_000_000)) < 2100
    assert printable("abcdef", 3) == "abc… (3 more characters)"


@fault("Names", "workflow commands and escapes in a name", then="escaped")
def test_a_github_log_gets_no_escapes_and_no_order_of_its_own(model: Path) -> None:
    import ggufnorm

    name = "blk\x1b[2J\u202e\n::error::x"
    finding = Finding(
        rule="N101", severity="error", message=f"{name} is wrong", tensor=name, layer=0, evidence={}
    )
    from dataclasses import replace

    report = replace(ggufnorm.audit(model), path=f"dir/{name}", findings=(finding,))
    (line,) = to_github(report).splitlines()
    assert line.isprintable()
    assert line.startswith("::error file=dir/blk\\x1b[2J")


def test_a_hostile_name_in_an_error_is_escaped(tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "a\x1b[2J\u202eb.gguf")
    assert done.returncode == 3
    assert done.stderr.decode().rstrip("\n").isprintable()


# -- signals ---------------------------------------------------------------------------------


@fault("Processes", "Ctrl-C where Python ignores exceptions", then="exit code 130, no traceback")
def test_a_ctrl_c_in_a_callback_is_not_lost(model: Path) -> None:
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import os, sys, time, weakref\n"
        "import ggufnorm.cli.main as cli\n"
        "class Gone: pass\n"
        "kept = [Gone()]\n"
        "r = weakref.ref(kept[0], lambda _: os.kill(os.getpid(), signal.SIGINT))\n"
        "def run():\n"
        "    kept.clear()\n"
        "    for _ in range(6000): time.sleep(0.01)\n"
        "cli._run = run\n" + MAIN
    )
    started = time.monotonic()
    done = run("inspect", model, script=script)
    assert (done.returncode, done.stderr) == (130, b"")
    assert time.monotonic() - started < 30


@fault("Processes", "Ctrl-C while a slow disk is read", then="exit code 130 at the next read")
@pytest.mark.parametrize("n", [1, 2])
def test_a_ctrl_c_does_not_wait_for_a_tensor(model: Path, n: int) -> None:
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import os, time\n"
        "from ggufnorm.core import kernels\n"
        "from ggufnorm.formats import finite\n"
        "kernels.library = lambda: None\n"
        "finite._CHUNK = 1\n"
        "read, calls = finite.read_raw_rows, []\n"
        "def slow(*arguments):\n"
        "    calls.append(arguments)\n"
        "    if len(calls) == 1: os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(1)\n"
        "    return read(*arguments)\n"
        "finite.read_raw_rows = slow\n" + MAIN
    )
    started = time.monotonic()
    done = run("audit", "--full", *[model] * n, script=script)
    assert done.returncode == 130
    assert b"Traceback" not in done.stderr
    assert time.monotonic() - started < 30


@fault("Processes", "Ctrl-C while modules are imported", then="exit code 130, no traceback")
@pytest.mark.parametrize("module", ["click", "ggufnorm.cli.main", "ggufnorm.cli.process"])
def test_a_ctrl_c_during_the_imports_is_no_traceback(model: Path, module: str) -> None:
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import os, sys\n"
        "class Late:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Late())\n" + MAIN
    )
    done = run("inspect", model, script=script)
    assert done.returncode == 130
    assert b"Traceback" not in done.stderr


def test_a_ctrl_c_at_any_moment_is_no_traceback(model: Path) -> None:
    """From the first line of ours to the last: the interpreter's own start is not ours."""
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from ggufnorm.entry import main; print('begun', flush=True); main()"
    )
    codes = set()
    for delay in [0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.3]:
        with subprocess.Popen(
            [sys.executable, "-c", script, "inspect", str(model)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as child:  # fmt: skip
            assert child.stdout
            assert child.stdout.readline() == b"begun\n"
            time.sleep(delay)
            child.send_signal(signal.SIGINT)
            _, stderr = child.communicate(timeout=60)
        assert b"Traceback" not in stderr
        codes.add(child.returncode)
    assert codes <= {130, 0, -signal.SIGINT}


# -- faults ----------------------------------------------------------------------------------


@fault("Processes", "an unexpected exception", then="exit code 70 and what to report")
def test_an_unexpected_error_exits_with_70_and_says_what_to_report(
    model: Path, tmp_path: Path
) -> None:
    done = run("inspect", model, script=FAILING, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 70
    said = done.stderr.decode()
    assert "ZeroDivisionError: division by zero" in said
    assert "ggufnorm/verbs/files.py, line" in said
    assert "ggufnorm doctor" in said
    assert "Traceback" not in said
    (kept,) = tmp_path.glob("ggufnorm-traceback-*.txt")
    assert str(kept) in said
    assert kept.read_text().startswith("Traceback (most recent call last)")


def test_the_traceback_is_printed_if_it_is_asked_for(model: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "GGUFNORM_DEBUG": "1"}
    done = run("inspect", model, script=FAILING, env=environment)
    assert done.returncode == 70
    assert b"Traceback (most recent call last)" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", ["EOFError('e')", "MemoryError()", "BrokenPipeError(32, 'x')"])
def test_no_error_is_taken_for_another_end(model: Path, error: str) -> None:
    """Click takes EOFError for an abort and a broken pipe for its own output's."""
    script = (
        "import ggufnorm.analysis.inspection as i\n"
        f"def fail(*a, **k): raise {error}\n"
        f"i.inspect = fail; {MAIN}"
    )
    done = run("inspect", model, script=script)
    assert done.returncode == 70
    assert error.split("(")[0].encode() in done.stderr


def test_what_was_found_is_printed_if_a_renderer_fails(model: Path, tmp_path: Path) -> None:
    script = (
        "import ggufnorm.cli.output as o; render = o.render\n"
        "o.render = lambda result, fmt, **k: render(result, fmt, **k) if fmt == 'json' else 1 / 0; "
        f"{MAIN}"
    )
    pytest.importorskip("vl_convert")
    done = run("inspect", model, "-o", tmp_path / "x.html", script=script)
    assert done.returncode == 70
    assert json.loads(done.stdout)["schema"] == "ggufnorm/inspect"


def test_a_fault_outside_of_ggufnorm_has_a_place() -> None:
    with pytest.raises(ValueError, match="Expecting") as raised:
        json.loads("{")
    assert "line" in process.fault(raised.value)
    assert "an unknown place" in process.fault(ValueError("never raised"))


def test_peak_memory_is_that_of_this_program_alone() -> None:
    """A process begins as a copy of its parent, whose memory Linux counts to its peak."""
    ask = "from ggufnorm.engines.worker import peak_memory; held = b'1' * {}; print(peak_memory())"
    held = np.ones(300 << 17)  # 300 MiB
    assert held.nbytes == 300 << 20
    for n_bytes in (0, 150 << 20):
        command = [sys.executable, "-c", ask.format(n_bytes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert n_bytes < int(done.stdout) < n_bytes + (100 << 20)
