"""Thousands of models at once: an organisation on a loopback Hub, lists, folders, streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.analysis.audit.fleet import workers
from ggufnorm.analysis.audit.manifest import save_manifest
from ggufnorm.cli.main import cli
from ggufnorm.core.audit import AuditReport, AuditSet
from ggufnorm.core.model import Skipped
from ggufnorm.errors import ConfigError, InputError, MissingPackageError
from ggufnorm.formats.location import expand
from ggufnorm.report.formats import load
from tests.conversions import build, write
from tests.hub import Limited, commit, repositories
from tests.paths import ROOT
from tests.servers import HubServer, Repo, running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GGUFNORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running(repositories(tmp_path, 30, n_architectures=4)) as found:
        found.page = 12
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def files_asked(hub: HubServer) -> int:
    return sum("/resolve/" in request.path for request in hub.requests)


def kinds(found: list[AuditReport | Skipped]) -> list[str]:
    return [
        "not read" if isinstance(f, Skipped) else "error" if f.summary.errors else "fine"
        for f in found
    ]


EXPECTED = ["not read" if i % 25 == 24 else "error" if i % 10 == 9 else "fine" for i in range(30)]


def test_an_organisation_is_listed_by_pages_and_audited_in_order(hub: HubServer) -> None:
    found = list(ggufnorm.audit_each(["hf://org"]))
    assert kinds(found) == EXPECTED
    paths = [f.what if isinstance(f, Skipped) else f.path for f in found]
    assert [p.rpartition("/")[2] for p in paths] == [f"model-{i:05}-F16.gguf" for i in range(30)]
    listed = [r for r in hub.requests if r.path.startswith("/api/models?")]
    assert len(listed) == 3
    assert len(hub.requests) == 3 + files_asked(hub)
    sizes = [
        len(f) for repo in hub.repos.values() for name, f in repo.files.items() if name[0] == "m"
    ]
    assert hub.sent < 1.2 * sum(min(size, 1 << 17) for size in sizes) + (1 << 20)


def test_the_second_run_fetches_nothing(hub: HubServer) -> None:
    first = list(ggufnorm.audit_each(["hf://org"]))
    hub.requests.clear()
    assert list(ggufnorm.audit_each(["hf://org"])) == first
    assert files_asked(hub) == 0
    # a rule more, and everything is looked at again
    list(ggufnorm.audit_each(["hf://org"], select=["N"]))
    assert files_asked(hub) >= 30


def test_a_new_commit_costs_a_byte_and_new_content_is_audited(
    hub: HubServer, tmp_path: Path
) -> None:
    first = list(ggufnorm.audit_each(["hf://org"]))
    hub.requests.clear()
    hub.repos["org/model-00000"].sha = commit(0, 1)
    changed = hub.repos["org/model-00001"]
    changed.sha = commit(1, 1)
    model = build("llama", seed=5)
    model.tensors["blk.3.attn_norm.weight"][:] = 0
    changed.files["model-00001-F16.gguf"] = write(tmp_path / "new.gguf", model).read_bytes()
    second = list(ggufnorm.audit_each(["hf://org"]))
    spans = [r.span for r in hub.requests if "model-00000" in r.path]
    assert spans == [(0, 1)]
    assert {r.path.split("/")[2] for r in hub.requests if "/resolve/" in r.path} == {
        "model-00000",
        "model-00001",
    }
    assert isinstance(second[1], AuditReport)
    assert second[1].summary.errors == 1
    assert kinds(second[2:]) == kinds(first[2:])


def test_no_cache_looks_again(hub: HubServer) -> None:
    list(ggufnorm.audit_each(["hf://org"]))
    hub.requests.clear()
    list(ggufnorm.audit_each(["hf://org"], cache=False))
    assert files_asked(hub) >= 30


def test_a_cache_that_cannot_be_used_is_said_and_not_used(hub: HubServer, cache: Path) -> None:
    cache.mkdir()
    (cache / "audits.sqlite").write_bytes(b"no database" * 100)
    said: list[str] = []
    found = list(
        ggufnorm.audit_each(["hf://org"], on_progress=lambda p: p.warning and said.append(p.phase))
    )
    assert kinds(found) == EXPECTED
    assert len(said) == 1
    assert "not kept" in said[0]
    assert (cache / "audits.sqlite").read_bytes()[:11] == b"no database"


def test_a_limit_of_the_rate_makes_everybody_wait(hub: HubServer) -> None:
    hub.trouble = limit = Limited(12)
    started = time.monotonic()
    found = list(ggufnorm.audit_each(["hf://org"]))
    assert kinds(found) == EXPECTED
    assert limit.refused > 0
    assert time.monotonic() - started >= 1  # Retry-After


def test_a_server_that_fails_for_one_file_is_not_in_the_way(hub: HubServer) -> None:
    hub.trouble = lambda handler, request, body: (
        "model-00003" in request.path and (handler.refuse(403) or True)
    )
    found = list(ggufnorm.audit_each(["hf://org"]))
    assert isinstance(found[3], Skipped)
    assert "403" in found[3].reason
    assert kinds(found[4:]) == EXPECTED[4:]
    hub.trouble = None
    again = list(ggufnorm.audit_each(["hf://org"]))
    assert kinds(again) == EXPECTED  # a failure that may pass is not kept


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    hub.trouble = lambda handler, request, body: time.sleep(0.02)  # type: ignore[func-returns-value]
    command = [sys.executable, "-m", "ggufnorm", "audit", "hf://org", "--format", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        done = [process.stdout.readline() for _ in range(10)]
        process.send_signal(signal.SIGKILL)
    hub.requests.clear()
    found = list(ggufnorm.audit_each(["hf://org"]))
    assert kinds(found) == EXPECTED
    assert [json.loads(line)["path"] for line in done] == [
        f.what if isinstance(f, Skipped) else f.path for f in found[:10]
    ]
    assert files_asked(hub) <= 2 * 20


def test_patterns_and_files_that_are_no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    files = [
        "a-Q8_0.gguf", "a-Q4_0-00001-of-00002.gguf", "a-Q4_0-00002-of-00002.gguf",
        "mmproj-a.gguf", "a-imatrix.gguf", "README.md", "sub/b.gguf",
    ]  # fmt: skip
    server = HubServer(repos={"org/repo": Repo(dict.fromkeys(files, b"")), "org/none": Repo({})})
    at = f"hf://org/repo@{server.repos['org/repo'].sha}"
    with running(server):
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        models = [f"{at}/a-Q4_0-00001-of-00002.gguf", f"{at}/a-Q8_0.gguf", f"{at}/sub/b.gguf"]
        assert expand(["hf://org"]) == models
        assert expand(["hf://org/repo/*Q8*.gguf"]) == models[1:2]
        assert expand(["hf://org"], ask=False) == ["hf://org"]
        with pytest.raises(InputError, match=r"hf://org/none/\*: there is no GGUF model"):
            expand(["hf://org/none/*"])
        with pytest.raises(InputError, match="hf://nobody: there is no GGUF model"):
            expand(["hf://nobody"])


# -- on this machine ---------------------------------------------------------------------


def test_results_of_other_code_are_dropped(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    list(ggufnorm.audit_each(["hf://org"]))
    hub.requests.clear()
    monkeypatch.setattr("ggufnorm.analysis.audit.fleet.kept._code", lambda: "other rules")
    list(ggufnorm.audit_each(["hf://org"]))
    assert files_asked(hub) >= 30


@pytest.mark.slow
def test_many_files_are_audited_by_child_processes_with_the_same_results(tmp_path: Path) -> None:
    for i in range(70):
        model = build(("llama", "gemma2", "gpt2")[i % 3], seed=i)
        path = write(tmp_path / f"m{i:02}.gguf", model)
        if i == 13:
            path.write_bytes(path.read_bytes()[:300])
    paths = sorted(tmp_path.glob("*.gguf"))
    steps: list[tuple[int, int]] = []
    found = ggufnorm.audit(
        [str(tmp_path)], jobs=2, on_progress=lambda p: steps.append((p.done, p.total))
    )
    assert [s.what for s in found.failed] == [str(paths[13])]
    alone = [ggufnorm.audit(p) for p in paths if p != paths[13]]
    assert list(found.models) == alone
    assert steps[-1][0] == steps[-1][1]
    save_manifest(paths[0], tmp_path / "m.json")
    beside = ggufnorm.audit([str(tmp_path)], jobs=2, manifest=tmp_path / "m.json", select=["M"])
    same, *others = [m.summary.errors for m in beside.models]
    assert same == 0
    assert all(others)


# -- the command -------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["audit", *map(str, arguments)], standalone_mode=False)
    if isinstance(result.exception, Exception):
        raise result.exception
    return int(result.return_value or 0), result.stdout, result.stderr


def test_lines_stream_and_are_read_back(hub: HubServer, tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    code, _, said = run("hf://org", "-o", out)
    assert code == 3
    assert "29 models checked, 3 with a finding of severity error or worse, 1 not read" in said
    result = load(out)
    assert isinstance(result, AuditSet)
    assert (len(result.models), len(result.failed)) == (29, 1)
    assert list(result.models) == [
        f for f in ggufnorm.audit_each(["hf://org"]) if isinstance(f, AuditReport)
    ]


def test_sql_over_parquet_answers_which_have_outliers(hub: HubServer, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    out = tmp_path / "all.parquet"
    run("hf://org", "-o", out)
    rows = duckdb.sql(
        f"""
        SELECT architecture, quantized_by, count(DISTINCT path)
        FROM '{out}', unnest(findings) AS t(f)
        WHERE f.rule = 'N302' GROUP BY ALL ORDER BY ALL
        """
    ).fetchall()
    expected: dict[tuple[str, str], int] = {}
    for item in ggufnorm.audit_each(["hf://org"]):
        if isinstance(item, AuditReport) and any(f.rule == "N302" for f in item.findings):
            assert item.provenance
            key = item.architecture, str(item.provenance.quantized_by)
            expected[key] = expected.get(key, 0) + 1
    assert {(a, p): n for a, p, n in rows} == expected
    unread = duckdb.sql(f"SELECT path FROM '{out}' WHERE not_read IS NOT NULL").fetchall()
    assert [path.rpartition("/")[2] for (path,) in unread] == ["model-00024-F16.gguf"]


def test_a_list_names_the_models(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"m{i}.gguf", build("llama", seed=i))
    names = tmp_path / "models.txt"
    names.write_text(f"# ours\n{tmp_path}/m0.gguf\n\n{tmp_path}/m2.gguf\n")
    code, lines, _ = run("--models-from", names, "--format", "jsonl")
    assert code == 0
    assert [json.loads(line)["path"][-7:] for line in lines.splitlines()] == ["m0.gguf", "m2.gguf"]
    with pytest.raises(InputError, match="cannot read the list"):
        run("--models-from", tmp_path / "gone.txt")


def test_what_a_stream_needs_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.gguf", build("llama"))
    with pytest.raises(InputError, match="Parquet goes to a file"):
        run(path, "--format", "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"ggufnorm\[fleet\]"):
        run(path, "-o", tmp_path / "a.parquet")
    assert not (tmp_path / "a.parquet").exists()
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError, match=r"ggufnorm\[fleet\]"):
        run(path, path, "--dask", "tcp://127.0.0.1:1", "--format", "jsonl")


def test_a_line_that_is_no_audit(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"schema": "ggufnorm/passed-over", "version": 1, "path": "x", "reason": "y"}\n{}\n'
    )
    with pytest.raises(InputError, match="line 2"):
        load(path)


# -- a cluster ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cluster_gives_the_same_results_though_a_worker_is_killed(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    expected = list(ggufnorm.audit_each(["hf://org"], cache=False))
    ready = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli"]
    environment = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"}

    def start(kind: str, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*dask[:2], f"distributed.cli.dask_{kind}", "--host", "127.0.0.1",
             "--scheduler-file", str(ready), *more],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=tmp_path, start_new_session=True,
        )  # fmt: skip

    quiet = ["--no-dashboard"]
    processes = [start("scheduler", "--port", "0", *quiet)]
    try:
        for _ in range(300):
            if ready.exists():
                break
            time.sleep(0.1)
        address = json.loads(ready.read_text())["address"]
        processes += [start("worker", "--nthreads", "1", "--no-nanny", *quiet) for _ in range(2)]
        hub.trouble = lambda handler, request, body: time.sleep(0.05)  # type: ignore[func-returns-value]
        found = []
        for item in ggufnorm.audit_each(["hf://org"], dask=address, cache=False):
            found.append(item)
            if len(found) == 10:
                processes[-1].kill()
        assert found == expected
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_no_scheduler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    paths = [write(tmp_path / f"m{i}.gguf", build("llama")) for i in range(2)]
    monkeypatch.setattr(workers, "_CONNECT", 1)
    with pytest.raises(ConfigError, match="there is no dask scheduler at tcp"):
        list(ggufnorm.audit_each(paths, dask="tcp://127.0.0.1:1"))


@pytest.mark.slow
def test_the_census_of_forty_architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("duckdb", "pyarrow", "vl_convert"):
        pytest.importorskip(needed)
    server = repositories(tmp_path, 80)
    environment = {**os.environ, "GGUFNORM_CACHE": str(tmp_path / "cache")}
    environment.pop("HF_TOKEN", None)
    with running(server):
        done = subprocess.run(
            [sys.executable, str(ROOT / "samples" / "census.py"), "hf://org", "--out", "out"],
            env={**environment, "HF_ENDPOINT": server.url, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
    assert len(done.stdout.splitlines()) == 40
    rules = (tmp_path / "out" / "rules.svg").read_text(encoding="utf-8")
    assert "N302 norm-zero" in rules
    kinds = (tmp_path / "out" / "architectures.svg").read_text(encoding="utf-8")
    assert "gemma2" in kinds
