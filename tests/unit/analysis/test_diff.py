import tracemalloc

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFEndian
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ggufnorm
from ggufnorm.analysis.diff import tensors as tensors_module
from ggufnorm.analysis.diff.metadata import affects
from ggufnorm.cli.main import cli
from ggufnorm.core.metrics import DifferenceSum, ulp_distance
from ggufnorm.engines.llama.binding import quantize_rows
from ggufnorm.report.formats import render

pytestmark = pytest.mark.usefixtures("computed_by")

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


@pytest.fixture
def file(tmp_path):
    return writer(tmp_path)


def writer(tmp_path):
    """Writes files that are told apart by what is changed in them."""
    count = 0

    def make(changes=(), metadata=METADATA, drop=(), seed=0):
        nonlocal count
        count += 1
        tensors = {n: v for n, v in network(seed).items() if n not in drop}
        return write(tmp_path / f"{count}.gguf", {**tensors, **dict(changes)}, metadata)

    return make


def by_name(report):
    return {t.tensor: t for t in (*report.norms, *report.tensors)}


# -- figures ---------------------------------------------------------------------------


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


WHOLE = st.integers(-99, 99).map(float)  # their squares and sums are exact in float32


@pytest.mark.slow
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


def test_names_from_a_file_cannot_steer_the_terminal(file):
    name, key = "blk.0.\x1b[31mred.weight", "tokenizer.ggml.\x1b[2J"
    values = np.ones((4, 4), np.float32)
    a = file({name: values}, {**METADATA, key: "\x1b[31m", "other.\x07": 1})
    report = ggufnorm.diff(a, file({name: 2 * values, "\x1b]0;": values}))
    assert any(t.tensor == name for t in report.tensors)
    assert "\x1b" not in render(report)
    assert "\x07" not in render(report)
