"""Files that llama.cpp quantizes, compared."""

import json
import math

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

import ggufnorm
from ggufnorm.analysis.diff import tensors as tensors_module
from ggufnorm.cli.main import main
from ggufnorm.engines.llama.binding import quantize_rows
from ggufnorm.report.document import document
from ggufnorm.report.formats import render
from tests.unit.analysis.test_diff import METADATA, by_name, network, run, write, writer


def quantized(values, kind="Q4_K", **others):
    """Matrices in a type (another for names that hold a keyword), vectors in F32."""

    def choose(name):
        return next((k for part, k in others.items() if part in name), kind)

    return {n: v if v.ndim == 1 else (v, choose(n)) for n, v in values.items()}


@pytest.fixture
def pair(tmp_path):
    """A source in F16, and a quant with a better type for some tensors."""
    values = network()
    return (
        write(tmp_path / "a.gguf", quantized(values, "F16")),
        write(tmp_path / "b.gguf", quantized(values, "Q4_K", ffn_down="Q6_K")),
    )


@pytest.fixture
def file(tmp_path):
    return writer(tmp_path)


def float64(path):
    """All tensors of a file, read by gguf-py."""
    return {
        t.name: dequantize(t.data, t.tensor_type).astype(np.float64)
        for t in GGUFReader(path).tensors
    }


def test_figures_are_those_of_a_plain_float64_computation(pair):
    a, b = map(float64, pair)
    report = ggufnorm.diff(*pair)
    assert len(report.tensors) == 7
    for t in report.tensors:
        r, q = a[t.tensor], b[t.tensor]
        d = q - r
        assert t.n_compared == r.size
        assert t.shape == r.shape[::-1]
        assert t.rel_l2 == pytest.approx(np.linalg.norm(d) / np.linalg.norm(r), rel=2e-6)
        assert t.mse == pytest.approx(np.mean(d**2), rel=4e-6)
        assert t.mean_square == pytest.approx(np.mean(r**2), rel=4e-6)
        assert t.nmse == pytest.approx(np.mean(d**2) / np.mean(r**2), rel=4e-6)
        noise = 10 * math.log10(np.mean(r**2) / np.mean(d**2))
        assert t.sqnr_db == pytest.approx(noise, abs=2e-5)
        cosine = np.sum(q * r) / np.linalg.norm(q) / np.linalg.norm(r)
        assert 1 - t.cosine == pytest.approx(1 - cosine, rel=1e-4)
        assert t.max_abs == pytest.approx(np.abs(d).max(), rel=1e-6)
        assert (t.max_abs_row, t.max_abs_column) == divmod(int(np.abs(d).argmax()), r.shape[1])


def test_shares_are_parts_of_the_second_file(pair):
    report = ggufnorm.diff(*pair)
    size = pair[1].stat().st_size
    sizes = {t.name: int(t.n_bytes) for t in GGUFReader(pair[1]).tensors}
    assert report.b.n_bytes == size
    for t in report.tensors:
        assert t.share == pytest.approx(sizes[t.tensor] / size)


@pytest.mark.parametrize("attribute", ["layers", "roles", "types"])
def test_a_group_is_its_tensors_put_together(pair, attribute):
    a, b = map(float64, pair)
    report = ggufnorm.diff(*pair)
    keys = {
        "layers": lambda t: "–" if t.layer is None else str(t.layer),
        "roles": lambda t: t.role,
        "types": lambda t: f"F16→{t.dtype_b}",
    }
    groups = getattr(report, attribute)
    assert sum(g.n_tensors for g in groups) == len(report.tensors)
    assert [g.rel_l2 for g in groups] == sorted((g.rel_l2 for g in groups), reverse=True)
    for g in groups:
        names = [t.tensor for t in report.tensors if keys[attribute](t) == g.group]
        assert len(names) == g.n_tensors > 0
        squares = [sum(np.sum(f(n) ** 2) for n in names) for f in (lambda n: b[n] - a[n], a.get)]
        assert g.rel_l2 == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=2e-6)
        assert g.worst == names[0]  # the report has the worst first


def test_a_better_type_is_told_by_its_error(pair):
    errors = {g.group: g.rel_l2 for g in ggufnorm.diff(*pair).types}
    assert list(errors) == ["F16→Q4_K", "F16→Q6_K"]
    assert errors["F16→Q4_K"] > 3 * errors["F16→Q6_K"]


def test_roles_and_layers_are_those_of_the_names(pair):
    report = by_name(ggufnorm.diff(*pair))
    assert (report["blk.1.ffn_down.weight"].layer, report["blk.1.ffn_down.weight"].role) == (
        1,
        "ffn_down",
    )
    assert (report["token_embd.weight"].layer, report["token_embd.weight"].role) == (
        None,
        "token_embd",
    )


def test_neither_threads_nor_blocks_change_a_figure(pair, monkeypatch):
    whole = ggufnorm.diff(*pair, n_threads=1)
    monkeypatch.setattr(tensors_module, "_BLOCK", 3000)
    several = [ggufnorm.diff(*pair, n_threads=n) for n in (1, 4)]
    assert several[0].tensors == several[1].tensors
    for t, other in zip(whole.tensors, several[0].tensors, strict=True):
        assert t.rel_l2 == pytest.approx(other.rel_l2, rel=1e-12)
        assert (t.max_abs, t.max_abs_row, t.max_abs_column) == (
            other.max_abs,
            other.max_abs_row,
            other.max_abs_column,
        )


def test_a_file_does_not_differ_from_itself(pair):
    report = ggufnorm.diff(pair[1], pair[1])
    assert report.identical
    assert not report.different_checkpoints
    assert report.metadata == report.unmatched == report.skipped == report.non_finite == ()
    for t in report.tensors:
        assert (t.rel_l2, t.mse, t.nmse, t.cosine, t.max_abs) == (0, 0, 0, 1, 0)
        assert t.identical
        assert t.sqnr_db is None
    for n in report.norms:
        assert (n.n_differing, n.max_ulp, n.max_abs, n.rel_l2) == (0, 0, 0, 0)
    assert report.verdict.startswith(
        "No difference: all values of 12 tensors are the same, those of norms bit for bit."
    )
    assert report.n_weights == sum(t.n_elements for t in GGUFReader(pair[1]).tensors)


def test_quantization_leaves_norms_identical(pair):
    report = ggufnorm.diff(*pair)
    assert len(report.norms) == 5
    assert "All 5 norms are identical, bit for bit." in report.verdict
    assert "7 of 7 tensors beside them differ" in report.verdict
    assert "damaged" not in report.verdict


def test_a_damaged_tensor_is_out_of_line_with_its_peers(pair, tmp_path):
    values, name = network(), "blk.0.ffn_up.weight"
    damaged = {**values, name: values[name].copy()}
    damaged[name][::16] = 0
    b = write(tmp_path / "damaged.gguf", quantized(damaged, "Q4_K", ffn_down="Q6_K"))
    report = ggufnorm.diff(pair[0], b)
    t = report.tensors[0]
    assert t.tensor == name
    assert 0.25 < t.rel_l2 < 0.27  # √(1/16) and what quantization adds
    assert f"{name} differs by {t.rel_l2:.3g} where its F16→Q4_K peers" in report.verdict
    assert report.verdict.count("it is damaged or another tensor") == 1


def test_a_bad_scale_is_located_by_row_and_block(tmp_path, monkeypatch):
    name = "blk.0.ffn_up.weight"
    raw = quantize_rows(network()[name], int(GGMLQuantizationType.Q8_0))
    a = write(tmp_path / "a.gguf", {name: (raw.copy(), "Q8_0")})
    for row, block, scale in ((300, 5, 0x7E00), (300, 2, 0x7C00), (411, 0, 0x7C00)):
        raw[row, 34 * block : 34 * block + 2] = [scale & 0xFF, scale >> 8]
    b = write(tmp_path / "b.gguf", {name: (raw, "Q8_0")})
    monkeypatch.setattr(tensors_module, "_BLOCK", 100 * 256)
    report = ggufnorm.diff(a, b)
    (bad,) = report.non_finite
    assert (bad.tensor, bad.side, bad.n_rows) == (name, "b", 2)
    assert (bad.row, bad.block) == (300, 2)
    assert bad.column // 32 == 2
    assert 64 < bad.count <= 96
    (t,) = report.tensors
    assert t.n_compared == (512 - 2) * 256
    assert not t.identical
    assert t.rel_l2 == 0
    assert "in file b, the first in row 300, block 2." in report.verdict
    same = ggufnorm.diff(b, b)
    assert same.identical
    assert [n.side for n in same.non_finite] == ["a", "b"]
    assert "holds" in same.verdict


@pytest.mark.parametrize("threads", [0, -1])
def test_the_number_of_threads_must_be_positive(pair, threads):
    with pytest.raises(ValueError, match="at least 1"):
        ggufnorm.diff(*pair, n_threads=threads)


def test_the_text_keeps_to_a_hundred_columns(pair, file):
    long = {"blk.0." + 60 * "long_" + "norm.weight": np.ones(256, np.float32)}
    wide = {**METADATA, "general.name": 400 * "x", "tokenizer.ggml.pre": 400 * "y"}
    for report in (
        ggufnorm.diff(*pair),
        ggufnorm.diff(file(long), file({n: 2 * v for n, v in long.items()}, wide, seed=1)),
        ggufnorm.diff(file(drop=["output_norm.weight"]), file(seed=2)),
    ):
        text = render(report)
        assert max(map(len, text.splitlines())) <= 100
        assert text.count("\n") > 10


def test_the_text_shows_the_worst_tensor_with_its_figures(pair):
    report = ggufnorm.diff(*pair)
    t = report.tensors[0]
    (line,) = [x for x in render(report).splitlines() if x.startswith(f"{t.tensor} ") and ":" in x]
    assert line.split()[1:] == [
        "F16→Q4_K",
        f"{100 * t.share:.1f}",
        "%",
        f"{t.rel_l2:.3g}",
        f"{t.nmse:.3g}",
        f"{t.sqnr_db:.1f}",
        f"{t.cosine:.6f}",
        f"{t.max_abs:.3g}",
        f"{t.max_abs_row}:{t.max_abs_column}",
    ]


def test_the_document_has_a_schema_and_every_figure(pair):
    report = ggufnorm.diff(*pair)
    data = json.loads(json.dumps(document(report), allow_nan=False))
    assert (data["schema"], data["version"]) == ("ggufnorm/diff", 1)
    assert data["tensors"][0]["rel_l2"] == report.tensors[0].rel_l2
    assert data["tensors"][0]["shape"] == list(report.tensors[0].shape)
    assert data["a"]["path"] == str(pair[0])
    assert data["verdict"] == report.verdict


def test_the_command_prints_the_text_and_exits_zero(pair):
    result = run(*pair)
    assert result.return_value == 0
    assert "All 5 norms are identical, bit for bit." in result.stdout
    assert "diff …" in result.stderr


def test_the_command_writes_json_by_suffix(pair, tmp_path):
    target = tmp_path / "out.json"
    assert run(*pair, "-o", target, "--threads", 1).return_value == 0
    assert json.loads(target.read_text(encoding="utf-8"))["schema"] == "ggufnorm/diff"


def test_fail_on_norms_fails_on_norms_only(pair, file):
    assert run(*pair, "--fail-on-norms").return_value == 0
    other = file({"output_norm.weight": np.full(256, 2, np.float32)})
    assert run(file(), other).return_value == 0
    result = run(file(), other, "--fail-on-norms")
    assert result.return_value == 1
    assert "--fail-on-norms: 1 norm tensors differ" in result.stderr


def test_an_unreadable_input_is_one_line_and_leaves_no_file(pair, tmp_path, monkeypatch, capsys):
    bad, target = tmp_path / "bad.gguf", tmp_path / "out.json"
    bad.write_bytes(pair[1].read_bytes()[:-100])
    for path in (bad, tmp_path / "missing.gguf"):
        command = ["ggufnorm", "diff", pair[0], path, "-o", target]
        monkeypatch.setattr("sys.argv", [str(word) for word in command])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 3
        lines = [x for x in capsys.readouterr().err.splitlines() if x != "diff …"]
        assert len(lines) == 1
        assert str(path) in lines[0]
    assert not target.exists()


def test_progress_ends_at_the_total(pair):
    seen = []
    report = ggufnorm.diff(*pair, on_progress=seen.append)
    assert (seen[0].phase, seen[0].total) == ("reading metadata", 0)
    done = [p.done for p in seen]
    assert done == sorted(set(done))
    assert done[-1] == seen[-1].total == report.n_weights
    assert seen[-1].speed.endswith("M weights/s")


def test_an_interrupt_stops_the_comparison(pair, monkeypatch):
    monkeypatch.setattr(tensors_module, "_BLOCK", 256)
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ggufnorm.diff(*pair, on_progress=interrupt)
    assert len(seen) == 3


def test_the_package_offers_the_function(pair):
    import ggufnorm.cli.diff  # a module of that name must not hide it

    assert ggufnorm.cli.diff.command.name == "diff"
    assert callable(ggufnorm.diff)
    assert isinstance(ggufnorm.diff(*pair), ggufnorm.DiffReport)
