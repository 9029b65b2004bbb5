"""What a run takes is told before, what is large is asked for, and Ctrl-C is answered at once."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.cli import trace as trace_command
from ggufnorm.cli.main import cli
from ggufnorm.core.progress import Progress, duration
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.engines.worker import FINISHING, Channel, call
from ggufnorm.errors import InputError, TooLargeError
from ggufnorm.runs.loop import Loop, Policy
from tests import models
from tests.engine.test_engine import Value, wait
from tests.in_process import engine

SMALL: dict[str, Any] = {"n_ctx": 32, "chunks": 3, "n_threads": 1}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("costs")
    ref = models.llama(folder / "ref.gguf")
    quantize(ref, folder / "quant.gguf", "Q8_0", n_threads=1)
    return ref, folder / "quant.gguf"


@pytest.fixture
def in_process() -> Iterator[None]:
    with engine():
        yield


def notes(run: Callable[..., object], *arguments: object, **options: object) -> list[str]:
    """What a run says before the work, in order."""
    found: list[str] = []

    def listen(progress: Progress) -> None:
        if progress.note:
            found.append(progress.phase)

    run(*arguments, **options, on_progress=listen)
    return found


MEMORY = "memory: about "


@pytest.mark.usefixtures("in_process")
def test_drift_tells_memory_then_time(pair: tuple[Path, Path]) -> None:
    memory, times = notes(ggufnorm.drift, *pair, **SMALL)
    assert memory.startswith(MEMORY)
    assert memory.endswith(" GB that are free; nothing on disk")
    assert times.startswith("2 more chunks of 32 tokens at ")
    assert re.search(r"tokens/s: about \d+ s$", times)


@pytest.mark.usefixtures("in_process")
def test_a_single_chunk_leaves_nothing_to_tell(pair: tuple[Path, Path]) -> None:
    assert len(notes(ggufnorm.drift, *pair, **{**SMALL, "chunks": 1})) == 1


@pytest.mark.usefixtures("in_process")
def test_a_time_budget_stands_beside_the_time(pair: tuple[Path, Path]) -> None:
    assert notes(ggufnorm.drift, *pair, **SMALL, budget=600)[1].endswith("(the budget is 10 min)")


@pytest.mark.usefixtures("in_process")
def test_trace_and_compare_tell_memory_disk_and_time(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    memory, disk, times = notes(ggufnorm.trace, pair[0], out, **SMALL)
    assert memory.startswith(MEMORY)
    assert memory.endswith(f"on disk {out}")
    megabytes = float(disk.partition(" takes ")[2].split()[0])
    assert megabytes == pytest.approx(out.stat().st_size / 1e6, abs=0.06)
    assert times.startswith("2 more chunks")
    memory, times = notes(ggufnorm.compare, out, pair[1], n_threads=1)
    assert memory.startswith(MEMORY)
    assert times.startswith("2 more chunks")


@pytest.mark.usefixtures("in_process")
def test_attribute_and_recipe_tell_memory_disk_and_time(pair: tuple[Path, Path]) -> None:
    memory, times = notes(ggufnorm.attribute, *pair, **{**SMALL, "chunks": 1})
    assert memory.startswith(MEMORY)
    assert "runs over 1 of 1 chunks" in times
    memory, times, *_ = notes(
        ggufnorm.recipe, *pair, max_growth=0.5, types=("q8_0", "q4_0"), budget=300.0,
        **{**SMALL, "chunks": 1},
    )  # fmt: skip
    assert memory.startswith(MEMORY)
    assert "MB in " in memory
    assert times.endswith("for 1 more types, then shares in two of them for at most 5 min each")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (121, "2 min"), (9000, "2.5 h")]
)
def test_times_for_a_person(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_run_that_goes_on_tells_what_is_left() -> None:
    told: list[str] = []
    channel = Channel(lambda p: told.append(p.phase) if p.note else None)
    loop = Loop(channel, Policy(), "digest", {}, 512)
    loop._phases = {"running": 7}
    loop.done = loop.begun = 7
    for _ in loop.units(10):
        pass
    assert [t.partition(" at ")[0] for t in told] == ["2 more chunks of 512 tokens"]


# -- large traces ------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_a_large_trace_is_refused_unless_somebody_agreed(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(
        TooLargeError, match=r"would take .* MB of .* that are free: give a --budget"
    ):
        ggufnorm.trace(pair[0], out, **SMALL, ask_above=1000)
    assert list(tmp_path.iterdir()) == []
    ggufnorm.trace(pair[0], out, **SMALL, ask_above=1000, budget=300_000)
    assert 1000 < out.stat().st_size <= 300_000
    ggufnorm.trace(pair[0], out, **SMALL)
    assert issubclass(TooLargeError, InputError), "exit code 3"


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_command, "_ASK_ABOVE", 1000)


def traced(pair: tuple[Path, Path], out: Path, *more: object, **options: Any) -> Any:
    words = ["trace", pair[0], "-o", out, "-c", 32, "--chunks", 2, "-t", 1, *more]
    return CliRunner().invoke(cli, [str(w) for w in words], standalone_mode=False, **options)


@pytest.mark.usefixtures("in_process", "limited")
def test_without_a_terminal_the_command_wants_a_word(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    refused = traced(pair, out)
    assert isinstance(refused.exception, TooLargeError)
    assert not out.exists()
    for agreed in (["--yes"], ["--budget", "300kB"]):
        assert traced(pair, out, *agreed).exception is None
        assert out.exists()
        out.unlink()


@pytest.mark.usefixtures("in_process", "limited")
@pytest.mark.parametrize("answer", ["y\n", "n\n", "\n"])
def test_on_a_terminal_the_command_asks(
    pair: tuple[Path, Path], tmp_path: Path, answer: str
) -> None:
    out = tmp_path / "out.safetensors"
    asked: list[str] = []

    def confirm(text: str, **_: object) -> bool:
        asked.append(text)
        return answer == "y\n"

    stream = SimpleNamespace(isatty=lambda: True)
    streams = SimpleNamespace(stdin=stream, stderr=stream)
    with (
        mock.patch.object(trace_command, "sys", streams),
        mock.patch("click.confirm", confirm),
    ):
        done = traced(pair, out)
    assert len(asked) == 1
    assert asked[0].endswith("that are free. Write it?")
    assert out.exists() == (answer == "y\n")
    assert isinstance(done.exception, TooLargeError) == (answer != "y\n")


# -- Ctrl-C ------------------------------------------------------------------------------


def test_ctrl_c_is_answered_before_the_chunk_ends() -> None:
    heard: list[tuple[float, str]] = []
    started = time.monotonic()

    def listen(progress: Progress) -> None:
        if progress.note:
            heard.append((time.monotonic() - started, progress.phase))
        else:
            threading.Timer(0.1, interrupt).start()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        call(wait, Value("", seconds=60.0), listen, cancellable=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [words for _, words in heard] == [FINISHING]
    assert "once more ends it" in FINISHING
