"""``recipe``: is the choice allowed, within its size, and better than what it is compared with?"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import shlex
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ggufnorm
from ggufnorm.analysis.attribution import recipe as module
from ggufnorm.analysis.attribution.arguments import compressed
from ggufnorm.core.attribution import Unmeasured
from ggufnorm.core.recipe import (
    Anchor,
    Option,
    RecipeReport,
    Trial,
    hull,
    lowest_kld,
    recipe_verdict,
    scaled_kld,
    smallest_size,
    total_bytes,
    total_kld,
)
from ggufnorm.engines.llama.quantize import quantize, quantized_sizes
from ggufnorm.errors import EngineError, InputError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.imatrix import Activations, read_imatrix, write_imatrix
from ggufnorm.report.document import document, to_json
from ggufnorm.report.formats import render
from ggufnorm.runs.probes.importance import ImportanceSums
from tests import in_process, models

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 4
FEW = ("Q3_K", "Q4_K", "Q5_K", "Q6_K")


def recipe(ref: Path, quant: Path, **options: Any) -> RecipeReport:
    """On the tiny models, unless told otherwise."""
    given = {"text": TEXT, "n_ctx": 32, "chunks": 2, "n_threads": 1, "types": FEW, **options}
    with in_process.engine():
        return ggufnorm.recipe(ref, quant, **given)


@pytest.fixture(scope="module")
def tiny_q4(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "llama-q4.gguf"
    quantize(tiny["llama"], path, "Q4_K_M", n_threads=1)
    return path


@pytest.fixture(scope="module")
def applied(
    sample: Path, sample_q4: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RecipeReport, Path]:
    """The sample, 3 % more than Q4_K_M, written and measured."""
    out = tmp_path_factory.mktemp("applied") / "out.gguf"
    options = {"text": None, "n_ctx": 128, "chunks": 4, "max_growth": 0.03, "apply": out}
    return recipe(sample, sample_q4, types=("Q4_K", "IQ4_XS", "Q5_K", "Q6_K"), **options), out


# -- what it is worth ----------------------------------------------------------------------


def test_the_file_keeps_to_its_size_to_the_byte(
    applied: tuple[RecipeReport, Path], sample_q4: Path
) -> None:
    report, out = applied
    assert out.stat().st_size == report.bytes == report.measured.bytes
    assert report.bytes <= 1.03 * sample_q4.stat().st_size
    assert report.bytes > 1.02 * sample_q4.stat().st_size  # and uses what it may


def test_the_file_holds_the_types_that_were_chosen(applied: tuple[RecipeReport, Path]) -> None:
    report, out = applied
    with GGUFFile(out) as file:
        found = {name: t.dtype for name, t in file.tensors.items() if t.dtype != "F32"}
    assert found == {c.tensor: c.dtype for c in report.choices}
    assert len(set(found.values())) > 2


def test_it_beats_the_plain_type_and_standard_mixes_of_its_size(
    applied: tuple[RecipeReport, Path],
) -> None:
    report, _out = applied
    kld = report.measured.kld
    assert kld < 0.75 * report.measured_quant.kld
    assert kld < 0.75 * report.uniform[0].kld
    assert report.uniform[0].bytes >= report.bytes
    assert [t.bytes for t in report.uniform] == sorted(t.bytes for t in report.uniform)


def test_the_prediction_holds(applied: tuple[RecipeReport, Path]) -> None:
    report, _out = applied
    assert report.predicted_kld == pytest.approx(sum(c.kld for c in report.choices))
    assert 0.8 < report.measured.kld / report.predicted_kld < 1.25
    assert 0.8 < report.measured_quant.kld / report.predicted_quant_kld < 1.25


def test_it_is_better_on_text_that_it_was_not_chosen_on(
    applied: tuple[RecipeReport, Path], sample: Path, sample_q4: Path
) -> None:
    _report, out = applied
    text = (sample.parent / "heldout.txt").read_text()
    klds = []
    with in_process.engine():
        for quant in (out, sample_q4):
            options = {"text": text[len(text) // 2 :], "n_ctx": 128, "chunks": 6, "n_threads": 1}
            klds.append(ggufnorm.drift(sample, quant, **options).logits.mean_kld)
    assert klds[0] < 0.8 * klds[1]


def test_a_target_is_met_by_a_small_file(tiny: dict[str, Path], tiny_q4: Path) -> None:
    plain = recipe(tiny["llama"], tiny_q4, max_growth=0.0)
    assert plain.bytes <= tiny_q4.stat().st_size
    report = recipe(tiny["llama"], tiny_q4, target_kld=2 * plain.predicted_kld)
    assert report.predicted_kld <= 2 * plain.predicted_kld
    assert report.bytes < plain.bytes
    assert report.max_bytes is None
    assert (report.measured, report.uniform) == (None, ())


def test_only_types_that_fit_the_rows_are_chosen(tmp_path: Path) -> None:
    """Rows of 96 do not divide into blocks of 256: llama.cpp falls back to blocks of 32."""
    s = models.Shape(n_embd=96, n_ff=96, n_head=3, n_head_kv=3)
    ref = models.llama(tmp_path / "narrow.gguf", s)
    quantize(ref, tmp_path / "q4.gguf", "Q4_K_M", n_threads=1)
    report = recipe(ref, tmp_path / "q4.gguf", max_growth=0.05, apply=tmp_path / "out.gguf")
    assert {c.dtype for c in report.choices} <= {"Q4_0", "Q5_0", "Q5_1", "Q8_0"}
    assert report.bytes == (tmp_path / "out.gguf").stat().st_size


def test_a_type_that_llama_cpp_refuses_is_told(tiny: dict[str, Path], tiny_q4: Path) -> None:
    report = recipe(tiny["llama"], tiny_q4, max_growth=0.03, types=("IQ2_XS", "Q4_K", "Q5_K"))
    assert [s.what for s in report.skipped] == ["IQ2_XS"]
    assert "requires an imatrix" in report.skipped[0].reason
    assert {c.dtype for c in report.choices} <= {"Q4_K", "Q5_K"}


# -- importance matrices -------------------------------------------------------------------


def test_the_computed_matrix_is_the_inputs_mean_square(
    tiny: dict[str, Path], tiny_q4: Path, tmp_path: Path
) -> None:
    """The first layer's inputs are known: normalized embeddings of the tokens."""
    out, text, n_ctx = tmp_path / "imatrix.gguf", TEXT[:160], 64
    report = recipe(
        tiny["llama"], tiny_q4, max_growth=0.03, types=("Q4_K",), text=text, n_ctx=n_ctx,
        chunks=1, imatrix="auto", save_imatrix=out,
    )  # fmt: skip
    assert report.imatrix == str(out)
    matrix = read_imatrix(out)
    with GGUFFile(tiny["llama"]) as file:
        embeddings, norm = (
            read_tensor(file, name) for name in ("token_embd.weight", "blk.0.attn_norm.weight")
        )
    x = embeddings[tokens_of(tiny["llama"], text)[:n_ctx]].astype(np.float64)
    x = ggufnorm.rms_norm(x, norm, epsilon=1e-5).astype(np.float64)
    for name in ("attn_q", "attn_k", "attn_v"):
        assert matrix[f"blk.0.{name}.weight"] == pytest.approx((x**2).mean(axis=0), rel=2e-3)
    assert len(matrix) == 21
    assert "output.weight" not in matrix
    counts = gguf_tensor(out, "blk.2.ffn_down.weight.counts")
    assert counts.ravel().tolist() == [n_ctx]  # every token, in the last layer too


def tokens_of(path: Path, text: str) -> np.ndarray:
    from ggufnorm.engines.llama.session import EngineOptions, LlamaModel

    with in_process.engine(), LlamaModel(str(path), EngineOptions(64, 1)) as model:
        return model.tokenize(text)


def gguf_tensor(path: Path, name: str) -> np.ndarray:
    (found,) = (t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return np.array(found.data)


def test_experts_count_what_was_sent_to_them(tiny: dict[str, Path], tmp_path: Path) -> None:
    quantize(tiny["qwen3moe"], tmp_path / "q4.gguf", "Q4_K_M", n_threads=1)
    out = tmp_path / "imatrix.gguf"
    recipe(
        tiny["qwen3moe"], tmp_path / "q4.gguf", max_growth=0.03, types=("Q4_K",), n_ctx=64,
        chunks=1, imatrix="auto", save_imatrix=out,
    )  # fmt: skip
    name = "blk.1.ffn_gate_exps.weight"
    sums, counts = (gguf_tensor(out, f"{name}.{part}") for part in ("in_sum2", "counts"))
    with GGUFFile(tiny["qwen3moe"]) as file:
        used = file.metadata.integer("qwen3moe.expert_used_count")
    assert sums.shape == (4, 256)
    assert counts.sum() == used * 64
    # All experts together have seen each token's input so often, as the router has once.
    router = gguf_tensor(out, "blk.1.ffn_gate_inp.weight.in_sum2").reshape(256)
    assert sums.sum(axis=0) == pytest.approx(used * router, rel=1e-4)


def test_sums_follow_the_definition() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 20, 8)).astype(np.float32)
    total = ImportanceSums()
    total.add_rows("a", x, 3)
    found = total.result()["a"]
    expected = (x[0].astype(np.float64) ** 2).sum(axis=1).reshape(2, 3, 8).sum(axis=0)
    assert found.sums == pytest.approx(expected, rel=1e-6)
    assert found.counts.tolist() == [40]
    total.add_rows("few", x[:, :, :15], 1)
    assert "few" not in total.result()  # llama-imatrix passes over fewer than 16 rows
    y = rng.standard_normal((5, 1, 4)).astype(np.float32)
    ids = np.array([[0, 2], [1, 2], [0, 1], [2, 0], [0, 2]], np.int32)
    total.add_experts("e", y, ids, 4)
    experts = total.result()["e"]
    assert experts.counts.tolist() == [4, 2, 4, 0]
    assert experts.sums[1] == pytest.approx((y[1, 0] ** 2 + y[2, 0] ** 2), rel=1e-6)
    assert experts.importance().reshape(4, 4)[3].tolist() == [1.0] * 4


def test_both_formats_are_read_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    seen = {
        "blk.0.attn_q.weight": Activations(rng.random((1, 8), np.float32), np.float32([32])),
        "blk.0.ffn_up_exps.weight": Activations(
            rng.random((3, 8), np.float32), np.float32([5, 0, 9])
        ),
    }
    write_imatrix(tmp_path / "a.gguf", seen, text_name="text", n_chunks=2, n_ctx=16)
    new = read_imatrix(tmp_path / "a.gguf")
    assert new["blk.0.attn_q.weight"] == pytest.approx(
        seen["blk.0.attn_q.weight"].sums[0] / 32, rel=1e-6
    )
    assert new["blk.0.ffn_up_exps.weight"][8:16].tolist() == [1.0] * 8
    (tmp_path / "a.dat").write_bytes(legacy(new, n_calls=2))
    old = read_imatrix(tmp_path / "a.dat")
    assert old.keys() == new.keys()
    for name, values in new.items():
        assert old[name] == pytest.approx(values, rel=1e-6)


def legacy(matrix: dict[str, np.ndarray], n_calls: int) -> bytes:
    """What save_imatrix_legacy in tools/imatrix/imatrix.cpp writes."""
    parts = [struct.pack("<i", len(matrix))]
    for name, values in matrix.items():
        parts.append(struct.pack("<i", len(name)) + name.encode())
        parts.append(struct.pack("<ii", n_calls, values.size))
        parts.append((values * n_calls).astype("<f4").tobytes())
    return b"".join([*parts, struct.pack("<i", n_calls), struct.pack("<i", 4), b"text"])


def test_a_matrix_changes_what_is_written(
    tiny: dict[str, Path], tiny_q4: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    seen = {
        f"blk.{i}.attn_q.weight": Activations(
            np.exp(rng.normal(0, 2, (1, 256))).astype(np.float32), np.float32([1])
        )
        for i in range(3)
    }
    write_imatrix(tmp_path / "i.gguf", seen, text_name="t", n_chunks=1, n_ctx=32)
    plain, weighted = tmp_path / "plain.gguf", tmp_path / "weighted.gguf"
    for out, imatrix in ((plain, None), (weighted, tmp_path / "i.gguf")):
        recipe(tiny["llama"], tiny_q4, max_growth=0.5, types=("Q4_K",), apply=out, imatrix=imatrix)
    with GGUFFile(plain) as a, GGUFFile(weighted) as b:
        differ = {n for n in a.tensors if not np.array_equal(a.read_bytes(n), b.read_bytes(n))}
    assert differ == set(seen)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:20],
        lambda raw: b"\xff\xff\xff\x7f" + raw[4:],
        lambda raw: raw[:4] + b"\xff\xff\xff\xff" + raw[8:],
        lambda raw: b"",
        lambda raw: b"GGUF" + bytes(60),
        lambda raw: raw[:8] + b"\xff\xfe" + raw[10:],
    ],
)
def test_a_damaged_matrix_is_an_error(damage: Any, tmp_path: Path) -> None:
    raw = legacy({"blk.0.attn_q.weight": np.ones(8, np.float32)}, 2)
    (tmp_path / "bad.dat").write_bytes(damage(raw))
    with pytest.raises(InputError) as caught:
        read_imatrix(tmp_path / "bad.dat")
    assert "\n" not in str(caught.value)


def test_a_matrix_with_nan_or_of_another_kind_is_an_error(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "nan.dat").write_bytes(legacy({"a": np.float32([1, np.nan])}, 1))
    with pytest.raises(InputError, match="NaN"):
        read_imatrix(tmp_path / "nan.dat")
    with pytest.raises(InputError, match="no importance matrix"):
        read_imatrix(tiny["llama"])
    with pytest.raises(InputError, match="cannot read"):
        read_imatrix(tmp_path / "missing.gguf")


# -- what is refused -----------------------------------------------------------------------


def test_inputs_are_not_written_over(tiny: dict[str, Path], tiny_q4: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny["llama"])
    before = tiny["llama"].read_bytes()
    for out in (tiny["llama"], tiny_q4, link):
        with pytest.raises(InputError, match="is an input"):
            recipe(tiny["llama"], tiny_q4, max_growth=0.03, apply=out)
    matrix = tmp_path / "m.dat"
    matrix.write_bytes(legacy({"a": np.ones(2, np.float32)}, 1))
    with pytest.raises(InputError, match="is an input"):
        recipe(tiny["llama"], tiny_q4, max_growth=0.03, apply=matrix, imatrix=matrix)
    assert tiny["llama"].read_bytes() == before


def test_what_cannot_be_reached_is_told(tiny: dict[str, Path], tiny_q4: Path) -> None:
    with pytest.raises(InputError, match=r"smallest file of these types takes 0\.\d+ MB"):
        recipe(tiny["llama"], tiny_q4, max_bytes=1000, types=("Q4_K", "Q5_K"))
    with pytest.raises(InputError, match="raise --target-kld"):
        recipe(tiny["llama"], tiny_q4, target_kld=1e-12, types=("Q4_K", "Q5_K"))


def test_a_budget_that_is_too_small_is_told(tiny: dict[str, Path], tiny_q4: Path) -> None:
    with pytest.raises(InputError, match="raise --budget"):
        recipe(tiny["llama"], tiny_q4, max_growth=0.03, budget=1e-3, types=("Q4_K",))


def test_tensors_that_were_not_measured_cost_what_their_role_does(
    tiny: dict[str, Path], tiny_q4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = module.run_job

    def without_layer_1(*arguments: Any, **options: Any) -> Any:
        report = inner(*arguments, **options)
        gone = [s for s in report.shares if s.layer == 1]
        unmeasured = [
            Unmeasured(
                s.tensor, 1, s.role, "no time", s.local_rel_l2, s.dtype, s.bytes, s.bytes_ref
            )
            for s in gone
        ]
        shares = tuple(s for s in report.shares if s.layer != 1)
        return replace(report, shares=shares, unmeasured=(*report.unmeasured, *unmeasured))

    whole = recipe(tiny["llama"], tiny_q4, max_growth=0.03)
    monkeypatch.setattr(module, "run_job", without_layer_1)
    report = recipe(tiny["llama"], tiny_q4, max_growth=0.03)
    assert len(report.choices) == len(whole.choices) == 23
    assert [s.what for s in report.skipped] == [f"7 tensors in {a}" for a in report.anchors]
    assert report.predicted_kld == pytest.approx(whole.predicted_kld, rel=0.5)


def test_a_quantized_reference_is_refused(tiny_q4: Path) -> None:
    with pytest.raises(InputError, match=r"is quantized .* use ggufnorm recipe F16\.gguf"):
        recipe(tiny_q4, tiny_q4, max_growth=0.03)


def test_nothing_is_left_after_an_error(
    tiny: dict[str, Path], tiny_q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise EngineError("llama.cpp crashed (SIGSEGV)")

    monkeypatch.setattr(module.Work, "_uniform", fail)
    out = tmp_path / "out" / "new.gguf"
    out.parent.mkdir()
    with pytest.raises(EngineError, match="SIGSEGV"):
        recipe(tiny["llama"], tiny_q4, max_growth=0.03, types=("Q4_K",), apply=out)
    assert list(out.parent.iterdir()) == []


def test_a_recipe_that_is_killed_goes_on_where_it_was(
    tiny: dict[str, Path], tiny_q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended at every run of a model in turn: the result is that of one go, file and all."""
    options = {"max_growth": 0.03, "types": ("Q4_K", "Q5_K"), "imatrix": "auto"}
    whole = recipe(tiny["llama"], tiny_q4, apply=tmp_path / "whole.gguf", **options)
    kept, out = tmp_path / "kept.json", tmp_path / "out.gguf"
    inner, runs = module.run_job, 0

    def die_at_the_second(*arguments: Any, **more: Any) -> Any:
        nonlocal runs, left
        runs += 1
        left -= 1
        if left < 0:
            raise EngineError("llama.cpp was killed")
        return inner(*arguments, **more)

    monkeypatch.setattr(module, "run_job", die_at_the_second)
    found = None
    while found is None:
        left = 1
        with contextlib.suppress(EngineError):
            found = recipe(tiny["llama"], tiny_q4, apply=out, resume=kept, **options)

    assert to_json(found) == to_json(whole)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    once = runs
    left = 0
    assert to_json(recipe(tiny["llama"], tiny_q4, apply=out, resume=kept, **options))
    assert runs == once
    with pytest.raises(InputError, match="belongs to another run"):
        recipe(tiny["llama"], tiny_q4, resume=kept, **{**options, "max_growth": 0.1})


def test_an_interruption_leaves_nothing(
    tiny: dict[str, Path], tiny_q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = module.run_job
    monkeypatch.setattr(
        module, "run_job", lambda *a, **k: replace(inner(*a, **k), interrupted=True)
    )
    with pytest.raises(KeyboardInterrupt):
        recipe(tiny["llama"], tiny_q4, max_growth=0.03, apply=tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"max_growth": 0.1, "target_kld": 0.1},
        {"target_kld": 0.0},
        {"max_growth": -1.0},
        {"max_growth": 0.1, "types": ("Q9_Z",)},
        {"max_growth": 0.1, "types": ()},
        {"max_growth": 0.1, "n_ctx": 4},
    ],
)
def test_arguments_out_of_range_are_refused(tiny: dict[str, Path], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give one of|must be|no type"):
        recipe(tiny["llama"], tiny["llama"], **wrong)


def ggufnorm_cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ggufnorm.cli.main import main; main()"]
    command += [str(a) for a in arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--max-size", "+3%", "--target-kld", "0.1"], "not both"),
        (["--max-size", "much"], "is not a size"),
        (["--max-size", "-100%"], "leaves nothing"),
        (["--target-kld", "0"], "target-kld"),
        (["--save-imatrix", "x"], "goes with --imatrix auto"),
        (["--types", "q4_k,q9"], "no type named Q9"),
    ],
)
def test_wrong_usage_is_told(
    options: list[str], line: str, tiny: dict[str, Path], tiny_q4: Path
) -> None:
    done = ggufnorm_cli("recipe", tiny["llama"], tiny_q4, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr


def test_the_command_writes_types_and_a_command_line(
    tiny: dict[str, Path], tiny_q4: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    file, out = tmp_path / "types.txt", tmp_path / "out.gguf"
    done = ggufnorm_cli(
        "recipe", tiny["llama"], tiny_q4, "-f", tmp_path / "text.txt", "-c", "32", "-t", "1",
        "--chunks", "1", "--types", "q4_k,q5_k", "--max-size", "+4%", "--tensor-type-file", file,
        "--apply", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = file.read_text().split()
    shown = done.stdout.replace("\\\n", " ")
    (command,) = (line for line in shown.splitlines() if line.startswith("llama-quantize  "))
    words = shlex.split(command)
    given = [words[i + 1] for i, word in enumerate(words) if word == "--tensor-type"]
    assert given == lines
    assert words[-3:] == [str(tiny["llama"]), "OUT.gguf", "Q4_K_M"]
    # What llama-quantize makes of them: the first pattern found in a name counts.
    patterns = [line.rsplit("=", 1) for line in lines]
    with GGUFFile(out) as written:
        for name, t in written.tensors.items():
            types = [dtype.upper() for pattern, dtype in patterns if re.search(pattern, name)]
            assert types == ([] if "norm" in name else [t.dtype])


# -- the report ----------------------------------------------------------------------------


def test_text_and_document(applied: tuple[RecipeReport, Path]) -> None:
    report, _out = applied
    text = render(report)
    plain = [
        line for line in text.splitlines() if "--tensor-type" not in line and "gguf" not in line
    ]
    assert max(map(len, plain)) <= 100
    assert "recipe, predicted" in text
    found = document(report)
    assert (found["schema"], found["version"]) == ("ggufnorm/recipe", 1)
    assert found["choices"][0].keys() >= {"tensor", "dtype", "bytes", "kld"}


def test_the_verdict_tells_a_failure_too() -> None:
    quant, worse = Trial("q", 1_000_000, 0.1, 0.01), Trial("recipe", 1_010_000, 0.2, 0.01)
    assert "100 % more than q" in recipe_verdict(0.05, 1_010_000, quant, worse, ())
    assert "should give" in recipe_verdict(0.05, 1_010_000, quant, None, ())
    broken = Trial("recipe", 1_010_000, None, None)
    assert "no finite logits" in recipe_verdict(0.05, 1_010_000, quant, broken, ())


# -- pure parts ----------------------------------------------------------------------------


@st.composite
def some_options(draw: st.DrawFn) -> dict[str, list[Option]]:
    n = draw(st.integers(1, 4))
    return {
        f"t{i}": [
            Option(f"T{k}", size, kld, True)
            for k, (size, kld) in enumerate(
                draw(
                    st.lists(
                        st.tuples(st.integers(1, 40), st.floats(0, 10)), min_size=1, max_size=4
                    )
                )
            )
        ]
        for i in range(n)
    }


@given(some_options(), st.integers(1, 160))
def test_a_choice_within_a_size_is_near_the_best(
    options: dict[str, list[Option]], max_bytes: int
) -> None:
    """Against all combinations: it fits, and loses at most one tensor's largest step."""
    combinations = [dict(zip(options, c)) for c in itertools.product(*options.values())]
    possible = [c for c in combinations if total_bytes(c) <= max_bytes]
    chosen = lowest_kld(options, max_bytes)
    if not possible:
        assert chosen is None
        return
    assert chosen is not None
    assert total_bytes(chosen) <= max_bytes
    step = max(max(o.kld for o in of) - min(o.kld for o in of) for of in options.values())
    assert total_kld(chosen) <= min(map(total_kld, possible)) + step + 1e-9


@given(some_options(), st.floats(0, 30))
def test_a_choice_for_a_target_meets_it(options: dict[str, list[Option]], target: float) -> None:
    possible = math.fsum(min(o.kld for o in of) for of in options.values()) <= target
    chosen = smallest_size(options, target)
    assert (chosen is not None) == possible
    if chosen is not None:
        assert total_kld(chosen) <= target
        smaller = [
            o
            for name, of in options.items()
            for o in of
            if o.bytes < chosen[name].bytes and total_kld({**chosen, name: o}) <= target - 1e-6
        ]
        assert smaller == []


def test_a_hull_passes_over_what_is_above_it() -> None:
    a, b, c, d = (Option(n, s, k, True) for n, s, k in
                  (("a", 1, 10.0), ("b", 2, 9.0), ("c", 3, 2.0), ("d", 4, 3.0)))  # fmt: skip
    assert hull([d, c, b, a]) == [a, c]


def test_costs_are_scaled_by_the_error() -> None:
    anchors = [Anchor(0.1, 1.0), Anchor(0.2, 3.0)]
    assert scaled_kld(0.05, anchors) == pytest.approx(0.25)
    assert scaled_kld(0.1, anchors) == pytest.approx(1.0)
    assert scaled_kld(0.4, anchors) == pytest.approx(12.0)
    between = scaled_kld(math.sqrt(0.02), anchors)
    assert between == pytest.approx(math.sqrt(3.0))
    assert scaled_kld(0.0, anchors) == 0.0


def test_patterns_name_their_tensors_and_no_others() -> None:
    names = [f"blk.{i}.attn_{x}.weight" for i in (0, 1, 2, 10, 11) for x in ("q", "output")]
    names += ["output.weight", "token_embd.weight"]
    types = {n: "Q4_K" if "q" in n and "1" in n else "Q6_K" for n in names}
    arguments = compressed(types)
    for name in names:
        found = [a.rsplit("=", 1) for a in arguments]
        hits = [dtype for pattern, dtype in found if re.search(pattern, name)]
        assert hits == [types[name].lower()]
    assert "^blk\\.[0-9]+\\.attn_output\\.weight$=q6_k" in arguments
    assert all(" " not in a for a in arguments)


def test_sizes_of_mixes_are_those_of_their_files(tiny: dict[str, Path], tiny_q4: Path) -> None:
    sizes = quantized_sizes(tiny["llama"], ["Q4_K_M", "Q8_0", "IQ2_XS"])
    assert sizes.keys() == {"Q4_K_M", "Q8_0"}  # IQ2_XS needs an importance matrix
    with GGUFFile(tiny_q4) as file:
        actual = sum(t.n_bytes for t in file.tensors.values())
    assert sizes["Q4_K_M"] == pytest.approx(actual, abs=0.006 * (1 << 20))
    assert "IQ2_XS" in quantized_sizes(tiny["llama"], ["IQ2_XS"], with_importance=True)
