"""What image processors do to a picture, told by the values alone."""

from __future__ import annotations

import base64
import io
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

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
from ggufnorm.engines.resizing import TENSOR_RESIZES
from ggufnorm.errors import ConfigError, InputError
from tests.vision import (
    CLIP,
    IMAGENET,
    SIGLIP,
    levels,
    write_picture,
)

MEASURED: Constants = ((0.47, 0.44, 0.41), (0.24, 0.26, 0.28))
"""Constants of no model known."""


def named(text: str) -> Normalization:
    return Normalization(*{**KNOWN, "measured": MEASURED}[text])


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, ["pixels", *map(str, words)], standalone_mode=False)


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


def swap_channels(values: np.ndarray) -> np.ndarray:
    return values[..., ::-1]


def _normalize(x: np.ndarray, constants: Constants) -> np.ndarray:
    mean, std = constants
    return (x - np.array(mean)) / np.array(std)


MISTAKES = {
    "not scaled": ("not-scaled", _normalize),
    "levels as they are": ("raw", lambda p, c: p),
    "not normalized": ("not-normalized", lambda p, c: p / 255),
    "scaled twice": ("scaled-twice", lambda p, c: _normalize(p / 255 / 255, c)),
    "BGR": ("channels-swapped", lambda p, c: _normalize(swap_channels(p) / 255, c)),
    "BGR afterwards": (
        "channels-swapped-after",
        lambda p, c: swap_channels(_normalize(p / 255, c)),
    ),
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
    "x - mean / std": ("precedence", lambda p, c: p / 255 - np.array(c[0]) / np.array(c[1])),
    "x / std - mean": ("precedence", lambda p, c: p / 255 / np.array(c[1]) - np.array(c[0])),
    "mean scaled too": ("precedence", lambda p, c: (p - np.array(c[0])) / 255 / np.array(c[1])),
    "inverse": ("inverted", lambda p, c: p / 255 * np.array(c[1]) + np.array(c[0])),
    "plus mean": ("mean-added", lambda p, c: (p / 255 + np.array(c[0])) / np.array(c[1])),
    "Caffe's": (
        "constants-of-another",
        lambda p, c: swap_channels(p) - np.array([103.939, 116.779, 123.68]),
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


@pytest.mark.parametrize("how", ["nearest", "box", *TENSOR_RESIZES])
@pytest.mark.parametrize("known", [True, False])
def test_another_resize_is_no_mistake_in_the_constants(how: str, known: bool) -> None:
    original, expected = levels(180, 240), Normalization(*IMAGENET)
    ways = [r for r in resizes(original, 48, 48) if r.shape == "stretched"]
    values = expected.apply(next(r for r in ways if r.how == how).levels)
    match = best_match(ways if known else [r for r in ways if r.how != how], values)
    assert not known or match.resized.how == how
    assert explain(*match.pair(values), expected).mistakes == ()


def test_levels_cut_to_whole_numbers_are_no_mistake_in_the_constants() -> None:
    picture, expected = levels(32, 40) + 0.5, Normalization(*IMAGENET)
    assert explain(picture, expected.apply(np.floor(picture)), expected).mistakes == ()


def test_a_range_alone_is_not_taken_for_the_right_constants() -> None:
    expected, picture = Normalization(*IMAGENET), levels(64, 80)
    of_others = Normalization((0.48, 0.45, 0.42), (0.26, 0.25, 0.24))
    whole = explain_alone(of_others.apply(picture), expected)
    assert whole.mistakes == ("constants-unknown",)
    assert "std 0.26, 0.25, 0.24" in whole.text
    uneven = picture + np.random.default_rng(0).uniform(-0.3, 0.3, picture.shape)
    between = explain_alone(of_others.apply(uneven), expected)
    assert not between.identified
    assert not between.mistakes


def test_two_mistakes_at_once_are_both_named() -> None:
    picture = levels(32, 40)
    values = _normalize(swap_channels(picture.astype(np.float64)), IMAGENET)
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


@pytest.mark.slow
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


def shown(pipeline: Pipeline) -> np.ndarray:
    """The levels of a pipeline's thumbnail."""
    from PIL import Image

    assert pipeline.thumbnail is not None
    with Image.open(io.BytesIO(base64.b64decode(pipeline.thumbnail, validate=True))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


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
