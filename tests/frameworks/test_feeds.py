"""Mistakes planted in feeds are named as often as docs/detection.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.feeds import PROCESSORS, case_of, planted, row

DETECTION = Path(__file__).parents[2] / "docs" / "detection.md"


def test_the_table_has_every_processor() -> None:
    rows = [
        line
        for line in DETECTION.read_text(encoding="utf-8").splitlines()
        if "Extractor" in line or "ImageProcessor" in line
    ]
    assert tuple(line.split("|")[1].strip() for line in rows) == PROCESSORS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViTImageProcessor", "Speech2TextFeatureExtractor"])
def test_the_table_is_what_comes_out(name: str, tmp_path: Path) -> None:
    results = list(planted(case_of(name, tmp_path)))
    assert row(results) in DETECTION.read_text(encoding="utf-8").splitlines()
