"""A small slice of each fuzzer. Rows of ``docs/faults.md``."""

from __future__ import annotations

import pytest

from tests.fault_table import fault
from tests.fuzz import fuzz_imatrix, fuzz_reports, fuzz_safetensors, fuzz_traces
from tests.fuzz.harness import Fuzzer

_THEN = "read or refused in one line, within a second and a few megabytes"


def check(fuzzer: Fuzzer, n: int) -> None:
    found = fuzzer.run(n, seed=1)
    assert [(case, why) for case, why, _ in found.failures] == []
    assert found.tally["read"] > n / 100
    assert found.tally["refused"] > n / 10


@pytest.mark.slow
@fault("Damaged files", "safetensors headers", tried=1000, then=_THEN)
def test_safetensors() -> None:
    check(fuzz_safetensors.FUZZER, 1000)


@pytest.mark.slow
@fault("Damaged files", "traces", tried=500, then=_THEN)
def test_traces() -> None:
    check(fuzz_traces.FUZZER, 500)


@pytest.mark.slow
@fault("Damaged files", "reports", tried=300, then=_THEN)
def test_reports() -> None:
    check(fuzz_reports.FUZZER, 300)


@pytest.mark.slow
@fault("Damaged files", "importance matrices", tried=500, then=_THEN)
def test_importance_matrices() -> None:
    check(fuzz_imatrix.FUZZER, 500)


def test_a_failure_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(data: bytes) -> None:
        if data:
            raise ZeroDivisionError

    fuzzer = Fuzzer((b"seed",), lambda rng, data, seeds: data, examine, 1 << 20)
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda *_, **__: None)
    monkeypatch.setattr("sys.argv", ["fuzz", "--cases", "3"])
    assert fuzzer.main("Try.") == 1
    assert "3  failures" in capsys.readouterr().out
