"""Pictures that pipelines read out of a file otherwise: not turned, mirrored, without colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import ggufnorm
from ggufnorm.core.pixel_report import PixelReport
from ggufnorm.core.pixels import Normalization
from tests.vision import IMAGENET, levels

EXPECTED = Normalization(*IMAGENET)


def feed(image: Path, shown: np.ndarray, tmp_path: Path) -> PixelReport:
    """What a pipeline feeds that resizes ``shown`` to 56 by 56."""
    small = Image.fromarray(shown).resize((56, 56), Image.Resampling.BICUBIC)
    np.save(tmp_path / "a.npy", EXPECTED.apply(np.asarray(small)).astype(np.float32))
    return ggufnorm.pixels(image, array=tmp_path / "a.npy", constants=EXPECTED)


def linear(x: np.ndarray) -> np.ndarray:
    s = x / 255
    return np.rint(255 * np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)).astype(
        np.uint8
    )


def grey(x: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(x).convert("L").convert("RGB"))


CHANGES = {
    "mirrored": lambda x: x[:, ::-1],
    "upside-down": lambda x: x[::-1],
    "transposed": lambda x: np.swapaxes(x, 0, 1),
    "turned": np.rot90,
    "grayscale": grey,
    "gamma": linear,
}


@pytest.mark.parametrize("mistake", CHANGES)
def test_other_pictures_are_named(mistake: str, tmp_path: Path) -> None:
    picture = levels(120, 160)
    Image.fromarray(picture).save(tmp_path / "p.png")
    shown = np.ascontiguousarray(CHANGES[mistake](picture))
    report = feed(tmp_path / "p.png", shown, tmp_path)
    assert [(f.severity, f.name) for f in report.findings] == [("error", mistake)]
    assert report.pipelines[0].picture_mistakes == (mistake,)
    assert report.pipelines[0].mistakes == ()


def test_a_picture_not_turned_by_its_exif_data(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = levels(120, 160)
    Image.fromarray(picture).save(tmp_path / "p.png", exif=exif)
    report = feed(tmp_path / "p.png", picture, tmp_path)
    assert [f.name for f in report.findings] == ["not-turned"]
    with Image.open(tmp_path / "p.png") as image:
        right = np.asarray(ImageOps.exif_transpose(image))
    assert feed(tmp_path / "p.png", right, tmp_path).findings == ()


@pytest.mark.parametrize("ground", [255, 0])
def test_transparent_parts_on_another_ground_are_a_warning(ground: int, tmp_path: Path) -> None:
    alpha = np.zeros((120, 160, 1), np.uint8)
    alpha[20:80, 30:120] = 255
    layered = np.concatenate([levels(120, 160), alpha], axis=2)
    Image.fromarray(layered).save(tmp_path / "p.png")
    shown = np.where(alpha == 255, layered[..., :3], ground).astype(np.uint8)
    report = feed(tmp_path / "p.png", shown, tmp_path)
    assert [(f.severity, f.name) for f in report.findings] == [("warning", "alpha")]
    assert feed(tmp_path / "p.png", layered[..., :3].copy(), tmp_path).findings == ()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_files_of_other_modes_give_no_finding(mode: str, tmp_path: Path) -> None:
    Image.fromarray(levels(120, 160)).convert(mode).save(tmp_path / "p.tiff")
    with Image.open(tmp_path / "p.tiff") as image:
        right = np.asarray(image.convert("RGB"))
    assert feed(tmp_path / "p.tiff", right, tmp_path).findings == ()


@pytest.mark.parametrize("share", [0.03, -0.06])
def test_wrong_constants_do_not_hide_behind_an_unknown_resize(share: float, tmp_path: Path) -> None:
    picture = levels(90, 120)
    Image.fromarray(picture).save(tmp_path / "p.png")
    small = Image.fromarray(picture).resize((48, 48), Image.Resampling.HAMMING)
    for changed in (0.0, share):
        mean, std = EXPECTED.mean, tuple(s * (1 + changed) for s in EXPECTED.std)
        values = Normalization(mean, std).apply(np.asarray(small)).astype(np.float32)
        np.save(tmp_path / "a.npy", values)
        report = ggufnorm.pixels(tmp_path / "p.png", array=tmp_path / "a.npy", constants=EXPECTED)
        assert bool(report.pipelines[0].mistakes) == bool(changed)
