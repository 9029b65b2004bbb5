"""``ggufnorm inspect``: what it says of weights, and how it writes it down."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ggufnorm.analysis.inspection import inspect
from ggufnorm.cli.inspect import command
from ggufnorm.cli.main import cli
from ggufnorm.core.distribution import BINS, find_outliers, weight_statistics
from ggufnorm.core.fingerprint import OFFSETS, offset_fingerprint
from ggufnorm.core.model import Inspection
from ggufnorm.core.plain import from_plain
from ggufnorm.errors import InputError
from ggufnorm.report.document import to_json
from ggufnorm.report.formatting import sparkline
from tests.architectures import N_EMBD, N_LAYERS, write_model

RNG = np.random.default_rng(7)
KEY = "llama.attention.layer_norm_rms_epsilon"


def bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16: the low 16 bits cut off."""
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


# -- the offset fingerprint ------------------------------------------------------------


@pytest.mark.parametrize("k", OFFSETS)
def test_the_offset_that_was_baked_into_bf16_weights_is_found(k: int) -> None:
    trained = bf16(RNG.normal(0, 0.3, 512))

    found = offset_fingerprint(trained + np.float32(k))

    assert (found.offset, found.note) == (k, "")
    assert found.bf16[str(k)] == 1.0


def test_plain_bf16_weights_around_one_have_no_offset() -> None:
    # They all lie on the coarse grid between 1/2 and 2, so w - 1 fits as well.
    found = offset_fingerprint(bf16(RNG.normal(1, 0.1, 512)))

    assert found.bf16["1"] == 1.0
    assert found.offset == 0


@pytest.mark.parametrize(
    ("weight", "note"),
    [
        (np.ones(64), "constant values"),
        (np.zeros(64), "constant values"),
        (RNG.normal(1, 0.1, 512), "not BF16 values"),
        (RNG.normal(1, 0.1, 512).astype(np.float16), "F16 values and not BF16 ones"),
        (np.full(4, np.nan), "no finite value"),
        # Few large values: w and w - 1 have the same spacing.
        (np.arange(5, 7, 0.125), "offsets 0, 1, 2, -1 fit alike"),
    ],
)
def test_where_the_values_do_not_tell_the_offset_is_unknown(weight: np.ndarray, note: str) -> None:
    found = offset_fingerprint(weight.astype(np.float32))

    assert (found.offset, found.note) == (None, note)


def test_f16_representable_weights_are_counted() -> None:
    half = RNG.normal(1, 0.1, 100).astype(np.float16).astype(np.float32)
    half[:25] = np.nextafter(half[:25], np.float32(2))

    assert offset_fingerprint(half).f16 == 0.75


@settings(deadline=None)  # the machine may be busy
@given(
    npst.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    )
)
def test_statistics_of_any_weight_can_be_written_as_json(weight: np.ndarray) -> None:
    found = weight_statistics(weight)

    finite = weight[np.isfinite(weight)]
    assert found.non_finite == weight.size - finite.size
    assert sum(found.histogram) == finite.size
    if finite.size:
        assert (found.minimum, found.maximum) == (finite.min(), finite.max())
    assert all(0 <= f <= 1 for f in [*found.offset.bf16.values(), found.offset.f16])


# -- distribution ----------------------------------------------------------------------


def test_outliers_are_the_channels_far_from_the_others() -> None:
    weight = RNG.normal(1, 0.05, 256)
    weight[[17, 200]] = [9.0, -4.0]

    found = find_outliers(weight)

    assert [(o.index, o.value) for o in found] == [(17, 9.0), (200, -4.0)]
    assert found[0].z == pytest.approx(
        8 / (1.4826 * np.median(abs(weight - np.median(weight)))), rel=0.01
    )


@pytest.mark.parametrize("n", [1, 2, 3, 8, 255, 4096])
def test_the_z_score_counts_from_numpys_median(n: int) -> None:
    weight = RNG.normal(1, 0.05, n)
    weight[-1] = 1e3
    middle = np.median(weight)

    found = find_outliers(weight)

    spread = 1.4826 * np.median(abs(weight - middle))
    assert [o.z for o in found] == ([(1e3 - middle) / spread] if n > 2 else [])


def test_a_sound_weight_has_no_outlier() -> None:
    assert find_outliers(RNG.normal(1, 0.05, 8192)) == []
    assert find_outliers(np.ones(64)) == []


def test_one_odd_channel_among_equal_ones_is_an_outlier() -> None:
    weight = np.ones(64)
    weight[3] = 2

    assert [o.index for o in find_outliers(weight)] == [3]


def test_sparkline_shows_a_lonely_element_beside_a_full_bin() -> None:
    assert sparkline([1000, 0, 500, 1, 0, 0, 0, 0]) == "█·▄▁····"
    assert sparkline([]) == ""


def test_the_histogram_runs_from_minimum_to_maximum() -> None:
    found = weight_statistics(np.arange(16, dtype=np.float32))

    assert found.histogram == (2,) * BINS


# -- the command -----------------------------------------------------------------------


def norms_of(width: int = N_EMBD) -> dict[str, np.ndarray]:
    names = ["token_embd", *(f"blk.{i}.{n}_norm" for i in range(N_LAYERS) for n in ("ffn", "attn"))]
    names.append("output_norm")
    return {f"{n}.weight": RNG.normal(1, 0.1, width).astype(np.float32) for n in names}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    metadata = {KEY: 1e-5, "general.name": "tiny"}
    return write_model(tmp_path / "tiny.gguf", "llama", metadata, norms_of())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)


def test_json_has_the_promised_names_and_reads_back(model: Path) -> None:
    found = json.loads(run(model, "--format", "json").output)

    assert (found["schema"], found["version"]) == ("ggufnorm/inspect", 1)
    assert (found["path"], found["architecture"], found["name"]) == (str(model), "llama", "tiny")
    first = found["norms"][0]
    promised = {
        "tensor": "blk.0.attn_norm.weight", "layer": 0, "role": "attn", "kind": "rms",
        "epsilon": 1e-5, "epsilon_key": KEY, "dtype": "F32", "shape": [N_EMBD], "bias": None,
    }  # fmt: skip
    assert {k: first[k] for k in promised} == promised
    assert first["weight"].keys() >= {"mean", "rms", "minimum", "maximum", "non_finite"}
    assert from_plain(Inspection, found) == inspect(model)


def test_text_has_a_row_per_norm_and_a_summary(model: Path) -> None:
    lines = run(model).output.splitlines()

    assert lines[0] == "tiny.gguf: llama, tiny, 2 layers, 5 norms"
    rows = [line.split()[:4] for line in lines[lines.index("") + 3 :][:5]]
    assert rows == [
        ["0", "attn", "rms", "1e-05"], ["0", "ffn", "rms", "1e-05"],
        ["1", "attn", "rms", "1e-05"], ["1", "ffn", "rms", "1e-05"],
        ["–", "output", "rms", "1e-05"],
    ]  # fmt: skip
    assert f"5 RMSNorms, epsilon 1e-05 ({KEY})" in lines
    assert any(line.startswith("5 weights: not BF16 values (0% of w, ") for line in lines)


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_text_keeps_to_the_width_and_cuts_nothing_off(tmp_path: Path, columns: int) -> None:
    from ggufnorm.report.formats import render

    outlier = RNG.normal(100, 0.1, 4096).astype(np.float32)
    outlier[4000] = -123456
    tensors = {"blk.0.attn_output_norm.weight": outlier, "blk.0.attn_output_norm.bias": outlier}
    metadata = {"bert.attention.layer_norm_epsilon": 1e-12}
    text = render(
        inspect(write_model(tmp_path / "m.gguf", "bert", metadata, tensors)), width=columns
    )

    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text
    assert "attn_output" in text
    assert "4000:-1.23e+05" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--layer", "1"], [(1, "attn"), (1, "ffn")]),
        (["--layer", "0-1", "--role", "ffn"], [(0, "ffn"), (1, "ffn")]),
        (["--role", "output", "--role", "ffn"], [(0, "ffn"), (1, "ffn"), (None, "output")]),
        (["--layer", "0", "--layer", "1-99", "--role", "attn"], [(0, "attn"), (1, "attn")]),
    ],
)
def test_layers_and_roles_choose_norms(
    model: Path, arguments: list[str], expected: list[tuple[int | None, str]]
) -> None:
    found = json.loads(run(model, "--format", "json", *arguments).output)

    assert [(n["layer"], n["role"]) for n in found["norms"]] == expected


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--layer", "x"], "neither a number nor a range"),
        (["--layer", "9" * 5000], "neither a number nor a range"),
        (["--layer", "3-1"], "ends before it begins"),
        (["--layer", "7"], "there are 2 layers"),
        (["--role", "attention"], "attn, ffn, output"),
        (["--format", "csv", "--tensors"], "csv"),
        (["-o", "norms.doc"], "text|json|markdown|html|csv"),
    ],
)
def test_what_cannot_be_done_is_a_usage_error(
    model: Path, arguments: list[str], problem: str
) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(model), *arguments])

    assert result.exit_code == 2
    assert problem in result.output


@pytest.mark.parametrize(
    ("suffix", "beginning"),
    [(".json", "{"), (".md", "## tiny.gguf"), (".csv", "path,"), (".txt", "tiny.gguf: llama")],
)
def test_the_suffix_of_the_output_decides_the_format(
    model: Path, tmp_path: Path, suffix: str, beginning: str
) -> None:
    target = tmp_path / f"norms{suffix}"

    result = run(model, "-o", target)

    assert (result.exception, result.stdout) == (None, "")
    assert result.stderr.endswith(f"written to {target}\n")
    assert target.read_text(encoding="utf-8").startswith(beginning)


def test_csv_has_a_row_per_norm_with_full_numbers(model: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run(model, "--format", "csv").output)))

    norms = inspect(model).norms
    assert [(r["tensor"], r["layer"], r["epsilon"]) for r in rows] == [
        (n.tensor, "" if n.layer is None else str(n.layer), "1e-05") for n in norms
    ]
    assert [float(r["rms"]) for r in rows] == [n.weight.rms for n in norms if n.weight]


def test_markdown_is_a_table_that_no_tensor_name_breaks(tmp_path: Path) -> None:
    names = ["blk.0.a|b<i>_norm.weight"]
    path = write_model(tmp_path / "m.gguf", "llama", {KEY: 1e-5}, names)

    lines = run(path, "--format", "markdown").output.splitlines()

    header, rule, row = (line for line in lines if line.startswith("|"))
    assert header.startswith("| Layer | Norm | Kind |")
    assert rule.count("|") == header.count("|") == row.replace(r"\|", "").count("|")
    assert r"a\|b\<i\>\_norm" in row


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    names = ["blk.0.\x1b[31mred_norm.weight", "blk.0.[bold]x_norm.weight"]
    metadata = {KEY: 1e-5, "general.name": "evil\x07\u202ename"}
    path = write_model(tmp_path / "m.gguf", "llama", metadata, names)

    for fmt in ("text", "markdown"):
        output = run(path, "--format", fmt, "--tensors").output
        assert not {"\x1b", "\x07", "\u202e"} & set(output)
        assert r"evil\x07\u202ename".replace("\\", "\\\\" if fmt == "markdown" else "\\") in output
    assert "[bold]x" in run(path).output


def test_tensors_are_listed_with_size_and_offset(model: Path) -> None:
    found = json.loads(run(model, "--format", "json", "--tensors").output)["tensors"]

    reader = gguf.GGUFReader(model)
    assert [(t["name"], t["dtype"], t["shape"], t["n_bytes"], t["offset"]) for t in found] == [
        (t.name, t.tensor_type.name, t.shape.tolist(), t.n_bytes, t.data_offset)
        for t in reader.tensors
    ]
    text = run(model, "--tensors").output
    assert "6 tensors, 192 bytes" in text
    assert "token_embd.weight" in text
    assert json.loads(run(model, "--format", "json").output)["tensors"] is None


def test_several_models_are_one_document(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", "llama", {KEY: 1e-6}, norms_of())

    found = json.loads(run(model, other, "--format", "json").output)

    assert (found["schema"], found["version"]) == ("ggufnorm/inspect-set", 1)
    assert [(m["path"], m["norms"][0]["epsilon"]) for m in found["models"]] == [
        (str(model), 1e-5),
        (str(other), 1e-6),
    ]
    assert found["failed"] == []
    text = run(model, other).output
    assert "tiny.gguf: llama" in text
    assert "other.gguf: llama" in text


def test_a_bad_model_does_not_keep_the_others_back(model: Path, tmp_path: Path) -> None:
    bad, gone = tmp_path / "bad.gguf", tmp_path / "gone.gguf"
    bad.write_bytes(b"GGML" * 10)

    result = CliRunner().invoke(
        command, [str(bad), str(model), str(gone), "--format", "json"], standalone_mode=False
    )

    assert result.return_value == 3
    document = json.loads(result.stdout)
    assert [m["path"] for m in document["models"]] == [str(model)]
    assert [f["what"] for f in document["failed"]] == [str(bad), str(gone)]
    errors = result.stderr.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith(f"error: {bad}: byte 0: magic:")


def test_a_single_bad_model_writes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "norms.json"

    result = run(tmp_path / "gone.gguf", "-o", target)

    assert isinstance(result.exception, InputError)
    assert not target.exists()


def test_only_bad_models_write_nothing(tmp_path: Path) -> None:
    target = tmp_path / "norms.json"

    result = run(tmp_path / "a.gguf", tmp_path / "b.gguf", "-o", target)

    assert result.return_value == 3
    assert not target.exists()


def test_a_weight_that_is_not_finite_stands_out(tmp_path: Path) -> None:
    weight = np.ones(N_EMBD, np.float32)
    weight[2:4] = np.nan, np.inf
    path = write_model(tmp_path / "m.gguf", "llama", {KEY: 1e-5}, {"output_norm.weight": weight})

    assert "2 NaN/inf" in run(path).output
    (norm,) = json.loads(run(path, "--format", "json").output)["norms"]
    assert norm["weight"]["non_finite"] == 2
    assert norm["weight"]["mean"] == 1


@pytest.mark.parametrize("epsilon", [float("nan"), float("inf"), -1e-5, 0.0])
def test_an_unusable_epsilon_is_shown_as_it_stands(tmp_path: Path, epsilon: float) -> None:
    path = write_model(tmp_path / "m.gguf", "llama", {KEY: epsilon}, norms_of())

    assert f"5 RMSNorms, epsilon {epsilon:g} ({KEY})" in run(path).output
    json.loads(to_json(inspect(path)))


def test_a_model_without_norms_says_so(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "llama", {KEY: 1e-5}, ["token_embd.weight"])

    assert "No norms: " in run(path).output
    assert run(path, "--format", "markdown").output.startswith("## m.gguf")


def test_the_offset_of_a_converted_gemma_is_in_the_summary(tmp_path: Path) -> None:
    weight = bf16(RNG.normal(0, 0.3, 512)) + np.float32(1)
    tensors = {f"blk.{i}.attn_norm.weight": weight for i in range(N_LAYERS)}
    metadata = {"gemma.attention.layer_norm_rms_epsilon": 1e-6}
    path = write_model(tmp_path / "m.gguf", "gemma", metadata, tensors)

    assert "2 weights: BF16 values, +1 was baked in" in run(path).output
