"""Resizes of torch and OpenCV, emulated."""

from __future__ import annotations

import numpy as np
import pytest

from ggufnorm.analysis.preprocessing.image.matching import match_picture
from ggufnorm.engines.images import resizes
from ggufnorm.engines.resizing import TENSOR_RESIZES, resize_tensor
from tests.vision import levels

torch = pytest.importorskip("torch")

TORCH = {
    "bilinear without antialiasing": {"mode": "bilinear"},
    "bicubic without antialiasing": {"mode": "bicubic"},
    "bilinear with antialiasing (torch)": {"mode": "bilinear", "antialias": True},
    "bicubic with antialiasing (torch)": {"mode": "bicubic", "antialias": True},
    "nearest of the corner (torch, OpenCV)": {"mode": "nearest"},
    "area (torch)": {"mode": "area"},
    "bilinear with align_corners": {"mode": "bilinear", "align_corners": True},
}


@pytest.mark.parametrize("how", TORCH)
@pytest.mark.parametrize("to", [(48, 48), (100, 77), (224, 224)])
def test_torch_is_emulated(how: str, to: tuple[int, int]) -> None:
    picture = levels(149, 213)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(tensor, to, **TORCH[how])[0].permute(1, 2, 0).numpy()
    assert np.abs(resize_tensor(picture, *to, how) - theirs).max() < 0.01


def test_nearest_exact_is_pillows_nearest() -> None:
    picture = levels(149, 213)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(tensor, (48, 60), mode="nearest-exact")
    ours = next(r for r in resizes(picture, 48, 60, ["nearest"]) if r.shape == "stretched")
    assert np.array_equal(ours.levels, theirs[0].permute(1, 2, 0).numpy())


RAMP = (np.arange(7 * 9 * 3).reshape(7, 9, 3) * 37 % 251).astype(np.uint8)
# cv2.resize of OpenCV 5.0, the green channel.
OPENCV = {
    "bilinear (OpenCV)": [[103, 102, 100, 99], [91, 122, 89, 88], [79, 110, 77, 76]],
    "area (OpenCV)": [[84, 115, 155, 122], [96, 175, 143, 111], [85, 164, 132, 99]],
    "bicubic (OpenCV)": [[124, 92, 90, 83], [81, 112, 78, 71], [69, 100, 66, 58]],
}


@pytest.mark.parametrize("how", OPENCV)
def test_opencv_is_emulated(how: str) -> None:
    assert resize_tensor(RAMP, 3, 4, how)[..., 1].tolist() == OPENCV[how]


def test_opencv_takes_means_at_half_the_size() -> None:
    expected = [[116, 150, 121, 92], [169, 140, 111, 82], [159, 130, 101, 134]]
    made = resize_tensor(RAMP[:6, :8], 3, 4, "bilinear (OpenCV)")
    assert made[..., 0].tolist() == expected


@pytest.mark.parametrize("how", [*TENSOR_RESIZES, "nearest", "box", "bicubic", "Lanczos"])
@pytest.mark.parametrize("shape", ["stretched", "padded in the middle", "short edge"])
def test_resizes_are_told_from_one_another(how: str, shape: str) -> None:
    picture = levels(120, 160)
    way = next(r for r in resizes(picture, 56, 56, [how]) if r.shape.startswith(shape))
    found = match_picture(picture, 0.01 * np.asarray(way.levels, np.float64) - 1)
    assert (found.resized.shape, found.resized.how) == (way.shape, how)
    assert found.residual < 1e-5
