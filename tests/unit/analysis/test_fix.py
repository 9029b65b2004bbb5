"""``fix``: of each mendable planted fault the mended file is the sound one, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.cli.main import cli
from ggufnorm.core.audit import AuditReport
from ggufnorm.core.mend import of_one_target, override_kv, set_key
from ggufnorm.errors import InputError, OutputError
from ggufnorm.formats.split import shard_name
from tests.checkpoints import BY_NAME, Pair, pair
from tests.conversions import build, write
from tests.same_model import content, differences
from tests.unit.analysis import test_audit_file as of_file
from tests.unit.analysis import test_audit_source as of_source

NOT_MENDED = {
    "another fine-tune", "a wider sibling", "norm of one layer not in the source",
    "epsilon of a source that has one per layer",
}  # fmt: skip
"""Faults of the source, or whose right value a file cannot hold."""

MENDABLE = [(f, n) for f, n in of_source.CASES if f.name not in NOT_MENDED]


def written(folder: Path, made: Pair) -> tuple[Path, Path, Path]:
    """The spoilt file, its source, and the sound file."""
    model, checkpoint = made.write(folder)
    sound = pair(made.network, made.dtype)
    return model, checkpoint, sound.write_model(folder / "sound.gguf")


@pytest.mark.parametrize("case", MENDABLE, ids=of_source.id_of)
def test_a_mended_file_is_the_sound_one(tmp_path: Path, case: tuple[of_source.Fault, str]) -> None:
    model, checkpoint, sound = written(tmp_path, of_source.spoilt(*case)[0])
    before = model.read_bytes()

    # Of keys these pairs have the epsilon alone.
    report = ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint, select=["S"])

    assert differences(tmp_path / "mended.gguf", sound) == []
    assert report.left == ()
    found = {f.rule for f in report.audit.findings if f.severity != "info"}
    assert found == {f.rule for f in ggufnorm.audit(sound).findings if f.severity != "info"} | (
        {"K102"} if case[1] == "bert" else set()
    )
    assert model.read_bytes() == before
    if not case[0].name.endswith("lost"):
        assert (tmp_path / "mended.gguf").read_bytes() == sound.read_bytes()


@pytest.mark.parametrize("name", sorted(NOT_MENDED))
def test_what_cannot_be_mended_is_left_and_no_file_is_written(tmp_path: Path, name: str) -> None:
    case = next(c for c in of_source.CASES if c[0].name == name)
    model, checkpoint, _ = written(tmp_path, of_source.spoilt(*case)[0])

    report = ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint)

    assert report.output is None
    assert not (tmp_path / "mended.gguf").exists()
    assert {left.finding.rule for left in report.left} == {case[0].rule}


def test_keys_of_another_checkpoint_mend_nothing(tmp_path: Path) -> None:
    made = pair(BY_NAME["llama"])
    made.metadata[made.network.epsilon_key] = 1e-3
    of_source.other_checkpoint(made, "")
    model, checkpoint = made.write(tmp_path)

    for select in ((), ("S401",)):
        report = ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint, select=select)
        assert report.output is None
        assert "S401" in {left.finding.rule for left in report.left}


def test_a_source_that_has_the_offsets_already_mends_nothing(tmp_path: Path) -> None:
    made = pair(BY_NAME["gemma2"], "F32")
    for tensor, name in made.origin.items():
        made.source[name] = made.tensors[tensor]  # as in MLX's format
    model, checkpoint = made.write(tmp_path)

    report = ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint, select=["S"])

    assert report.output is None
    assert {left.finding.rule for left in report.left} == {"S201"}


# Faults that the file itself tells how to mend.

OWN = [c for c in of_file.CASES if c.rule in ("E106", "N501", "N201")]


@pytest.mark.parametrize("case", OWN, ids=str)
def test_what_a_file_itself_tells_is_mended_without_a_source(
    tmp_path: Path, case: of_file.Case
) -> None:
    right = build(case.arch, case.precision)
    if case.rule == "E106":  # the value that the fault puts under the other key
        right.metadata |= {k: 1e-5 for k in right.metadata if k.endswith("epsilon")}
    sound = write(tmp_path / "sound.gguf", right)
    model = build(case.arch, case.precision)
    case.plant(model)
    spoilt = write(tmp_path / "model.gguf", model)

    report = ggufnorm.fix(spoilt, tmp_path / "mended.gguf", select=[case.rule])

    told = [f for f in ggufnorm.audit(spoilt).findings if f.rule == case.rule and f.mend]
    if not told:  # a warning that does not tell the value
        assert report.output is None
        return
    assert case.rule not in {f.rule for f in report.audit.findings}
    changed = differences(tmp_path / "mended.gguf", sound)
    if case.rule == "N201":  # what the other type lost is lost
        kinds = content(tmp_path / "mended.gguf")[1]
        assert all(kinds[name][0] == "F32" for name in model.types)
        assert set(changed) <= set(model.types)
    else:
        assert changed == []


def big_endian(path: Path, made: Pair) -> Path:
    writer = gguf.GGUFWriter(path, made.network.architecture, endianess=gguf.GGUFEndian.BIG)
    for key, value in made.metadata.items():
        if isinstance(value, float):
            writer.add_float32(key, value)
        else:
            assert isinstance(value, int)
            writer.add_uint32(key, value)
    for name, values in made.tensors.items():
        writer.add_tensor(name, np.array(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["offset missing on one norm", "norm lost"])
def test_a_big_endian_file_stays_one(tmp_path: Path, name: str) -> None:
    fault = next(f for f in of_source.FAULTS if f.name == name)
    made, _ = of_source.spoilt(fault, "gemma2")
    made.metadata[made.network.epsilon_key] = 1e-3
    _, checkpoint = made.write(tmp_path)
    model = big_endian(tmp_path / "big.gguf", made)
    sound = big_endian(tmp_path / "sound.gguf", pair(BY_NAME["gemma2"]))

    ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint)

    assert differences(tmp_path / "mended.gguf", sound) == []


def split(path: Path, made: Pair, n: int = 3) -> Path:
    """As llama-gguf-split writes them; the first shard's name."""
    names = list(made.tensors)
    for i in range(n):
        writer = gguf.GGUFWriter(shard_name(str(path), i + 1, n), made.network.architecture)
        if i == 0:
            for key, value in made.metadata.items():
                if isinstance(value, float):
                    writer.add_float32(key, value)
                else:
                    assert isinstance(value, int)
                    writer.add_uint32(key, value)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", n)
        writer.add_int32("split.tensors.count", len(names))
        for name in names[i * len(names) // n : (i + 1) * len(names) // n]:
            writer.add_tensor(name, np.array(made.tensors[name]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(shard_name(str(path), 1, n))


@pytest.mark.parametrize("name", ["offset missing on one norm", "norm lost"])
def test_a_split_model_becomes_a_split_model(tmp_path: Path, name: str) -> None:
    fault = next(f for f in of_source.FAULTS if f.name == name)
    made, _ = of_source.spoilt(fault, "gemma2")
    made.metadata[made.network.epsilon_key] = 1e-3
    _, checkpoint = made.write(tmp_path)
    model = split(tmp_path / "model", made)
    sound = split(tmp_path / "sound", pair(BY_NAME["gemma2"]))

    report = ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint)

    assert report.output == str(tmp_path / "mended-00001-of-00003.gguf")
    assert differences(Path(report.output), sound) == []


# What is written, and what is not.


def spoilt_pair(folder: Path) -> tuple[Path, Path]:
    fault = next(f for f in of_source.FAULTS if f.name == "bytes reversed")
    return of_source.spoilt(fault, "llama")[0].write(folder)


def test_a_model_is_never_changed_in_place(tmp_path: Path) -> None:
    model, checkpoint = spoilt_pair(tmp_path)
    before = model.read_bytes()
    (tmp_path / "link.gguf").symlink_to(model)

    for target in (model, tmp_path / "link.gguf"):
        with pytest.raises(OutputError, match="is an input"):
            ggufnorm.fix(model, target, source=checkpoint)
    assert model.read_bytes() == before


def test_what_follows_the_last_tensor_is_kept(tmp_path: Path) -> None:
    model, checkpoint = spoilt_pair(tmp_path)
    size = model.stat().st_size
    with model.open("ab") as file:
        file.write(b"signed")

    ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint, select=["S207"])

    assert (tmp_path / "mended.gguf").read_bytes()[size:] == b"signed"


def test_only_findings_of_the_rules_selected_are_mended(tmp_path: Path) -> None:
    made = pair(BY_NAME["llama"])
    tensor = "blk.1.ffn_norm.weight"
    made.tensors[tensor] = made.tensors[tensor] * 2
    made.metadata[made.network.epsilon_key] = 1e-3
    model, checkpoint = made.write(tmp_path)

    report = ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint, select=["S4"])

    assert [f.rule for f in report.mended] == ["S401"]
    assert [f.rule for f in report.audit.findings if f.severity == "error"] == ["S202"]
    changed = differences(model, tmp_path / "mended.gguf")
    assert changed == [made.network.epsilon_key]


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path) -> None:
    model, checkpoint = spoilt_pair(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint, on_progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_sound_file_is_not_copied(tmp_path: Path) -> None:
    model, checkpoint = pair(BY_NAME["qwen3"]).write(tmp_path)

    report = ggufnorm.fix(model, tmp_path / "mended.gguf", source=checkpoint)

    assert (report.output, report.mended, report.left) == (None, (), ())
    assert isinstance(report.audit, AuditReport)
    assert not (tmp_path / "mended.gguf").exists()


def test_a_remote_model_is_to_be_downloaded_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="download it first"):
        ggufnorm.fix("https://host/model.gguf", tmp_path / "mended.gguf")


@pytest.mark.slow
def test_the_command_shows_first_what_it_changes(tmp_path: Path) -> None:
    model, checkpoint = spoilt_pair(tmp_path)
    command = [sys.executable, "-m", "ggufnorm", "fix", str(model), "--source", str(checkpoint)]
    command += ["-o", str(tmp_path / "mended.gguf")]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "fix: turn round the bytes of blk.1." in done.stderr
    assert "mended.gguf was written" in done.stdout
    assert "0 errors, 0 warnings" in done.stdout
    shutil.rmtree(checkpoint)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 3


# Mends as data.


@pytest.mark.parametrize(
    ("key", "kind", "value", "actual", "option"),
    [
        ("llama.rope.freq_base", "f32", 500000.0, 1e4, "llama.rope.freq_base=float:500000"),
        ("a.attention.layer_norm_rms_epsilon", "f32", 1e-5, None,
         "a.attention.layer_norm_rms_epsilon=float:1e-05"),
        ("llama.expert_gating_func", "u32", 2, 1, "llama.expert_gating_func=int:2"),
        ("tokenizer.ggml.add_bos_token", "bool", False, True,
         "tokenizer.ggml.add_bos_token=bool:false"),
        ("llama.rope.scaling.type", "str", "yarn", None, "llama.rope.scaling.type=str:yarn"),
        ("llama.attention.head_count_kv", "u32", 2, 4, "llama.attention.head_count_kv=int:2"),
        ("llama.attention.head_count_kv", "u32", 2, None, None),
        ("llama.attention.head_count_kv", "u32", 2, [2, 4], None),
        ("a.attention.sliding_window_pattern", "arr[bool]", [True, False], None, None),
        ("tokenizer.chat_template", "str", "{{ x }}", None, None),
        ("llama.rope.scaling.type", "str", "a b", None, None),
    ],
)  # fmt: skip
def test_an_option_of_llama_cpp_is_given_where_it_suffices(
    key: str, kind: str, value: object, actual: object, option: str | None
) -> None:
    assert override_kv(key, kind, value, actual) == (
        None if option is None else f"--override-kv {option}"
    )


def test_the_source_goes_before_the_file_and_contradictions_mend_nothing() -> None:
    a = set_key("k", "u32", 1, 0, from_source=False)
    b, c = (set_key("k", "u32", n, 0, from_source=True) for n in (2, 3))

    assert of_one_target([a, b]) == b
    assert of_one_target([b, c]) is None


@pytest.mark.parametrize("fmt", ["text", "json", "markdown", "html", "csv", "sarif", "github"])
def test_every_format_shows_the_mend(tmp_path: Path, fmt: str) -> None:
    made = pair(BY_NAME["llama"])
    made.metadata[made.network.epsilon_key] = 1e-3
    model, checkpoint = made.write(tmp_path)
    command = ["audit", str(model), "--source", str(checkpoint), "--format", fmt]

    done = CliRunner().invoke(cli, command, standalone_mode=False)

    said = " ".join(done.stdout.replace("\\", "").split())
    assert f"set {made.network.epsilon_key} to" in said
    assert f"--override-kv {made.network.epsilon_key}=float:" in said
