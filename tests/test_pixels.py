"""What pipelines feed image models, and what made it of a picture."""

from __future__ import annotations

import base64
import io
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import ggufnorm
from ggufnorm.analysis.preprocessing.image.matching import best_match
from ggufnorm.cli.main import cli
from ggufnorm.core.pixel_report import Pipeline
from ggufnorm.core.pixels import (
    KNOWN,
    Affine,
    Constants,
    Normalization,
    explain,
    explain_alone,
    fit,
    hypotheses,
)
from ggufnorm.engines.images import read_picture, resizes
from ggufnorm.engines.llama.vision import capture_pixels
from ggufnorm.engines.processors import Processor
from ggufnorm.errors import ConfigError, EngineError, GgufnormError, InputError, MissingPackageError
from ggufnorm.report.faces import render
from tests.pages import check_html
from tests.vision import (
    CLIP,
    IMAGENET,
    SIGLIP,
    levels,
    write_mmproj,
    write_picture,
    write_processor,
)

MEASURED: Constants = ((0.47, 0.44, 0.41), (0.24, 0.26, 0.28))
"""Constants of no model known."""


def named(text: str) -> Normalization:
    return Normalization(*{**KNOWN, "measured": MEASURED}[text])


# -- Explaining values by their picture --------------------------------------------------


@pytest.mark.parametrize("owner", [*KNOWN, "measured"])
def test_every_hypothesis_is_told_from_all_others(owner: str) -> None:
    expected = named(owner)
    picture = levels(24, 31)
    tried = hypotheses(expected)
    assert len(tried) > 40
    for hypothesis in tried:
        found = explain(picture, hypothesis.affine.apply(picture), expected)
        assert (found.mistakes, found.text) == (hypothesis.mistakes, hypothesis.text)
        assert found.residual is not None
        assert found.residual < 1e-9


def _swap(values: np.ndarray) -> np.ndarray:
    return values[..., ::-1]


def _normalize(x: np.ndarray, constants: Constants) -> np.ndarray:
    mean, std = constants
    return (x - np.array(mean)) / np.array(std)


MISTAKES = {
    "not scaled": ("not-scaled", _normalize),
    "levels as they are": ("raw", lambda p, c: p),
    "not normalized": ("not-normalized", lambda p, c: p / 255),
    "scaled twice": ("scaled-twice", lambda p, c: _normalize(p / 255 / 255, c)),
    "BGR": ("channels-swapped", lambda p, c: _normalize(_swap(p) / 255, c)),
    "BGR afterwards": ("channels-swapped-after", lambda p, c: _swap(_normalize(p / 255, c))),
    "constants in BGR": (
        "constants-swapped",
        lambda p, c: _normalize(p / 255, (c[0][::-1], c[1][::-1])),
    ),
    "exchanged": ("mean-std-exchanged", lambda p, c: _normalize(p / 255, c[::-1])),
    "mean as std": ("std-is-mean", lambda p, c: _normalize(p / 255, (c[0], c[0]))),
    "std as mean": ("mean-is-std", lambda p, c: _normalize(p / 255, (c[1], c[1]))),
    "twice": ("normalized-twice", lambda p, c: _normalize(_normalize(p / 255, c), c)),
    "std twice": ("std-twice", lambda p, c: _normalize(p / 255, c) / np.array(c[1])),
    "no mean": ("mean-unused", lambda p, c: p / 255 / np.array(c[1])),
    "no std": ("std-unused", lambda p, c: p / 255 - np.array(c[0])),
    "times std": ("std-multiplied", lambda p, c: (p / 255 - np.array(c[0])) * np.array(c[1])),
    "plus mean": ("mean-added", lambda p, c: (p / 255 + np.array(c[0])) / np.array(c[1])),
    "Caffe's": (
        "constants-of-another",
        lambda p, c: _swap(p) - np.array([103.939, 116.779, 123.68]),
    ),
    "-1 to 1": ("constants-of-another", lambda p, c: p / 127.5 - 1),
}


@pytest.mark.parametrize("expected", [CLIP, IMAGENET, MEASURED], ids=["CLIP", "ImageNet", "other"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str, expected: Constants) -> None:
    name, pipeline = MISTAKES[mistake]
    picture = levels(32, 40)
    values = pipeline(picture.astype(np.float64), expected).astype(np.float32)
    found = explain(picture, values, Normalization(*expected))
    assert name in found.mistakes


@pytest.mark.parametrize("mistake", ["not scaled", "exchanged", "twice", "-1 to 1", "no mean"])
def test_mistakes_are_named_where_the_picture_was_resized_in_another_way(mistake: str) -> None:
    name, pipeline = MISTAKES[mistake]
    original = levels(90, 120)
    mine, theirs = (
        next(r for r in resizes(original, 48, 48) if (r.shape, r.how) == ("stretched", how)).levels
        for how in ("bilinear", "nearest")
    )
    values = pipeline(theirs.astype(np.float64), IMAGENET)
    found = explain(mine, values, Normalization(*IMAGENET))
    assert found.mistakes == (name,)
    assert 0.01 < (found.residual or 0) < 0.35


def test_two_mistakes_at_once_are_both_named() -> None:
    picture = levels(32, 40)
    values = _normalize(_swap(picture.astype(np.float64)), IMAGENET)
    found = explain(picture, values, Normalization(*IMAGENET))
    assert found.mistakes == ("not-scaled", "channels-swapped")


def test_constants_of_nobody_are_given_in_figures() -> None:
    picture = levels(32, 40)
    values = Normalization((0.3, 0.35, 0.2), (0.31, 0.37, 0.4)).apply(picture)
    found = explain(picture, values, Normalization(*CLIP))
    assert found.mistakes == ("constants-unknown",)
    assert "mean 0.3, 0.35, 0.2 and std 0.31, 0.37, 0.4" in found.text


def test_another_picture_tells_nothing() -> None:
    found = explain(levels(32, 40), levels(32, 40, seed=9) / 255, Normalization(*CLIP))
    assert not found.identified
    assert not found.mistakes


def test_a_picture_of_one_level_tells_nothing_and_constant_values_are_a_mistake() -> None:
    grey = np.full((8, 8, 3), 128)
    assert not explain(grey, grey / 255, Normalization(*CLIP)).identified
    found = explain(levels(8, 8), np.zeros((8, 8, 3)), Normalization(*CLIP))
    assert found.mistakes == ("constant",)


_FINITE = st.floats(-4, 4)
_POSITIVE = st.floats(0.02, 5)


@settings(max_examples=40, deadline=None)
@given(
    gain=st.tuples(_POSITIVE, _POSITIVE, _POSITIVE),
    offset=st.tuples(_FINITE, _FINITE, _FINITE),
    order=st.permutations([0, 1, 2]),
    seed=st.integers(0, 99),
)
def test_a_fit_finds_what_made_the_values_and_undoes_it(
    gain: tuple[float, float, float],
    offset: tuple[float, float, float],
    order: list[int],
    seed: int,
) -> None:
    picture = levels(20, 20, seed)
    made = Affine(gain, offset, (order[0], order[1], order[2]))
    found = fit(picture, made.apply(picture))
    assert found.residual < 1e-9
    assert found.affine.order == made.order
    assert np.allclose(found.affine.gain, gain)
    assert np.allclose(made.undo(made.apply(picture)), picture)


@settings(max_examples=40, deadline=None)
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
    seed=st.integers(0, 99),
)
def test_the_right_normalization_is_never_a_mistake(
    mean: tuple[float, float, float], std: tuple[float, float, float], seed: int
) -> None:
    expected, picture = Normalization(mean, std), levels(20, 24, seed)
    values = expected.apply(picture).astype(np.float32)
    assert explain(picture, values, expected).mistakes == ()
    assert explain_alone(values, expected).mistakes == ()


def test_a_fit_of_other_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        fit(np.zeros((4, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="3 channels"):
        fit(np.zeros((4, 2)), np.zeros((4, 2)))


# -- From the values alone ---------------------------------------------------------------


@pytest.mark.parametrize("owner", [*KNOWN, "measured"])
def test_values_alone_tell_what_was_done_to_whole_levels(owner: str) -> None:
    expected, picture = named(owner), levels(64, 80)
    for hypothesis in hypotheses(expected):
        if hypothesis.affine.order == (0, 1, 2):
            values = hypothesis.affine.apply(picture).astype(np.float32)
            assert explain_alone(values, expected).mistakes == hypothesis.mistakes


def test_values_alone_tell_what_was_done_to_levels_that_are_not_whole() -> None:
    expected = Normalization(*IMAGENET)
    picture = levels(64, 80) * 0.9993 + 0.01
    for mistake in ("not scaled", "levels as they are", "not normalized", "twice"):
        name, pipeline = MISTAKES[mistake]
        assert explain_alone(pipeline(picture, IMAGENET), expected).mistakes == (name,)
    assert explain_alone(expected.apply(picture), expected).mistakes == ()


def test_values_that_nothing_known_could_make_are_out_of_range() -> None:
    values = 1e4 * (levels(16, 16) - 90.3)
    assert explain_alone(values, Normalization(*CLIP)).mistakes == ("out-of-range",)


# -- Pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(50, 70), (120, 40), (33, 200), (20, 24)])
@pytest.mark.parametrize("constants", [CLIP, MEASURED], ids=["CLIP", "other"])
def test_the_way_a_picture_was_resized_is_found(
    size: tuple[int, int], constants: Constants
) -> None:
    original = levels(*size)
    ways = list(resizes(original, 32, 32))
    assert {way.shape.split()[0] for way in ways} >= {"stretched", "padded", "short"}
    for way in ways[:: max(1, len(ways) // 9)]:
        values = Normalization(*constants).apply(way.levels)
        found = best_match(ways, values)
        assert np.array_equal(
            found.resized.levels[found.resized.inside], way.levels[found.resized.inside]
        )
        assert found.residual < 1e-6


def test_pictures_that_cannot_be_read_are_input_errors(tmp_path: Path) -> None:
    text = tmp_path / "picture.png"
    text.write_text("no picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(write_picture(tmp_path / "whole.png", 40, 40).read_bytes()[:200])
    for path in (text, cut, tmp_path / "absent.png", tmp_path):
        with pytest.raises(InputError, match=path.name):
            read_picture(path)


# -- llama.cpp ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mmprojs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mmproj")
    projectors = ("gemma3", "mlp", "qwen2vl_merger", "idefics3")
    return {p: write_mmproj(folder / f"{p}.gguf", CLIP, p) for p in projectors}


@pytest.mark.parametrize(
    ("projector", "size", "way", "filter_"),
    [
        ("gemma3", (50, 50), "stretched", "bilinear"),
        ("gemma3", (50, 70), "padded in the middle", "bilinear"),
        ("mlp", (50, 70), "padded in the middle", "bicubic"),
        ("mlp", (32, 32), "as it is", ""),
        ("qwen2vl_merger", (50, 70), "padded in the middle", "bicubic"),
        ("idefics3", (24, 24), "stretched", "bicubic"),
    ],
)
def test_llama_cpp_resizes_as_pillow_does(
    projector: str, size: tuple[int, int], way: str, filter_: str, mmprojs: dict[str, Path]
) -> None:
    picture = levels(*size)
    runs = capture_pixels(mmprojs[projector], picture)
    values = runs[-1][0]
    found = best_match(resizes(picture, *values.shape[:2]), values)
    assert (found.resized.shape, found.resized.how) == (way, filter_)
    rest = explain(*found.pair(values), Normalization(*CLIP))
    assert rest.mistakes == ()
    assert rest.residual is not None
    assert rest.residual < 1e-6


def test_llama_cpp_cuts_large_pictures_and_the_whole_one_is_found(
    mmprojs: dict[str, Path], tmp_path: Path
) -> None:
    picture = write_picture(tmp_path / "p.png", 50, 70)
    report = ggufnorm.pixels(picture, mmproj=mmprojs["idefics3"])
    (only,) = report.pipelines
    assert only.shape == (5, 32, 32, 3)
    assert only.picture == "stretched, bicubic"
    assert report.findings == ()


def test_a_tile_of_one_colour_is_not_taken_for_the_picture(
    mmprojs: dict[str, Path], tmp_path: Path
) -> None:
    values = levels(256, 256)
    values[:64, :64] = 7
    picture, source = tmp_path / "p.png", write_processor(tmp_path / "hf", CLIP)
    Image.fromarray(values).save(picture)
    report = ggufnorm.pixels(picture, processor=source, mmproj=mmprojs["idefics3"])
    assert not [f for f in report.findings if f.severity == "error"]


def test_files_that_are_no_encoders_are_engine_errors(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="image encoder"):
        capture_pixels(sample, levels(8, 8))


# -- All together ------------------------------------------------------------------------

SETS = {"SigLIP": SIGLIP, "CLIP": CLIP, "ImageNet": IMAGENET, "measured": MEASURED}


@pytest.mark.parametrize("owner", SETS)
def test_a_sound_conversion_gives_no_finding(owner: str, tmp_path: Path) -> None:
    folder = write_processor(tmp_path / "hf", SETS[owner])
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", SETS[owner])
    for size in ((32, 32), (64, 64), (45, 45)):
        picture = write_picture(tmp_path / "p.png", *size)
        report = ggufnorm.pixels(picture, processor=folder, mmproj=mmproj)
        assert [p.name for p in report.pipelines] == ["transformers", "numpy", "llama.cpp"]
        assert report.findings == ()
        assert all(c.rel_l2 is not None and c.rel_l2 < 1e-6 for c in report.comparisons)
        assert all(p.mistakes == () for p in report.pipelines)
        used = report.pipelines[2].mean_used
        assert used is not None
        assert np.allclose(used, SETS[owner][0], atol=1e-6)


@pytest.mark.parametrize("size", [(40, 70), (90, 33)])
def test_pictures_that_are_not_square_differ_but_are_normalized_alike(
    size: tuple[int, int], tmp_path: Path
) -> None:
    folder = write_processor(tmp_path / "hf", CLIP)
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", CLIP)
    picture = write_picture(tmp_path / "p.png", *size)
    report = ggufnorm.pixels(picture, processor=folder, mmproj=mmproj)
    assert [(f.severity, f.name) for f in report.findings] == [("warning", "pictures-differ")]
    assert "padded in the middle, bilinear in llama.cpp" in report.findings[0].message
    assert report.comparisons[1].residual == pytest.approx(report.comparisons[1].rel_l2, rel=1e-4)


@pytest.mark.parametrize(
    ("mistaken", "mistake"),
    [
        (IMAGENET, "constants-of-another"),
        (SIGLIP, "constants-of-another"),
        (KNOWN["MobileNet"], "not-normalized"),
        (CLIP[::-1], "mean-std-exchanged"),
        ((CLIP[0], CLIP[0]), "std-is-mean"),
        ((CLIP[1], CLIP[1]), "mean-is-std"),
        ((CLIP[0][::-1], CLIP[1][::-1]), "constants-swapped"),
        ((CLIP[0], (1.0, 1.0, 1.0)), "std-unused"),
        (((0.0, 0.0, 0.0), CLIP[1]), "mean-unused"),
        (tuple(tuple(255 * x for x in c) for c in CLIP), "scaled-twice"),
        (MEASURED, "constants-unknown"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_mistakes_of_an_encoders_file_are_seen_in_what_llama_cpp_feeds(
    mistaken: Constants, mistake: str, tmp_path: Path
) -> None:
    folder = write_processor(tmp_path / "hf", CLIP)
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", mistaken)
    picture = write_picture(tmp_path / "p.png", 40, 60)
    report = ggufnorm.pixels(picture, processor=folder, mmproj=mmproj)
    errors = [(f.name, f.pipeline) for f in report.findings if f.severity == "error"]
    assert errors == [("constants-differ", None), (mistake, "llama.cpp")]


def test_a_std_of_zero_is_told(tmp_path: Path) -> None:
    folder = write_processor(tmp_path / "hf", CLIP)
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", (CLIP[0], (0.0, 0.0, 0.0)))
    report = ggufnorm.pixels(
        write_picture(tmp_path / "p.png", 40, 40), processor=folder, mmproj=mmproj
    )
    names = {f.name for f in report.findings}
    assert {"constants-differ", "non-finite"} <= names


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32}),
        ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 2}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
        ("LlavaNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32,
                                     "image_grid_pinpoints": [[32, 64], [64, 32]]}),
        ("Qwen2VLImageProcessor", {"size": {"shortest_edge": 3136, "longest_edge": 40000},
                                   "patch_size": 8, "merge_size": 2}),
        ("Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 30}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("owner", ["CLIP", "measured"])
def test_processors_of_many_kinds_agree_with_their_formula(
    kind: str, entries: dict[str, object], owner: str, tmp_path: Path
) -> None:
    folder = write_processor(tmp_path, SETS[owner], image_processor_type=kind, **entries)
    picture = write_picture(tmp_path / "p.png", 60, 84)
    report = ggufnorm.pixels(picture, processor=folder)
    assert report.findings == ()
    assert report.pipelines[0].picture is not None
    assert report.pipelines[0].picture_residual is not None
    assert report.pipelines[0].picture_residual < 1e-6


def test_a_processor_that_neither_scales_nor_normalizes_is_expected_as_it_is(
    tmp_path: Path,
) -> None:
    folder = write_processor(tmp_path, do_rescale=False, do_normalize=False)
    assert Processor(folder).normalization == Normalization((0,) * 3, (1,) * 3, 1.0)
    report = ggufnorm.pixels(write_picture(tmp_path / "p.png", 40, 40), processor=folder)
    assert report.findings == ()


# -- A user's own array ------------------------------------------------------------------


def feed(tmp_path: Path, values: np.ndarray, layout: str = "NCHW") -> Path:
    """Write ``(height, width, 3)`` values down in some layout."""
    first = np.moveaxis(values, -1, 0)
    arrays = {"NCHW": first[None], "NHWC": values[None], "CHW": first, "HWC": values}
    np.save(tmp_path / "array.npy", arrays[layout].astype(np.float32))
    return tmp_path / "array.npy"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHW", "HWC"])
@pytest.mark.parametrize("with_picture", [True, False], ids=["picture", "alone"])
def test_an_array_that_is_right_gives_no_finding(
    layout: str, with_picture: bool, tmp_path: Path
) -> None:
    picture = write_picture(tmp_path / "p.png", 90, 120)
    cropped = next(w for w in resizes(levels(90, 120), 56, 56) if "short edge to 64" in w.shape)
    array = feed(tmp_path, Normalization(*IMAGENET).apply(cropped.levels), layout)
    image = picture if with_picture else None
    report = ggufnorm.pixels(image, array=array, constants=Normalization(*IMAGENET))
    assert report.findings == ()
    assert report.pipelines[0].shape == (1, 56, 56, 3)


@pytest.mark.parametrize("mistake", ["not scaled", "BGR", "Caffe's", "exchanged", "twice"])
def test_an_array_that_is_wrong_gives_the_mistake(mistake: str, tmp_path: Path) -> None:
    name, pipeline = MISTAKES[mistake]
    picture = write_picture(tmp_path / "p.png", 90, 120)
    way = next(resizes(levels(90, 120), 56, 56))
    array = feed(tmp_path, pipeline(way.levels.astype(np.float64), IMAGENET))
    report = ggufnorm.pixels(picture, array=array, constants=Normalization(*IMAGENET))
    assert name in [f.name for f in report.findings]
    assert report.pipelines[0].picture == "stretched, bilinear"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_array_that_is_not_finite_is_told(bad: float, tmp_path: Path) -> None:
    values = Normalization(*CLIP).apply(levels(20, 20))
    values[3, 4, 1] = bad
    report = ggufnorm.pixels(array=feed(tmp_path, values), constants=Normalization(*CLIP))
    assert [f.name for f in report.findings] == ["non-finite"]
    assert "1 of 1,200 values" in report.findings[0].message


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda p: p.write_bytes(b"\x93NUMPY nothing"), "is no .npy file"),
        (lambda p: p.write_bytes(b""), "is no .npy file"),
        (partial(np.save, arr=np.zeros((4, 4))), "none of NCHW"),
        (partial(np.save, arr=np.zeros((1, 4, 9, 9))), "none of NCHW"),
        (partial(np.save, arr=np.zeros((0, 3, 9, 9))), "none of NCHW"),
        (partial(np.save, arr=np.array(["a"])), "array of numbers"),
    ],
)
def test_arrays_that_are_none_are_input_errors(write: object, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    write(path)
    with pytest.raises(InputError, match=problem):
        ggufnorm.pixels(array=path, constants=Normalization(*CLIP))


def test_what_cannot_be_compared_is_a_usage_error(tmp_path: Path) -> None:
    picture, array = tmp_path / "p.png", tmp_path / "a.npy"
    for arguments in (
        {},
        {"image": picture},
        {"image": picture, "constants": Normalization(*CLIP)},
        {"array": array},
        {"array": array, "mmproj": "m.gguf"},
    ):
        with pytest.raises(ConfigError):
            ggufnorm.pixels(**arguments)


@pytest.mark.parametrize(
    "entries",
    [
        {"image_std": [0.5, 0.5]},
        {"image_std": [0, 0.5, 0.5]},
        {"image_mean": "half"},
        {"image_processor_type": "NoSuchProcessor"},
        {"size": "large"},
    ],
)
def test_processors_that_cannot_be_used_are_input_errors(
    entries: dict[str, object], tmp_path: Path
) -> None:
    folder = write_processor(tmp_path, **entries)
    with pytest.raises(GgufnormError) as caught:
        ggufnorm.pixels(write_picture(tmp_path / "p.png", 40, 40), processor=folder)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


# -- The command -------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, ["pixels", *map(str, words)], standalone_mode=False)


@pytest.fixture
def wrong(tmp_path: Path) -> list[object]:
    """A command line whose encoder has ImageNet's constants instead of CLIP's."""
    folder = write_processor(tmp_path / "hf", CLIP)
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", IMAGENET)
    picture = write_picture(tmp_path / "p.png", 40, 60)
    return [picture, "--processor", folder, "--mmproj", mmproj]


def test_the_command_exits_1_and_names_the_mistake(wrong: list[object]) -> None:
    done = run(*wrong)
    assert done.return_value == 1
    assert "normalized with the constants of ImageNet" in done.stdout
    assert "Not as expected: constants-differ, llama.cpp (constants-of-another)" in done.stdout


def test_json_has_all_of_it(wrong: list[object]) -> None:
    document = json.loads(run(*wrong, "--format", "json").stdout)
    assert (document["schema"], document["version"]) == ("ggufnorm/pixels", 1)
    assert [p["name"] for p in document["pipelines"]] == ["transformers", "numpy", "llama.cpp"]
    assert document["comparisons"][1]["rel_l2"] > 0.1
    assert sum(document["pipelines"][2]["histogram"][0]) == 32 * 32
    assert {f["name"] for f in document["findings"]} >= {"constants-differ"}


def test_markdown_has_a_row_for_each_channel(wrong: list[object], tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    assert run(*wrong, "-o", out).return_value == 1
    text = out.read_text(encoding="utf-8")
    assert text.count("| green |") == 3
    assert "| error | constants-differ |" in text


def test_constants_are_taken_by_name_and_in_figures(tmp_path: Path) -> None:
    array = feed(tmp_path, Normalization(*IMAGENET).apply(levels(40, 40)))
    assert run("--array", array, "--constants", "ImageNet").return_value == 0
    figures = "0.485,0.456,0.406:0.229,0.224,0.225"
    assert run("--array", array, "--constants", figures).return_value == 0
    done = run("--array", array, "--constants", "clip")
    assert done.return_value == 1
    assert "normalized with the constants of ImageNet" in done.stdout


@pytest.mark.parametrize(
    "constants", ["resnet", "1,2:3,4", "0,0,0:0,1,1", "nan,0,0:1,1,1", "a,b,c:1,1,1"]
)
def test_constants_that_are_none_are_usage_errors(constants: str, tmp_path: Path) -> None:
    array = feed(tmp_path, levels(8, 8))
    done = CliRunner().invoke(cli, ["pixels", "--array", str(array), "--constants", constants])
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("package", "extra"), [("PIL", "vision"), ("transformers", "vision"), ("onnx", "onnx")]
)
def test_an_absent_package_says_what_to_install(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = write_picture(tmp_path / "p.png", 40, 40)
    folder = write_processor(tmp_path / "hf")
    model = write_onnx(tmp_path / "model.onnx", (1, 3, 40, 40))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf'pip install "ggufnorm\[{extra}\]"'):
        ggufnorm.pixels(picture, processor=folder, onnx=model)


def test_a_turned_picture_is_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(levels(40, 60)).save(path, exif=exif)
    assert read_picture(path).levels.shape == (60, 40, 3)
    report = ggufnorm.pixels(path, mmproj=write_mmproj(tmp_path / "m.gguf", CLIP))
    assert [f.name for f in report.findings] == ["orientation"]


# -- Pictures in the report --------------------------------------------------------------


def shown(pipeline: Pipeline) -> np.ndarray:
    """The levels of a pipeline's thumbnail."""
    from PIL import Image

    assert pipeline.thumbnail is not None
    with Image.open(io.BytesIO(base64.b64decode(pipeline.thumbnail, validate=True))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def test_right_pipelines_show_the_picture_itself_and_a_wrong_one_looks_wrong(
    tmp_path: Path,
) -> None:
    folder = write_processor(tmp_path / "hf", CLIP)
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", CLIP)
    picture, original = write_picture(tmp_path / "p.png", 32, 32), levels(32, 32)
    array = feed(tmp_path, Normalization(*CLIP).apply(_swap(original)))
    report = ggufnorm.pixels(picture, processor=folder, mmproj=mmproj, array=array)
    *right, swapped = map(shown, report.pipelines)
    assert len(right) == 3
    for pixels in right:
        assert np.array_equal(pixels, original)
    assert np.array_equal(swapped, _swap(original))


def test_constants_of_another_model_show_a_pale_picture(tmp_path: Path) -> None:
    picture, original = write_picture(tmp_path / "p.png", 32, 32), levels(32, 32)
    array = feed(tmp_path, original / 255)
    report = ggufnorm.pixels(picture, array=array, constants=Normalization(*SIGLIP))
    (pixels,) = map(shown, report.pipelines)
    assert pixels.min() >= 127  # 0 to 1, taken for -1 to 1
    assert np.abs(pixels - (original / 2 + 127.5)).max() <= 0.5


@pytest.mark.parametrize("size", [(300, 600), (600, 300)])
def test_thumbnails_are_small_and_keep_their_proportions(
    size: tuple[int, int], tmp_path: Path
) -> None:
    array = feed(tmp_path, Normalization(*CLIP).apply(levels(*size)))
    report = ggufnorm.pixels(array=array, constants=Normalization(*CLIP))
    assert sorted(shown(report.pipelines[0]).shape[:2]) == [96, 192]


def test_no_thumbnail_of_values_that_are_not_finite_or_without_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = Normalization(*CLIP).apply(levels(20, 20))
    with_nan = np.where(np.arange(20)[:, None, None] == 3, np.nan, values)
    report = ggufnorm.pixels(array=feed(tmp_path, with_nan), constants=Normalization(*CLIP))
    assert report.pipelines[0].thumbnail is None
    array = feed(tmp_path, values)
    monkeypatch.setitem(sys.modules, "PIL", None)
    report = ggufnorm.pixels(array=array, constants=Normalization(*CLIP))
    assert report.pipelines[0].thumbnail is None
    assert report.findings == ()


def test_the_page_shows_each_pipelines_picture_and_text_does_not(
    wrong: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    assert run(*wrong, "-o", out).return_value == 1
    document = json.loads(run(*wrong, "--format", "json").stdout)
    page = check_html(out.read_text(encoding="utf-8"))
    images = [a for tag, a in zip(page.tags, page.attributes) if tag == "img"]
    assert [(a["src"], a["alt"]) for a in images] == [
        (
            f"data:image/png;base64,{p['thumbnail']}",
            f"As the model sees it: {p['name']}",
        )
        for p in document["pipelines"]
    ]
    for face in ("text", "markdown"):
        assert document["pipelines"][0]["thumbnail"] not in run(*wrong, "--format", face).stdout


@pytest.mark.parametrize("hostile", ['x" onerror="alert(1)', "AAAA\n", "AAA A", "=", ""])
def test_a_thumbnail_that_is_not_base64_is_not_shown(
    hostile: str, wrong: list[object], tmp_path: Path
) -> None:
    document = json.loads(run(*wrong, "--format", "json").stdout)
    document["pipelines"][1]["thumbnail"] = hostile
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    page = check_html(render(ggufnorm.load(tmp_path / "report.json"), "html"))
    shown_of = [a["alt"] for tag, a in zip(page.tags, page.attributes) if tag == "img"]
    assert shown_of == [f"As the model sees it: {name}" for name in ("transformers", "llama.cpp")]


# -- ONNX --------------------------------------------------------------------------------


def write_onnx(path: Path, shape: tuple[int | str, ...], dtype: str = "FLOAT") -> Path:
    import onnx

    kind = onnx.TensorProto.DataType.Value(dtype)
    value = onnx.helper.make_tensor_value_info("pixel_values", kind, shape)
    out = onnx.helper.make_tensor_value_info("out", kind, shape)
    node = onnx.helper.make_node("Identity", ["pixel_values"], ["out"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out])), path)
    return path


@pytest.mark.parametrize(
    ("shape", "dtype", "found"),
    [
        (("n", 3, 40, 40), "FLOAT", []),
        ((1, 40, 40, 3), "FLOAT16", []),
        (("n", 3, "h", "w"), "FLOAT", []),
        ((1, 3, 224, 224), "FLOAT", ["model-input-shape"]),
        ((1, 1, 40, 40), "FLOAT", ["model-input-shape"]),
        ((1, 3, 40, 40), "UINT8", ["model-input-type"]),
    ],
)
def test_the_input_of_an_onnx_model_is_compared(
    shape: tuple[int | str, ...], dtype: str, found: list[str], tmp_path: Path
) -> None:
    array = feed(tmp_path, Normalization(*CLIP).apply(levels(40, 40)))
    model = write_onnx(tmp_path / "model.onnx", shape, dtype)
    report = ggufnorm.pixels(array=array, constants=Normalization(*CLIP), onnx=model)
    assert [f.name for f in report.findings] == found


def test_onnx_files_that_are_none_are_input_errors(tmp_path: Path) -> None:
    array = feed(tmp_path, Normalization(*CLIP).apply(levels(40, 40)))
    (tmp_path / "text.onnx").write_text("no model at all")
    flat = write_onnx(tmp_path / "flat.onnx", (1, 3))
    for path in (tmp_path / "text.onnx", flat, tmp_path / "absent.onnx"):
        with pytest.raises(InputError, match=path.name):
            ggufnorm.pixels(array=array, constants=Normalization(*CLIP), onnx=path)
