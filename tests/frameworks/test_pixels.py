"""What pipelines feed image models, and what made it of a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ggufnorm
from ggufnorm.analysis.preprocessing.image.matching import best_match
from ggufnorm.core.pixels import (
    KNOWN,
    Constants,
    Normalization,
    explain,
)
from ggufnorm.engines.images import read_picture, resizes
from ggufnorm.engines.llama.vision import capture_pixels
from ggufnorm.engines.processors import Processor
from ggufnorm.errors import EngineError, GgufnormError, InputError, MissingPackageError
from ggufnorm.report.formats import render
from tests.pages import check_html
from tests.unit.analysis.test_pixels import MEASURED, feed, run, shown, swap_channels
from tests.vision import (
    CLIP,
    IMAGENET,
    SIGLIP,
    levels,
    write_mmproj,
    write_picture,
    write_processor,
)

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


def test_right_pipelines_show_the_picture_itself_and_a_wrong_one_looks_wrong(
    tmp_path: Path,
) -> None:
    folder = write_processor(tmp_path / "hf", CLIP)
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", CLIP)
    picture, original = write_picture(tmp_path / "p.png", 32, 32), levels(32, 32)
    array = feed(tmp_path, Normalization(*CLIP).apply(swap_channels(original)))
    report = ggufnorm.pixels(picture, processor=folder, mmproj=mmproj, array=array)
    *right, swapped = map(shown, report.pipelines)
    assert len(right) == 3
    for pixels in right:
        assert np.array_equal(pixels, original)
    assert np.array_equal(swapped, swap_channels(original))


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
