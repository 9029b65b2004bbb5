"""``fix`` of whole files: what is mended is byte for byte the sound file.

``python -m tests.engine.test_fix_whole`` prints the table of ``docs/detection-audit.md``, of
all architectures; the tests here mend some of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import ggufnorm
from ggufnorm.analysis.audit.source.encode import why_not
from ggufnorm.core.fix import FixReport
from ggufnorm.formats.location import open_model
from tests.encoders import ENCODERS
from tests.engine.test_audit_whole import FAULTS, Planted, told, transposed, zeroed
from tests.pairs import Whole, whole, whole_of
from tests.same_model import differences

HEADING = "## Mended copies (`fix --source`)"
MENDABLE = {"K101", "K102", "K201", "K202", "K203", "K401", "K402", "H101"}
CASES = [
    (planted, name)
    for planted in FAULTS
    if MENDABLE.issuperset(planted.rules)
    for name in planted.names
    if planted.spoil(whole(name, planted.dtype, planted.file_types[0])) is not None
]
OF_THE_SOURCE = ("adapter merged by half", "a value past half precision")
"""Faults with another source than the sound file's, and what no F16 can hold."""

EVERY = 8
"""One of so many architectures in turn: all of them take minutes."""


def of_tensors(every: int = 1) -> list[tuple[Planted, str, str]]:
    """Faults of tensors, with the architecture and the type of the file."""
    found = [
        (planted, name, planted.file_types[i % len(planted.file_types)])
        for n, planted in enumerate(FAULTS)
        if planted.rules[0].startswith("T2") or planted.rules == ("T102",)
        if planted.words not in OF_THE_SOURCE
        for i, name in enumerate(planted.names, n)
        if (planted.rules, name) != (("T102",), "newest")  # whose names nobody knows
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
    return report, differences(mended, sound) if mended.exists() else ["nothing was written"]


def table() -> str:
    """Of each fault of tensors: planted, mended byte for byte, mended otherwise, left."""
    lines = [
        "| fault | mended in | byte for byte | otherwise right | left |",
        "|---|---|---|---|---|",
    ]
    total = [0, 0, 0, 0]
    cases = of_tensors()
    for planted in dict.fromkeys(p for p, _, _ in cases):
        counts = [0, 0, 0, 0]
        for one, name, file_type in cases:
            if one is planted:
                with TemporaryDirectory() as folder:
                    report, unlike = mend(Path(folder), planted, name, file_type)
                clean = not report.left and not [f for f in told(report.audit) if f.rule[0] == "T"]
                kind = 3 if not clean else 2 if unlike else 1
                counts[0] += 1
                counts[kind] += 1
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(
            f"| {planted.words} | {counts[0]} architectures | {counts[1]} | {counts[2]} |"
            f" {counts[3]} |"
        )
    lines += [
        "",
        f"{total[0]} faults of tensors: {total[1]} mended byte for byte, {total[2]} otherwise,"
        f" {total[3]} left.",
    ]
    return "\n".join(lines)


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


CLIP = [0.48145466, 0.4578275, 0.40821073]
PIXELS = ("vision.image_mean", "vision.image_std")


def with_constants(made: Whole) -> Whole:
    """An encoder whose mean is not its deviation, and the processor that says so."""
    mean, std = CLIP, [0.26862954, 0.26130258, 0.27577711]
    made.keys |= dict(zip(PIXELS, (mean, std), strict=True))
    config = {"image_mean": mean, "image_std": std, "do_normalize": True}
    made.extra["preprocessor_config.json"] = json.dumps(config)
    return made


def times_255(made: Whole) -> None:
    for key in PIXELS:
        made.keys[key] = [255 * x for x in made.keys[key]]


ENCODER_FAULTS: dict[str, Callable[[Whole], object]] = {
    "no mean": lambda m: m.keys.pop(PIXELS[0]),
    "one number": lambda m: m.keys.update({PIXELS[1]: [0.5]}),
    "a deviation of 0": lambda m: m.keys.update({PIXELS[1]: [0.5, 0.0, 0.5]}),
    "the mean twice": lambda m: m.keys.update({PIXELS[1]: CLIP}),
    "for 0 to 255": times_255,
    "0.5, not the source's": lambda m: m.keys.update({PIXELS[0]: [0.5, 0.5, 0.5]}),
    "another epsilon": lambda m: m.keys.update({"vision.attention.layer_norm_epsilon": 1e-5}),
    "a norm lost": lambda m: m.tensors.pop("v.blk.1.ln2.weight"),
    "a bias lost": lambda m: m.tensors.pop("v.blk.2.ffn_up.bias"),
    "another projector": lambda m: m.keys.update({"projector_type": "mlp"}),
    "another patch size": lambda m: m.keys.update({"vision.patch_size": 4}),
    "a matrix zero": lambda m: m.tensors.update(
        {"v.blk.0.ffn_up.weight": np.zeros((96, 64), "f4")}
    ),
}


@pytest.mark.parametrize("fault", ENCODER_FAULTS)
@pytest.mark.parametrize("name", ["gemma3", "idefics3"])
def test_a_mended_encoder_is_the_sound_one(tmp_path: Path, name: str, fault: str) -> None:
    made = with_constants(whole_of(ENCODERS[name], "BF16", "F16"))
    sound = made.write_model(tmp_path / "sound.gguf")
    ENCODER_FAULTS[fault](made)
    model, checkpoint = made.write(tmp_path)

    report = ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint)

    assert report.left == ()
    assert told(report.audit) == []
    assert differences(tmp_path / "mended.gguf", sound) == []


def test_constants_for_0_to_255_are_mended_without_the_source(tmp_path: Path) -> None:
    made = with_constants(whole_of(ENCODERS["idefics3"]))
    times_255(made)

    ggufnorm.fix(made.write_model(tmp_path / "model.gguf"), tmp_path / "mended.gguf")

    with open_model(tmp_path / "mended.gguf") as file:
        assert np.allclose(file.metadata["clip.vision.image_mean"], CLIP)


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
    assert [f for f in told(report.audit) if f.rule[0] in "HSTK"] == []
    if (str(made.config), made.extra) == (config, extra):  # the file alone was spoilt
        assert differences(tmp_path / "mended.gguf", sound) == []


if __name__ == "__main__":
    print(table())
