"""A run that dies goes on where it was, and ends with the same report."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import random
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

import ggufnorm
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.progress import OnProgress, Progress
from ggufnorm.engines import worker
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.errors import EngineError, InputError
from ggufnorm.report.document import to_json
from ggufnorm.runs.options import SideOptions
from tests import in_process
from tests.fault_table import fault

N_CHUNKS = 160
"""Many more than ten legs get through before they are killed, on any machine."""
ALWAYS, SOMETIMES, NEVER = 0.0, 0.05, 3600.0
"""Seconds between two saves; a leg of a run takes some tenths of a second."""


@pytest.fixture(scope="module")
def quant(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "llama-q4.gguf"
    quantize(tiny["llama"], path, "Q4_K_S")
    return path


@pytest.fixture(scope="module")
def run(tiny: dict[str, Path], quant: Path, text: str) -> Callable[..., DriftReport]:
    def call(**options: Any) -> DriftReport:
        given = {"text": text * 60, "n_ctx": 32, "chunks": 3, "n_threads": 1, **options}
        return ggufnorm.drift(tiny["llama"], quant, **given)

    return call


class Killer:
    """Kills the engine a random moment after a random number of chunks of this run."""

    def __init__(self, rng: random.Random) -> None:
        self.chunks, self.delay = rng.randint(2, 5), rng.uniform(0, 0.02)
        self.seen: list[int] = []
        self.before = engines()

    def __call__(self, progress: Progress) -> None:
        if progress.total:
            self.seen.append(progress.done)
            if len(self.seen) == 1:
                (self.engine,) = engines() - self.before
            if len(self.seen) == self.chunks:
                threading.Timer(self.delay, self.engine.kill).start()


def engines() -> set[psutil.Process]:
    """Children of this process that run an engine."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # others' children may end meanwhile
            if "ggufnorm.engines" in " ".join(child.cmdline()):
                found.add(child)
    return found


def test_a_run_killed_ten_times_ends_as_if_it_had_not_been(
    run: Callable[..., DriftReport], tmp_path: Path
) -> None:
    rng = random.Random(0)
    legs = []
    for save_every in 2 * [ALWAYS, NEVER, SOMETIMES, SOMETIMES, SOMETIMES]:
        killer = Killer(rng)
        with pytest.raises(EngineError, match=r"was killed.*chunks were done: the same command"):
            run(chunks=N_CHUNKS, resume=tmp_path / "run", save_every=save_every, on_progress=killer)
        legs.append(killer.seen)
    last: list[Progress] = []
    resumed = run(chunks=N_CHUNKS, resume=tmp_path / "run", on_progress=last.append)
    begun = [leg[0] for leg in legs] + [next(p.done for p in last if p.total)]
    assert begun == sorted(begun)
    lost = [leg[-1] - (after - 1) for leg, after in zip(legs, begun[1:], strict=True)]
    assert max(lost[0], lost[5]) <= 0, "what was saved is not run again"
    assert min(lost[1], lost[6]) > 0, "what was not saved is"
    assert to_json(resumed) == to_json(run(chunks=N_CHUNKS))


def test_a_finished_run_is_reported_again_without_running(
    run: Callable[..., DriftReport], tmp_path: Path
) -> None:
    with in_process.engine():
        first = run(resume=tmp_path / "run")
        seen: list[Progress] = []
        again = run(resume=tmp_path / "run", on_progress=seen.append)
    assert to_json(again) == to_json(first)
    assert all(p.total == 0 for p in seen)


def test_the_reference_against_itself_resumes_too(
    run: Callable[..., DriftReport], tmp_path: Path
) -> None:
    with in_process.engine():
        first = run(resume=tmp_path / "run", floor=True)
        assert to_json(run(resume=tmp_path / "run", floor=True)) == to_json(first)


@pytest.mark.parametrize(
    "other", [{"chunks": 4}, {"n_ctx": 16}, {"floor": True}, {"text": "ab " * 99}]
)
def test_another_jobs_checkpoint_is_refused(
    run: Callable[..., DriftReport], other: dict[str, Any], tmp_path: Path
) -> None:
    with in_process.engine():
        run(resume=tmp_path / "run")
        before = (tmp_path / "run").read_bytes()
        with pytest.raises(InputError, match="belongs to another run"):
            run(resume=tmp_path / "run", **other)
    assert (tmp_path / "run").read_bytes() == before


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\xfe\x00",
        b"{}",
        b"[]",
        b"null",
        b"GGUF" + bytes(9),
        b"[" * 100_000,
        b'{"schema": 1}',
    ],
)
def test_garbage_is_refused_and_left_as_it_is(
    run: Callable[..., DriftReport], garbage: bytes, tmp_path: Path
) -> None:
    (tmp_path / "run").write_bytes(garbage)
    with in_process.engine(), pytest.raises(InputError, match="checkpoint"):
        run(resume=tmp_path / "run")
    assert (tmp_path / "run").read_bytes() == garbage


@pytest.mark.parametrize("part", ["drift", "logits", "phases"])
def test_a_checkpoint_that_lacks_a_part_is_refused(
    run: Callable[..., DriftReport], part: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with in_process.engine():
        run(resume=path)
        head, body = (json.loads(line) for line in path.read_text().split("\n"))
        for broken in (None, {"x": None}, "x"):
            state = {**body, part: broken}
            if part in body["keeps"]:
                state = {**body, "keeps": {**body["keeps"], part: broken}}
            text = json.dumps(state)
            signed = {**head, "sha256": hashlib.sha256(text.encode()).hexdigest()}
            path.write_text(f"{json.dumps(signed)}\n{text}")
            with pytest.raises(InputError, match="is damaged: remove it"):
                run(resume=path)


@fault("Reading", "a file to resume from with one digit changed", then="refused: it is damaged")
def test_a_checkpoint_with_another_number_in_it_is_refused(
    run: Callable[..., DriftReport], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with in_process.engine():
        run(resume=path)
        head, body = path.read_text().split("\n")
        at = body.rindex("1")
        path.write_text(f"{head}\n{body[:at]}2{body[at + 1 :]}")
        with pytest.raises(InputError, match="is damaged: remove it"):
            run(resume=path)


def test_a_budget_ends_the_run_and_the_same_command_goes_on(
    run: Callable[..., DriftReport], tmp_path: Path
) -> None:
    with in_process.engine():
        first = run(resume=tmp_path / "run", budget=1e-6)
        assert (first.run.n_chunks, first.run.cut) == (1, "the budget of 0 s was spent")
        assert run(resume=tmp_path / "run").run.cut is None
        assert to_json(run(resume=tmp_path / "run")) == to_json(run())


def test_a_checkpoint_that_cannot_be_written_is_a_warning(
    run: Callable[..., DriftReport], tmp_path: Path
) -> None:
    seen: list[Progress] = []
    with in_process.engine():
        expected = run()
        report = run(resume=tmp_path / "no such folder" / "run", on_progress=seen.append)
    assert to_json(report) == to_json(expected)
    warnings = [p.phase for p in seen if p.warning]
    assert len(warnings) == 1
    assert warnings[0].startswith("no checkpoint is kept: cannot write")
    assert warnings[0].endswith("going on without it")
    assert list(tmp_path.iterdir()) == []


# -- other long commands ---------------------------------------------------------------------


class Cancelled:
    """Stands in for the child: a Ctrl-C comes after some steps of a task's work."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, task: Any, job: Any, on_progress: OnProgress, **_how: Any) -> Any:
        cancel, steps = threading.Event(), 0

        def emit(progress: Progress) -> None:
            nonlocal steps
            steps += progress.total > 0
            if steps >= self.after:
                cancel.set()
            on_progress(progress)

        return in_process.call_here(task, job, emit, cancel=cancel)


def test_a_trace_goes_on_and_is_the_same_file(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    given = {"text": text * 60, "n_ctx": 32, "chunks": 4, "n_threads": 1}
    whole, out, progress = (tmp_path / n for n in ("whole", "out", "progress"))
    with in_process.engine():
        ggufnorm.trace(tiny["llama"], whole, **given)
        with mock.patch.object(worker, "call", Cancelled(2)), pytest.raises(KeyboardInterrupt):
            ggufnorm.trace(tiny["llama"], out, resume=progress, **given)
        assert not out.exists()
        seen: list[Progress] = []
        ggufnorm.trace(tiny["llama"], out, resume=progress, on_progress=seen.append, **given)
    assert [p.done for p in seen if p.total] == [3, 4]
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_a_comparison_with_a_trace_goes_on(
    tiny: dict[str, Path], quant: Path, text: str, tmp_path: Path
) -> None:
    trace, progress = tmp_path / "trace.safetensors", tmp_path / "progress"
    with in_process.engine():
        ggufnorm.trace(tiny["llama"], trace, text=text * 60, n_ctx=32, chunks=4, n_threads=1)
        whole = ggufnorm.compare(trace, quant, n_threads=1)
        with mock.patch.object(worker, "call", Cancelled(1)):
            part = ggufnorm.compare(trace, quant, n_threads=1, resume=progress)
        assert (part.run.n_chunks, part.run.cut) == (1, "interrupted")
        assert to_json(ggufnorm.compare(trace, quant, n_threads=1, resume=progress)) == to_json(
            whole
        )


@pytest.mark.parametrize("after", [5, 9])
def test_an_attribution_goes_on(
    tiny: dict[str, Path], quant: Path, text: str, after: int, tmp_path: Path
) -> None:
    given = {"text": text * 60, "n_ctx": 32, "chunks": 2, "n_threads": 1, "rest": 0.0}
    given |= {"budget": 3600.0, "save_every": 0.0}
    call = partial(ggufnorm.attribute, tiny["llama"], quant, **given)
    with in_process.engine():
        whole = ggufnorm.attribute(tiny["llama"], quant, **given)
        with mock.patch.object(worker, "call", Cancelled(after)):
            assert call(resume=tmp_path / "progress").interrupted
        assert (tmp_path / "progress").exists()
        assert to_json(call(resume=tmp_path / "progress")) == to_json(whole)


# -- another engine --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama-cpp-python's libraries once more, of which one has other bytes."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec
    assert spec.origin
    folder = tmp_path_factory.mktemp("build")
    for path in (Path(spec.origin).parent / "lib").iterdir():
        (folder / path.name).symlink_to(path)
    library = folder / "libllama.so"
    content = library.read_bytes()
    library.unlink()
    library.write_bytes(content + b"\0")
    return folder


@pytest.mark.parametrize("command", ["drift", "trace", "compare", "attribute", "recipe"])
@fault("Reading", "a file to resume from that another engine wrote", then="refused: what differs")
def test_no_run_goes_on_in_another_engine(
    tiny: dict[str, Path],
    quant: Path,
    text: str,
    other_build: Path,
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"n_threads": 1, "resume": tmp_path / "progress"}
    text_given = {"text": text * 60, "n_ctx": 32, "chunks": 2, **given}
    model, trace = tiny["llama"], tmp_path / "trace.safetensors"
    run = {
        "drift": lambda: ggufnorm.drift(model, quant, **text_given),
        "trace": lambda: ggufnorm.trace(model, tmp_path / "out", **text_given),
        "compare": lambda: ggufnorm.compare(trace, quant, **given),
        "attribute": lambda: ggufnorm.attribute(model, quant, budget=60.0, **text_given),
        "recipe": lambda: ggufnorm.recipe(
            model, quant, types=("Q4_K", "Q5_K"), max_growth=0.03, budget=60.0, **text_given
        ),
    }[command]
    with in_process.engine():
        if command == "compare":
            options = {**text_given, "resume": None}
            ggufnorm.trace(model, trace, **options)
        stopped = Cancelled(1) if command == "trace" else in_process.call_here  # or no file is left
        with mock.patch.object(worker, "call", stopped), contextlib.suppress(KeyboardInterrupt):
            run()
    before = (tmp_path / "progress").read_bytes()
    monkeypatch.setenv("GGUFNORM_LLAMA_CPP", str(other_build))
    with pytest.raises(InputError, match=r"belongs to another run \(.*digest was \w+… and is \w+"):
        run()
    assert (tmp_path / "progress").read_bytes() == before


def test_where_a_build_lies_does_not_matter_to_a_run_that_goes_on(
    run: Callable[..., DriftReport],
    other_build: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GGUFNORM_LLAMA_CPP", str(other_build))
    first = run(resume=tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(other_build, moved, symlinks=True)
    monkeypatch.setenv("GGUFNORM_LLAMA_CPP", str(moved))
    seen: list[Progress] = []
    again = run(resume=tmp_path / "run", on_progress=seen.append)
    assert all(p.total == 0 for p in seen)
    assert again.operations == first.operations


def test_other_options_are_named(run: Callable[..., DriftReport], tmp_path: Path) -> None:
    with in_process.engine():
        run(resume=tmp_path / "run")
        with pytest.raises(InputError, match=r"options\.cache_type_k was f16 and is q8_0"):
            run(resume=tmp_path / "run", options=SideOptions(cache_type_k="q8_0"))
        side = SideOptions(n_ubatch=16)
        with pytest.raises(InputError, match=r"n_ubatch was 512 and is 16"):
            run(resume=tmp_path / "run", options=side, options_ref=side)
