"""Right exports stay quiet, whatever form an exporter or an optimizer gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frameworks.onnx_exports import compared, exported

FORMS = ("legacy14", "kept", "legacy17", "extended", "extended14", "half")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_right_exports_are_no_mistake(name: str, tmp_path: Path) -> None:
    first, *others = exported(name, tmp_path, FORMS)
    for path in others:
        found = compared(first, path)
        assert found.first_wrong is None, (path.stem, found.verdict)
        assert not found.unmatched_source
        assert not found.unmatched_engine
        assert found.sites or found.layers
    if name == "resnet":
        (kept,) = [p for p in others if p.stem.endswith("kept")]
        for path in (first, *others):
            folds = compared(kept, path).folds
            assert len(folds) == 6
            assert not [f for f in folds if f.status == "mistake"]
