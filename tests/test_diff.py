import json
import math
import tracemalloc

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ggufnorm
from ggufnorm.analysis.diff import tensors as tensors_module
from ggufnorm.analysis.diff.metadata import affects
from ggufnorm.cli.main import cli, main
from ggufnorm.core.metrics import DifferenceSum, ulp_distance
from ggufnorm.engines.llama.binding import quantize_rows
from ggufnorm.report.document import document
from ggufnorm.report.formats import render

EPSILON = "llama.attention.layer_norm_rms_epsilon"
METADATA = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.block_count": 2,
    EPSILON: 1e-5,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.ggml.scores": [0.0, float("nan"), -1.0],
}


def write(path, tensors, metadata=METADATA, endianess=GGUFEndian.LITTLE):
    """A GGUF file of ``name -> values``, or ``name -> (values or raw bytes, type)``."""
    rest = dict(metadata)
    writer = gguf.GGUFWriter(path, rest.pop("general.architecture", "llama"), endianess=endianess)
    for key, value in rest.items():
        add = {str: writer.add_string, float: writer.add_float32, list: writer.add_array}
        add.get(type(value), writer.add_uint32)(key, value)
    for name, tensor in tensors.items():
        data, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        if kind == "F16":
            data, kind = data.astype(np.float16), None
        elif kind and data.dtype != np.uint8:
            data = quantize_rows(data, int(GGMLQuantizationType[kind]))
        writer.add_tensor(name, data, raw_dtype=kind and GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def network(seed=0, n_layers=2, width=256):
    """Values of a small network with norms, as float32."""
    rng = np.random.default_rng(seed)
    found = {"token_embd.weight": rng.standard_normal((50, width))}
    for i in range(n_layers):
        found |= {
            f"blk.{i}.attn_norm.weight": 1 + 0.1 * rng.standard_normal(width),
            f"blk.{i}.attn_q.weight": rng.standard_normal((width, width)),
            f"blk.{i}.ffn_norm.weight": 1 + 0.1 * rng.standard_normal(width),
            f"blk.{i}.ffn_up.weight": rng.standard_normal((2 * width, width)),
            f"blk.{i}.ffn_down.weight": rng.standard_normal((width, 2 * width)),
        }
    found["output_norm.weight"] = 1 + 0.1 * rng.standard_normal(width)
    return {name: values.astype(np.float32) for name, values in found.items()}


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
    """Writes files that are told apart by what is changed in them."""
    count = 0

    def make(changes=(), metadata=METADATA, drop=(), seed=0):
        nonlocal count
        count += 1
        tensors = {n: v for n, v in network(seed).items() if n not in drop}
        return write(tmp_path / f"{count}.gguf", {**tensors, **dict(changes)}, metadata)

    return make


def float64(path):
    """All tensors of a file, read by gguf-py."""
    return {
        t.name: dequantize(t.data, t.tensor_type).astype(np.float64)
        for t in GGUFReader(path).tensors
    }


def by_name(report):
    return {t.tensor: t for t in (*report.norms, *report.tensors)}


# -- figures ---------------------------------------------------------------------------


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


def test_tensors_of_three_dimensions_are_compared_row_by_row(tmp_path):
    rng = np.random.default_rng(0)
    r = rng.standard_normal((3, 5, 64)).astype(np.float32)
    q = r.copy()
    q[2, 1, 7] += 9
    paths = [
        write(tmp_path / f"{i}.gguf", {"blk.0.ffn_up_exps.weight": x}) for i, x in enumerate((r, q))
    ]
    (t,) = ggufnorm.diff(*paths).tensors
    assert (t.max_abs_row, t.max_abs_column) == (2 * 5 + 1, 7)
    assert t.rel_l2 == pytest.approx(9 / np.linalg.norm(r), rel=1e-5)


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


WHOLE = st.integers(-99, 99).map(float)  # their squares and sums are exact in float32


@given(
    arrays(np.float32, (12, 5), elements=WHOLE),
    arrays(np.float32, (12, 5), elements=WHOLE | st.just(np.nan)),
    st.integers(1, 12),
)
def test_sums_of_parts_merge_into_the_sum_of_all(r, q, step):
    whole, merged = DifferenceSum(), DifferenceSum()
    whole.add(r, q, 0, 12)
    for start in range(0, 12, step):
        part = DifferenceSum(floor=merged.max_abs)
        stop = min(start + step, 12)
        part.add(r[start:stop], q[start:stop], start, stop - start)
        merged.merge(part)
    assert merged.result() == whole.result()
    assert merged.squared_error == whole.squared_error
    assert merged.squared_reference == whole.squared_reference


def test_memory_holds_blocks_and_no_tensor(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 99, (2048, 64 * 34), dtype=np.uint8)  # 4 M weights
    monkeypatch.setattr(tensors_module, "_BLOCK", 1 << 15)
    path = write(tmp_path / "a.gguf", {"output.weight": (raw, "Q8_0")})
    del raw
    ggufnorm.diff(path, path)  # what is made once is made
    tracemalloc.start()
    try:
        report = ggufnorm.diff(path, path, n_threads=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.n_weights == 1 << 22
    assert peak < 4 << 20  # one side of the tensor alone takes 16 MiB as float32


# -- the same --------------------------------------------------------------------------


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


def test_another_name_makes_no_difference_another_epsilon_does(file):
    renamed = ggufnorm.diff(file(), file(metadata={**METADATA, "general.name": "other"}))
    assert renamed.identical
    assert [(m.key, m.affects, m.a, m.b) for m in renamed.metadata] == [
        ("general.name", "nothing", "tiny", "other")
    ]
    other = ggufnorm.diff(file(), file(metadata={**METADATA, EPSILON: 1e-6}))
    assert not other.identical
    assert f"Metadata that the forward pass depends on differ: {EPSILON}." in other.verdict
    assert other.verdict.startswith("No difference: all values of 12 tensors are the same")


# -- norms -----------------------------------------------------------------------------


def test_quantization_leaves_norms_identical(pair):
    report = ggufnorm.diff(*pair)
    assert len(report.norms) == 5
    assert "All 5 norms are identical, bit for bit." in report.verdict
    assert "7 of 7 tensors beside them differ" in report.verdict
    assert "damaged" not in report.verdict


def test_one_unit_in_the_last_place_of_one_norm_is_seen(file):
    name = "blk.1.ffn_norm.weight"
    weight = network()[name]
    weight[77] = np.nextafter(weight[77], np.float32(9))
    report = ggufnorm.diff(file(), file({name: weight}))
    changed = [n for n in report.norms if n.n_differing]
    assert [n.tensor for n in changed] == [name]
    (n,) = changed
    assert (n.layer, n.role, n.n_elements, n.n_differing, n.max_ulp) == (1, "ffn", 256, 1, 1)
    assert (n.max_abs_row, n.max_abs_column) == (0, 77)
    assert n.max_abs == float(weight[77] - network()[name][77])
    assert (
        f"1 of 5 norms differ, the most {name} by up to {n.max_abs:.3g} (1 ulp)." in report.verdict
    )
    assert not report.identical


def test_a_norm_counts_once_with_its_bias(file):
    bias = np.ones(256, np.float32)
    name = "blk.0.attn_norm.bias"
    report = ggufnorm.diff(file({name: bias}), file({name: 2 * bias}))
    assert len(report.norms) == 6
    assert "1 of 5 norms differ" in report.verdict


def test_the_sign_of_zero_is_a_difference_of_bits_and_of_no_ulp(file):
    name, zero = "output_norm.weight", np.zeros(256, np.float32)
    report = ggufnorm.diff(file({name: zero}), file({name: -zero}))
    n = by_name(report)[name]
    assert (n.n_differing, n.max_ulp, n.max_abs) == (256, 0, 0)
    assert not report.identical


def test_a_norm_in_another_type_with_the_same_values_is_identical(file):
    name = "output_norm.weight"
    halves = network()[name].astype(np.float16)
    report = ggufnorm.diff(file({name: halves.astype(np.float32)}), file({name: halves}))
    n = by_name(report)[name]
    assert (n.dtype_a, n.dtype_b, n.n_differing) == ("F32", "F16", 0)


def test_a_nan_in_a_norm_is_located(file):
    name = "output_norm.weight"
    weight = network()[name]
    weight[[9, 200]] = np.nan, np.inf
    report = ggufnorm.diff(file(), file({name: weight}))
    n = by_name(report)[name]
    assert (n.n_differing, n.max_ulp) == (2, None)
    (bad,) = report.non_finite
    assert (bad.tensor, bad.side, bad.count, bad.row, bad.column) == (name, "b", 2, 0, 9)
    assert f"{name} holds 2 NaN or infinite values in file b" in report.verdict


@given(st.floats(width=32, allow_nan=False), st.integers(0, 5000))
def test_ulp_distance_counts_steps(x, steps):
    a = np.array([x], np.float32)
    order = np.where(a.view(np.int32) < 0, -(a.view(np.int32) & 0x7FFFFFFF), a.view(np.int32))
    further = (order + steps).astype(np.int32)
    b = np.where(further < 0, -further | np.int32(-(2**31)), further).astype(np.int32)
    b = b.view(np.float32)
    assert ulp_distance(a, b) == ulp_distance(b, a) == steps


def test_ulp_distance_of_neighbours_across_zero():
    smallest = np.nextafter(np.float32(0), np.float32(1))
    a, b = np.array([-smallest, 1, -0.0]), np.array([smallest, np.nextafter(np.float32(1), 2), 0])
    assert list(ulp_distance(a.astype(np.float32), b.astype(np.float32))) == [2, 1, 0]


# -- other checkpoints, and damage -----------------------------------------------------


def test_another_checkpoint_is_called_one_and_nothing_is_called_damaged(file):
    report = ggufnorm.diff(file(), file(seed=1))
    assert report.different_checkpoints
    assert report.verdict.startswith(
        "These are different checkpoints: every matrix differs wholly (median relative L2 1.41),"
        " and so do 5 of 5 norms."
    )
    assert "damaged" not in report.verdict


def test_checkpoints_of_different_architectures(file):
    other = {**METADATA, "general.architecture": "qwen2"}
    report = ggufnorm.diff(file(), file(metadata=other, seed=1))
    assert report.different_checkpoints
    assert "different checkpoints of different architectures (llama and qwen2):" in report.verdict


def test_a_tensor_that_was_changed_by_itself_is_told(file):
    name = "blk.0.ffn_up.weight"
    report = ggufnorm.diff(file(), file({name: network()[name] * np.float32(1.01)}))
    assert f"1 of 7 tensors beside them differ, the most {name} (F32) by 0.01" in report.verdict
    assert f"{name} differs by 0.01 where its F32 peers differ by 0: it was changed by itself." in (
        report.verdict
    )


def test_what_follows_from_the_architecture_does_not_make_checkpoints_the_same(file):
    rope = {"rope_freqs.weight": np.arange(64, dtype=np.float32)}
    report = ggufnorm.diff(file(rope), file(rope, seed=1))
    assert by_name(report)["rope_freqs.weight"].identical
    assert report.different_checkpoints


def test_with_the_same_norms_it_is_not_called_another_checkpoint(file):
    norms = {n: v for n, v in network().items() if "norm" in n}
    report = ggufnorm.diff(file(), file(norms, seed=1))
    assert not report.different_checkpoints
    assert "All 5 norms are identical" in report.verdict


def test_a_fine_tune_is_not_another_checkpoint(file):
    rng = np.random.default_rng(5)
    step = np.float32(0.01)
    tuned = {n: v + step * rng.standard_normal(v.shape, np.float32) for n, v in network().items()}
    report = ggufnorm.diff(file(), file(tuned))
    assert not report.different_checkpoints
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


def test_a_tensor_without_peers_is_out_of_line_if_it_differs_wholly(tmp_path):
    values = network()
    names = ["token_embd.weight", "output_norm.weight"]
    a = write(tmp_path / "a.gguf", {n: values[n] for n in names})
    other = {names[0]: network(1)[names[0]], names[1]: values[names[1]]}
    report = ggufnorm.diff(a, write(tmp_path / "b.gguf", other))
    assert "token_embd.weight differs by 1.4" in report.verdict
    assert "damaged or another tensor" in report.verdict


def test_an_all_zero_reference_has_no_relative_error(file):
    name = "blk.0.attn_q.weight"
    zero = np.zeros((256, 256), np.float32)
    report = ggufnorm.diff(file({name: zero}), file())
    t = report.tensors[0]
    assert (t.tensor, t.rel_l2, t.nmse, t.sqnr_db, t.cosine) == (name, None, None, None, None)
    assert t.mse == pytest.approx(1, rel=0.1)
    assert t.mean_square == 0
    assert f"{name} differs wholly" in report.verdict
    both = ggufnorm.diff(file({name: zero}), file({name: zero}))
    assert by_name(both)[name].rel_l2 == 0


# -- NaN and infinities ----------------------------------------------------------------


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


def test_tensors_with_nan_come_first(file):
    name = "blk.0.attn_q.weight"
    holed = network()[name]
    holed[3, 4] = np.nan
    report = ggufnorm.diff(file(), file({name: holed}, seed=1))
    assert report.tensors[0].tensor == name


# -- what cannot be compared -----------------------------------------------------------


def test_tensors_of_one_side_and_of_another_shape_are_listed(file):
    extra = {"output.weight": np.ones((50, 256), np.float32)}
    wider = {"blk.0.attn_q.weight": np.ones((256, 512), np.float32)}
    report = ggufnorm.diff(file(drop=["token_embd.weight"]), file({**extra, **wider}))
    assert {(u.tensor, u.shape_a, u.shape_b) for u in report.unmatched} == {
        ("blk.0.attn_q.weight", (256, 256), (512, 256)),
        ("token_embd.weight", None, (256, 50)),
        ("output.weight", None, (256, 50)),
    }
    assert "3 tensors could not be compared." in report.verdict
    assert not report.identical
    text = render(report)
    assert "Only in b: 2" in text
    assert "blk.0.attn_q.weight: 256×256→512×256" in text


def test_a_trailing_dimension_of_one_is_no_other_shape(file):
    name = "output_norm.weight"
    report = ggufnorm.diff(file(), file({name: network()[name].reshape(1, 1, -1)}))
    assert report.unmatched == ()
    assert report.identical


def test_files_without_a_tensor_in_common(tmp_path):
    x = np.ones(4, np.float32)
    paths = [write(tmp_path / f"{n}.gguf", {n: x}) for n in "xy"]
    report = ggufnorm.diff(*paths)
    assert report.verdict.startswith("No tensor has the same name and shape in both files")
    assert not report.identical
    assert not report.different_checkpoints


def test_a_tensor_of_a_type_that_nobody_reads_is_skipped(file):
    size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType.Q8_K][1]
    odd = {"blk.0.odd.weight": (np.zeros((2, size), np.uint8), "Q8_K")}
    seen = []
    report = ggufnorm.diff(file(odd), file(odd), on_progress=seen.append)
    (skipped,) = report.skipped
    assert skipped.what == "blk.0.odd.weight"
    assert "Q8_K" in skipped.reason
    assert len(report.tensors) + len(report.norms) == 12
    assert report.n_weights == sum(v.size for v in network().values())
    assert seen[-1].done == seen[-1].total == report.n_weights + 2 * 256
    assert not report.identical
    assert "1 tensor could not be compared." in report.verdict


def test_a_big_endian_file_is_the_same_file(tmp_path):
    values = network()
    a = write(tmp_path / "a.gguf", values)
    b = write(tmp_path / "b.gguf", values, endianess=GGUFEndian.BIG)
    assert ggufnorm.diff(a, b).identical


@pytest.mark.parametrize("threads", [0, -1])
def test_the_number_of_threads_must_be_positive(pair, threads):
    with pytest.raises(ValueError, match="at least 1"):
        ggufnorm.diff(*pair, n_threads=threads)


# -- metadata --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (EPSILON, "forward"),
        ("llama.rope.freq_base", "forward"),
        ("llama.attention.head_count_kv", "forward"),
        ("llama.context_length", "forward"),
        ("qwen2.embedding_length", "forward"),
        ("general.architecture", "forward"),
        ("tokenizer.ggml.pre", "tokens"),
        ("tokenizer.ggml.add_bos_token", "tokens"),
        ("tokenizer.chat_template", "nothing"),
        ("general.file_type", "nothing"),
        ("general.quantization_version", "nothing"),
        ("quantize.imatrix.file", "nothing"),
        ("llamas.are", "nothing"),
        (".", "nothing"),
    ],
)
def test_what_a_key_affects(key, what):
    assert affects(key, ("llama", "qwen2", "")) == what


def test_metadata_that_matter_come_first_and_arrays_are_told_by_their_elements(file):
    changed = {
        **METADATA,
        "general.name": "other",
        "tokenizer.ggml.tokens": ["a", "x", "y", "z"],
        "llama.rope.freq_base": 1e6,
    }
    del changed["llama.block_count"]
    found = ggufnorm.diff(file(), file(metadata=changed)).metadata
    assert [(m.key, m.affects, m.a, m.b, m.index, m.n_differing) for m in found] == [
        ("llama.block_count", "forward", 2, None, None, None),
        ("llama.rope.freq_base", "forward", None, 1e6, None, None),
        ("tokenizer.ggml.tokens", "tokens", "b", "x", 1, 3),
        ("general.name", "nothing", "tiny", "other", None, None),
    ]


def test_an_array_that_only_one_file_has_is_told_by_its_length(file):
    without = {k: v for k, v in METADATA.items() if k != "tokenizer.ggml.tokens"}
    (m,) = ggufnorm.diff(file(), file(metadata=without)).metadata
    assert (m.a, m.b) == ("array of 3", None)


# -- faces -----------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(cli, ["diff", *map(str, arguments)], standalone_mode=False)


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


def test_names_from_a_file_cannot_steer_the_terminal(file):
    name, key = "blk.0.\x1b[31mred.weight", "tokenizer.ggml.\x1b[2J"
    values = np.ones((4, 4), np.float32)
    a = file({name: values}, {**METADATA, key: "\x1b[31m", "other.\x07": 1})
    report = ggufnorm.diff(a, file({name: 2 * values, "\x1b]0;": values}))
    assert any(t.tensor == name for t in report.tensors)
    assert "\x1b" not in render(report)
    assert "\x07" not in render(report)


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
