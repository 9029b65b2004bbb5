"""``fix`` of whole files: after a mended fault of a key nothing is found any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ggufnorm
from ggufnorm.analysis.audit.source.encode import why_not
from ggufnorm.core.fix import FixReport
from tests.engine.test_audit_whole import FAULTS, Planted, told, transposed, zeroed
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


EVERY = 5
"""One of so many architectures in turn: all of them take minutes."""


def of_tensors(every: int = 1) -> list[tuple[Planted, str, str]]:
    """Faults of tensors, with the architecture and the type of the file."""
    found = [
        (planted, name, planted.file_types[i % len(planted.file_types)])
        for n, planted in enumerate(FAULTS)
        if planted.rules[0].startswith("T2") or planted.rules == ("T102",)
        for i, name in enumerate(planted.names, n)
        if planted.spoil(whole(name, planted.dtype, planted.file_types[0])) is not None
    ]
    return [f for i, f in enumerate(found) if i % every == 0]


OF_TENSORS = of_tensors(EVERY)


def mend(folder: Path, planted: Planted, name: str, file_type: str) -> tuple[FixReport, list[str]]:
    """What fix did to a fault, and in what the copy differs from the sound file."""
    made = whole(name, planted.dtype, file_type)
    planted.spoil(made)
    model, checkpoint = made.write(folder)
    sound = whole(name, planted.dtype, file_type).write_model(folder / "sound.gguf")
    mended = folder / "mended.gguf"
    report = ggufnorm.fix(model, mended, source=checkpoint, select=["T"])
    return report, differences(mended, sound)


@pytest.mark.parametrize(
    ("planted", "name", "file_type"),
    OF_TENSORS,
    ids=[f"{p.words}-{n}-{t}".replace(" ", "_") for p, n, t in OF_TENSORS],
)
def test_a_mended_tensor_is_byte_for_byte_the_sound_one(
    tmp_path: Path, planted: Planted, name: str, file_type: str
) -> None:
    report, unlike = mend(tmp_path, planted, name, file_type)

    assert report.left == ()
    assert [f for f in told(report.audit) if f.rule[0] in "HSTK"] == []
    assert unlike == []


@pytest.mark.parametrize("name", ["llama", "deepseek2", "gpt2"])
@pytest.mark.parametrize(
    ("file_type", "form"),
    [("F16", {"big": True}), ("F32", {"big": True}), ("Q8_0", {"per_shard": 9})],
)
def test_big_endian_files_and_split_sets_are_mended_too(
    tmp_path: Path, name: str, file_type: str, form: dict[str, Any]
) -> None:
    made = whole(name, "BF16", file_type)
    sound = made.write_model(tmp_path / "sound.gguf", **form)
    for spoil in (transposed, zeroed):
        assert spoil(made)
    _, checkpoint = made.write(tmp_path)
    model = made.write_model(tmp_path / "spoilt.gguf", **form)

    report = ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint, select=["T"])

    assert report.output is not None
    assert report.left == ()
    assert differences(Path(report.output), sound) == []


def test_what_cannot_be_written_says_why() -> None:
    assert why_not("Q4_K", "<") is None
    assert why_not("F16", ">") is None
    assert "big endian" in (why_not("Q4_K", ">") or "")
    assert "importance matrix" in (why_not("IQ2_XXS", "<") or "")


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
