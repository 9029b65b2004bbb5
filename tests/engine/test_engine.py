"""The engine's child process and the ctypes mirror: what happens when things break."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

import ggufnorm
from ggufnorm import errors
from ggufnorm.core.progress import OnProgress, Progress
from ggufnorm.engines import frames, worker
from ggufnorm.engines.base import Batch
from ggufnorm.engines.llama import binding
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.engines.llama.runner import LlamaRunner
from ggufnorm.engines.worker import Channel, call
from ggufnorm.errors import EngineError, EngineMissingError, GGUFError
from tests import in_process, models
from tests.fault_table import fault


@dataclass(frozen=True)
class Value:
    """Crosses to the child and back."""

    text: str
    array: NDArray[np.float32] | None = None
    seconds: float = 0.0


def echo(job: Value, channel: Channel) -> Value:
    channel.emit(Progress("echoing", 1, 2))
    print("a library prints to standard output")
    os.write(1, b"so does C code\n")
    return job


def abort(_job: Value, _channel: Channel) -> None:
    os.write(2, b"GGML_ASSERT(false) failed\n")
    os.abort()


def be_killed(_job: Value, _channel: Channel) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash(_job: Value, _channel: Channel) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def raise_ours(_job: Value, _channel: Channel) -> None:
    raise GGUFError("model.gguf", 24, "metadata key 3", "it has no name")


def raise_other(_job: Value, _channel: Channel) -> None:
    raise ZeroDivisionError("oops")


def wait(job: Value, channel: Channel) -> bool:
    channel.emit(Progress("waiting"))
    return channel.cancel.wait(job.seconds)


def leave(_job: Value, _channel: Channel) -> None:
    os._exit(7)


NOTHING = Value("")


def test_child_returns_its_result_and_its_progress() -> None:
    messages: list[Progress] = []
    array = np.array([[1, np.nan], [-np.inf, 2]], np.float32)
    found = call(echo, Value("ä\n", array), messages.append)
    assert found.text == "ä\n"
    np.testing.assert_array_equal(found.array, array)
    assert messages == [Progress("echoing", 1, 2)]


def test_an_abort_is_an_error_that_quotes_the_log() -> None:
    with pytest.raises(EngineError, match="SIGABRT") as caught:
        call(abort, NOTHING)
    assert "GGML_ASSERT(false) failed" in caught.value.log


def test_a_kill_is_told_as_lack_of_memory() -> None:
    with pytest.raises(EngineError, match="ran out of memory"):
        call(be_killed, NOTHING)


def test_a_crash_is_told_by_its_signal() -> None:
    with pytest.raises(EngineError, match="SIGSEGV"):
        call(crash, NOTHING)


def test_an_exit_without_a_result_is_an_error() -> None:
    with pytest.raises(EngineError, match="exit code 7"):
        call(leave, NOTHING)


@fault("Processes", "half a message from a killed child", then="taken for its end", tried=500)
def test_half_a_frame_is_the_end() -> None:
    whole = io.BytesIO()
    frames.write_frame(whole, {"result": Value("x", np.ones(100, np.float32))})
    for n in range(len(whole.getvalue())):
        assert frames.read_frame(io.BytesIO(whole.getvalue()[:n])) is None


def test_our_errors_cross_whole() -> None:
    with pytest.raises(GGUFError) as caught:
        call(raise_ours, NOTHING)
    assert str(caught.value) == "model.gguf: byte 24: metadata key 3: it has no name"
    assert (caught.value.offset, caught.value.field) == (24, "metadata key 3")


@pytest.mark.parametrize("kind", [k for k in vars(errors).values() if isinstance(k, type)])
def test_every_error_can_be_made_again_from_its_arguments(kind: type[Exception]) -> None:
    words = ["model.gguf", 24, "a field", "a problem", "a tensor"]
    n = {GGUFError: 4, errors.TensorDataError: 5}.get(kind, 1)
    error = kind(*words[:n])
    again = kind(*error.args)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_other_errors_become_engine_errors() -> None:
    with pytest.raises(EngineError, match="ZeroDivisionError in the engine: oops"):
        call(raise_other, NOTHING)


@fault("Processes", "a broken pipe behind the progress bar", then="not taken for the child's death")
def test_a_callback_that_raises_is_not_taken_for_the_child_s_death() -> None:
    def broken(_progress: Progress) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        call(echo, NOTHING, broken)


MODULES = ("numpy", "json", "queue", "struct", "gguf", "ggufnorm", "sitecustomize", "typing")


@fault(
    "Processes", "`numpy.py`, `json.py` … in the current folder of a run",
    then="the child imports from where its parent does, and runs none of them", tried=8,
)  # fmt: skip
def test_nothing_in_the_current_folder_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", *sys.path])
    assert call(echo, Value("unharmed")).text == "unharmed"
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def interrupting() -> Iterator[OnProgress]:
    """Sends this process a Ctrl-C soon after the child's message; its answer is no message."""

    def soon(progress: Progress) -> None:
        if not progress.note:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield soon
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_asks_a_cancellable_task_to_finish(interrupting: OnProgress) -> None:
    assert call(wait, Value("", seconds=60.0), interrupting, cancellable=True)


def test_an_interrupt_ends_another_task(interrupting: OnProgress) -> None:
    before = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt):
        call(wait, Value("", seconds=60.0), interrupting)
    assert set(psutil.Process().children()) == before


def test_llama_cpp_aborting_on_a_model_is_one_error(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    """A negative epsilon loads, and aborts llama.cpp at the first decode."""
    key = "llama.attention.layer_norm_rms_epsilon"
    bad = models.edited(tiny["llama"], tmp_path / "bad.gguf", floats={key: -1.0})
    with pytest.raises(EngineError, match="SIGABRT") as caught:
        ggufnorm.drift(tiny["llama"], bad, text=text, n_ctx=32)
    assert any("GGML_ASSERT(eps >= 0.0f) failed" in line for line in caught.value.log)


def test_quantizing_writes_nothing_when_it_fails(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineError):
        quantize(source, tmp_path / "target.gguf", "Q4_K_M")
    assert sorted(tmp_path.iterdir()) == [source]


def test_an_unknown_quantization_is_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Q4_Z"):
        quantize(tiny["llama"], tmp_path / "x.gguf", "Q4_Z")


def test_the_mirror_agrees_with_this_ggml() -> None:
    binding.check_layout()


@pytest.mark.parametrize("moved", ["ne", "nb", "op", "op_params", "src", "view_src", "name"])
def test_a_mirror_that_is_off_is_refused(moved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put four bytes before one field: the layout check must notice."""
    fields: list[tuple[str, Any]] = []
    for name, kind in binding.TensorStruct._fields_:
        fields += [("gap", ctypes.c_uint64)] if name == moved else []
        fields.append((name, kind))
    wrong = type("Wrong", (ctypes.Structure,), {"_fields_": fields})
    monkeypatch.setattr(binding, "TensorStruct", wrong)
    with pytest.raises(EngineMissingError, match="does not know"):
        binding.check_layout()


def test_a_model_too_large_for_memory_is_refused_before_it_is_loaded(
    tiny: dict[str, Path], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(available=1_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(worker, "call", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(EngineError, match=r"takes about .* GB of memory, and 0\.0 GB are free"):
        ggufnorm.drift(tiny["llama"], tiny["llama"], text=text, n_ctx=32)


def test_a_graph_that_changes_between_runs_is_refused(
    tiny: dict[str, Path], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = LlamaRunner.plan

    def plan_another(runner: LlamaRunner, chunk: list[Batch]) -> None:
        plan(runner, chunk)
        runner.graphs = [replace(g, nodes=(*g.nodes, g.nodes[-1])) for g in runner.graphs]

    monkeypatch.setattr(LlamaRunner, "plan", plan_another)
    with (
        in_process.engine(),
        pytest.raises(EngineError, match="graph changed between two runs: it had"),
    ):
        ggufnorm.drift(tiny["llama"], tiny["llama"], text=text, n_ctx=32, n_threads=1)
