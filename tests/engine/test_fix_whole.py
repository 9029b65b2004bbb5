"""``fix`` of whole files: after a mended fault of a key nothing is found any more."""

from __future__ import annotations

from pathlib import Path

import pytest

import ggufnorm
from tests.engine.test_audit_whole import FAULTS, Planted, told
from tests.pairs import whole
from tests.same_model import differences

MENDABLE = {"K101", "K102", "K201", "K202", "K203", "K401", "K402", "H101"}
CASES = [
    (planted, name)
    for planted in FAULTS
    if MENDABLE.issuperset(planted.rules)
    for name in planted.names
    if planted.spoil(whole(name, planted.dtype, planted.file_types[0])) is not None
]
NOT_TOLD = {"another pre-tokenizer"}
"""Several would split as the source does."""


OF_TENSORS = [
    (planted, name, planted.file_types[i % len(planted.file_types)])
    for planted in FAULTS
    if planted.rules[0].startswith("T2")
    for i, name in enumerate(planted.names)
    if planted.spoil(whole(name, planted.dtype, planted.file_types[0])) is not None
]


@pytest.mark.parametrize(
    ("planted", "name", "file_type"),
    OF_TENSORS,
    ids=[f"{p.words}-{n}-{t}".replace(" ", "_") for p, n, t in OF_TENSORS],
)
def test_a_mended_tensor_is_byte_for_byte_the_sound_one(
    tmp_path: Path, planted: Planted, name: str, file_type: str
) -> None:
    made = whole(name, planted.dtype, file_type)
    planted.spoil(made)
    model, checkpoint = made.write(tmp_path)
    sound = whole(name, planted.dtype, file_type).write_model(tmp_path / "sound.gguf")

    report = ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint, select=["T"])

    assert report.left == ()
    assert [f for f in told(report.audit) if f.rule[0] in "HSTK"] == []
    assert differences(tmp_path / "mended.gguf", sound) == []


@pytest.mark.parametrize(
    ("planted", "name"), CASES, ids=[f"{p.words}-{n}".replace(" ", "_") for p, n in CASES]
)
def test_a_mended_key_is_right(tmp_path: Path, planted: Planted, name: str) -> None:
    made = whole(name, planted.dtype, planted.file_types[0])
    config, extra = str(made.config), dict(made.extra)
    planted.spoil(made)
    model, checkpoint = made.write(tmp_path)
    sound = whole(name, planted.dtype, planted.file_types[0]).write_model(tmp_path / "sound.gguf")
    before = model.read_bytes()

    report = ggufnorm.fix(
        model, tmp_path / "mended.gguf", source=checkpoint, select=["H", "S", "T", "K"]
    )

    assert model.read_bytes() == before
    if planted.words in NOT_TOLD:
        assert report.left
        return
    assert [f for f in told(report.audit) if f.rule[0] in "HSTK"] == []
    if (str(made.config), made.extra) == (config, extra):  # the file alone was spoilt
        assert differences(tmp_path / "mended.gguf", sound) == []
