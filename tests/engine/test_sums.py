"""Sums by ggml where the values lie, beside NumPy's: every figure of a report, from both.

A CPU stands for the device here: its values are treated as if they lay elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import ggufnorm
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.plain import to_plain
from ggufnorm.core.row_dots import RowDots
from ggufnorm.engines.llama import places
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.engines.llama.runner import LlamaActivation
from ggufnorm.engines.llama.sums import DeviceSums
from ggufnorm.runs.options import SideOptions
from ggufnorm.runs.probes.drift import DriftSums
from ggufnorm.runs.session import Session
from tests import in_process, models

ARCHITECTURES = ["llama", "gpt2", "qwen3moe", "gemma3", "deepseek2", "stablelm", "jamba", "rwkv7"]


def run(ref: Path, quant: Path, *, elsewhere: bool, **options: Any) -> DriftReport:
    is_here = mock.patch.object(LlamaActivation, "is_here", property(lambda _v: not elsewhere))
    options = {"n_ctx": 32, "chunks": 2, "n_threads": 1, "recompute_rows": 32, **options}
    with in_process.engine(), is_here:
        return ggufnorm.drift(ref, quant, **options)


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of a report."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from numbers(item, f"{path}[{i}]")
    else:
        yield path, value


def differences(a: DriftReport, b: DriftReport) -> list[tuple[str, Any, Any]]:
    """What is not the same to 1e-6, sentences and cost aside, and which of equal values it is."""
    first, second = (dict(numbers(to_plain(r, leave_out=("cost", "verdict")))) for r in (a, b))
    assert first.keys() == second.keys()
    return [
        (path, x, y)
        for path, x in first.items()
        if x != (y := second[path])
        and not path.endswith(("token", "channel"))
        and not (isinstance(x, float) and math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-12))
    ]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp(request.param)
    ref = getattr(models, request.param)(folder / "f16.gguf")
    quantize(ref, folder / "q.gguf", "Q8_0")
    return [ref, folder / "q.gguf"]


def test_every_figure_is_numpys(pair: list[Path]) -> None:
    with (
        mock.patch.object(DeviceSums, "sums", autospec=True, side_effect=DeviceSums.sums) as sums,
        mock.patch.object(DriftSums, "observe_again", autospec=True) as fetched,
    ):
        there = run(*pair, elsewhere=True)
    assert sums.call_count > len(there.operations)
    assert not fetched.called
    here = run(*pair, elsewhere=False)
    assert differences(here, there) == []
    # Behind the first attention no two rows are alike, and no two values are as large.
    for a, b in zip(here.operations, there.operations, strict=True):
        if (a.layer or 0) > 0 and a.role == "matmul":
            assert a == b or (a.cumulative.max_abs_token, a.local.max_abs_channel) == (
                b.cumulative.max_abs_token,
                b.local.max_abs_channel,
            )


def test_graphs_are_built_once(pair: list[Path]) -> None:
    built = mock.patch.object(DeviceSums, "_built", autospec=True, side_effect=DeviceSums._built)
    counts = []
    for chunks in (1, 4):
        with built as made:
            run(*pair, elsewhere=True, chunks=chunks)
        counts.append(made.call_count)
    assert counts[0] == counts[1]


def test_what_float32_sums_do_not_hold_is_fetched(tmp_path: Path) -> None:
    ref = models.llama(tmp_path / "f16.gguf")
    for name, factor in (("nan", math.nan), ("huge", 3e19), ("tiny", 1e-3)):
        edit = {"blk.1.ffn_norm.weight": lambda w, by=factor: w * by}
        bad = models.edited(ref, tmp_path / f"{name}.gguf", edit)
        here, there = (run(ref, bad, elsewhere=e) for e in (False, True))
        assert differences(here, there) == [], name
        assert here.culprit == there.culprit


@pytest.mark.parametrize("arch", ["llama", "jamba"])
def test_what_is_lost_in_a_later_batch_is_run_again(tmp_path: Path, arch: str) -> None:
    """The values of a batch are gone when its sums are read: its chunk is run again up to it."""
    ref = getattr(models, arch)(tmp_path / "f16.gguf")
    quantize(ref, tmp_path / "q.gguf", "Q8_0")
    side = SideOptions(n_ubatch=8)
    given = {"options": side, "options_ref": side, "chunks": 2}
    calls = itertools.count()
    run_again = Session._run_again

    def hold(_dots: RowDots) -> bool:
        return next(calls) % 97 > 0

    with (
        mock.patch.object(RowDots, "hold", hold),
        mock.patch.object(Session, "_run_again", autospec=True, side_effect=run_again) as again,
    ):
        there = run(ref, tmp_path / "q.gguf", elsewhere=True, **given)
    assert max(len(call.args[1]) for call in again.call_args_list) > 1
    assert differences(run(ref, tmp_path / "q.gguf", elsewhere=False, **given), there) == []


@pytest.mark.parametrize(("bytes_kept", "seconds"), [(1 << 14, 10.0), (1 << 25, 0.0)])
def test_what_waits_is_read_where_it_grows_or_takes_long(
    tmp_path: Path, bytes_kept: int, seconds: float
) -> None:
    ref = models.qwen3moe(tmp_path / "f16.gguf")
    quantize(ref, tmp_path / "q.gguf", "Q8_0")
    with (
        mock.patch.object(places, "KEPT_BYTES", bytes_kept),
        mock.patch.object(places, "_SECONDS", seconds),
        mock.patch.object(
            places._Shelf, "read", autospec=True, side_effect=places._Shelf.read
        ) as read,
    ):
        there = run(ref, tmp_path / "q.gguf", elsewhere=True)
    assert read.call_count > 10
    assert differences(run(ref, tmp_path / "q.gguf", elsewhere=False), there) == []


def test_norms_are_recomputed_for_a_sample_of_tokens(tmp_path: Path) -> None:
    ref = models.gemma3(tmp_path / "f16.gguf")
    quantize(ref, tmp_path / "q.gguf", "Q8_0")
    options = {"recompute_rows": 4}
    here, there = (run(ref, tmp_path / "q.gguf", elsewhere=e, **options) for e in (False, True))
    for a, b in zip(here.norms, there.norms, strict=True):
        assert a.local == b.local
        assert b.recompute_residual is not None
        assert 0 < b.recompute_residual < 1e-6
    assert not [s for s in here.skipped if s.what == "rows of norms"]
    assert [s for s in there.skipped if s.what == "rows of norms"]


def test_the_input_may_lie_here_and_the_result_elsewhere(tmp_path: Path) -> None:
    """As with an embedding, which a GPU's backend leaves in the computer's memory."""
    ref = models.llama(tmp_path / "f16.gguf")
    quantize(ref, tmp_path / "q.gguf", "Q8_0")
    where = property(lambda v: (v.address // 16) % 2 == 0)  # any half of them
    with in_process.engine(), mock.patch.object(LlamaActivation, "is_here", where):
        report = ggufnorm.drift(
            ref, tmp_path / "q.gguf", n_ctx=32, chunks=2, n_threads=1, recompute_rows=4
        )
    assert not [s for s in report.skipped if s.what.startswith("recompute")]
    assert all((n.recompute_residual or 1) < 1e-6 for n in report.norms)
