"""Kinds of file: each has its own rules, or one sentence that names the right command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import pytest

import ggufnorm
from ggufnorm.core.audit import AuditReport
from ggufnorm.errors import InputError
from ggufnorm.formats.forms import Kind, parse
from ggufnorm.formats.imatrix import Activations, write_imatrix
from ggufnorm.verbs.kinds import TAKES, wrong_turn
from tests.checkpoints import safetensors
from tests.conversions import build, write
from tests.encoders import ENCODERS
from tests.pairs import whole, whole_of

SUMS = np.abs(np.random.default_rng(0).normal(size=(1, 64))).astype(np.float32)
EXPERTS = np.abs(np.random.default_rng(1).normal(size=(4, 64))).astype(np.float32)


def saved(
    path: Path, arch: str, kind: str | None, tensors: dict[str, np.ndarray], **keys: str | float
) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    if kind is not None:
        writer.add_type(kind)
    for key, value in keys.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(key.replace("_", "."), value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adapter(path: Path, kind: str | None = "adapter") -> Path:
    name = "blk.0.attn_q.weight.lora_"
    pair = {f"{name}a": np.ones((4, 64), np.float32), f"{name}b": np.ones((64, 4), np.float32)}
    return saved(path, "llama", kind, pair, adapter_type="lora", adapter_lora_alpha=8.0)


def vocabulary(path: Path, kind: str | None = "vocab") -> Path:
    return saved(path, "llama", kind, {}, tokenizer_ggml_model="gpt2")


def imatrix(path: Path, **spoilt: Activations) -> Path:
    one, four = np.full(1, 512, np.float32), np.full(4, 128, np.float32)
    found = {
        "blk.0.attn_q.weight": Activations(SUMS, one),
        "blk.0.ffn_up_exps.weight": Activations(EXPERTS, four),
    }
    found |= {name.replace("__", "."): a for name, a in spoilt.items()}
    write_imatrix(path, found, text_name="text", n_chunks=1, n_ctx=512)
    return path


def checkpoint(path: Path) -> Path:
    path.write_bytes(safetensors({"model.norm.weight": ("F32", np.ones(8, np.float32))}))
    return path


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (vocabulary, "vocabulary", "is a vocabulary without weights: use ggufnorm inspect"),
        (lambda p: vocabulary(p, None), "vocabulary", "is a vocabulary without weights"),
        (checkpoint, "safetensors", "use ggufnorm audit MODEL --source"),
    ],
)
def test_a_file_that_is_no_model_is_called_what_it_is(
    tmp_path: Path, make: Callable[[Path], Path], kind: Kind, says: str
) -> None:
    path = make(tmp_path / "file.gguf")

    assert parse(path).kind == kind
    with pytest.raises(InputError) as told:
        ggufnorm.audit(path)
    assert says in str(told.value)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("verb", TAKES)
def test_verbs_take_kinds_that_they_can_look_at(tmp_path: Path, verb: str) -> None:
    made = {"imatrix": imatrix(tmp_path / "i.gguf"), "adapter": adapter(tmp_path / "a.gguf"),
            "vocabulary": vocabulary(tmp_path / "v.gguf")}  # fmt: skip
    for kind, path in made.items():
        assert (wrong_turn(verb, [path]) is None) == (kind in TAKES[verb])


def test_an_imatrix_has_its_own_rules_and_no_others(tmp_path: Path) -> None:
    path = imatrix(tmp_path / "imatrix.gguf")

    report = ggufnorm.audit(path)

    assert parse(path).kind == "imatrix"
    assert report.findings == ()
    ran = set(report.summary.rules_run)
    assert {r for r in ran if r.startswith("I")} == {"I101", "I102", "I103", "I104", "I105"}
    assert ran - {"N601"} == {r for r in ran if r.startswith("I")}
    assert {n.reason for n in report.not_run} == {"the file is an importance matrix"}


def with_value(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values.flat[3] = value
    return values


FOUR, NAME = np.full(4, 128, np.float32), "blk__0__ffn_up_exps__weight"


SPOILT = (
    ("NaN among the sums", "I102", Activations(with_value(EXPERTS, np.nan), FOUR),
     "1 of 256 sums are NaN"),
    ("infinite sums", "I102", Activations(with_value(EXPERTS, np.inf), FOUR),
     "1 of 256 sums are NaN or infinite"),
    ("an infinite count", "I102", Activations(EXPERTS, with_value(FOUR, np.inf)),
     "1 of 4 counts are NaN"),
    ("negative sums", "I103", Activations(with_value(EXPERTS, -1), FOUR),
     "1 of 256 sums are negative"),
    ("an expert that was never used", "I104", Activations(EXPERTS, with_value(FOUR, 0)),
     "1 of 4 experts were never used: 3"),
    ("an expert whose sums are 0", "I105",
     Activations(EXPERTS * np.array([[1], [0], [1], [1]], np.float32), FOUR),
     "all sums of 1 of 4 experts are 0: 1"),
    ("counts that do not fit the sums", "I101", Activations(EXPERTS, np.full(3, 1, np.float32)),
     "3 counts do not fit 256 sums"),
)  # fmt: skip
DOCUMENT = Path(__file__).parents[3] / "docs" / "detection-audit.md"
HEADING = "## Importance matrices (I)"


def table() -> str:
    lines = ["| fault | rule | found | misnamed | missed |", "|---|---|---|---|---|"]
    for words, rule, spoilt, _ in SPOILT:
        with TemporaryDirectory() as folder:
            report = ggufnorm.audit(imatrix(Path(folder) / "imatrix.gguf", **{NAME: spoilt}))
        found = sum(f.rule == rule for f in report.findings)
        others = len(report.findings) - found
        lines.append(f"| {words} | {rule} | {found} | {others} | {1 - found} |")
    return "\n".join(lines)


def test_the_document_tells_what_was_found() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]

    assert table() in section


@pytest.mark.parametrize(("rule", "spoilt", "says"), [s[1:] for s in SPOILT])
def test_a_spoilt_imatrix_is_found(
    tmp_path: Path, rule: str, spoilt: Activations, says: str
) -> None:
    report = ggufnorm.audit(imatrix(tmp_path / "imatrix.gguf", **{NAME: spoilt}))

    (finding,) = report.findings
    assert (finding.rule, finding.tensor) == (rule, "blk.0.ffn_up_exps.weight")
    assert finding.layer == 0
    assert says in finding.message


@pytest.mark.parametrize("kind", ["adapter", None])
def test_an_adapter_has_its_own_rules_and_no_others(tmp_path: Path, kind: str | None) -> None:
    report = ggufnorm.audit(adapter(tmp_path / "lora.gguf", kind))

    ran = set(report.summary.rules_run)
    assert ran == {"N601", "L101", "L102"}  # N602 with --full, L2 with the adapter's folder
    assert [f.message for f in report.findings] == (
        [] if kind else ["general.type is missing, not 'adapter': llama.cpp refuses the adapter"]
    )


def test_sums_without_counts_are_found(tmp_path: Path) -> None:
    tensors = {"blk.1.attn_q.weight.in_sum2": SUMS}
    report = ggufnorm.audit(saved(tmp_path / "m.gguf", "", "imatrix", tensors))

    (finding,) = report.findings
    assert (finding.rule, finding.message) == (
        "I101", "blk.1.attn_q.weight has sums and no counts"
    )  # fmt: skip


def test_a_folder_of_mixed_files_has_no_false_errors(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", build("llama"))
    imatrix(tmp_path / "imatrix.gguf")
    adapter(tmp_path / "lora.gguf")
    vocabulary(tmp_path / "vocab.gguf")
    checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("# Models")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08")
    whole_of(ENCODERS["gemma3"]).write_model(tmp_path / "mmproj.gguf")
    whole("qwen3").write_model(tmp_path / "split.gguf", per_shard=20)
    half = write(tmp_path / "broken-off.gguf", build("qwen2"))
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    lonely = whole("llama").write_model(tmp_path / "lonely.gguf", per_shard=20)
    next(tmp_path.glob("lonely-00002*")).unlink()

    found = ggufnorm.audit([tmp_path])

    split = next(tmp_path.glob("split-00001*")).name
    names = ["broken-off.gguf", "imatrix.gguf", "lora.gguf", "mmproj.gguf", "model.gguf", split]
    assert [Path(m.path).name for m in found.models] == names
    assert [Path(s.what).name for s in found.failed] == [lonely.name]
    assert "missing" in found.failed[0].reason
    assert [Path(s.what).name for s in found.passed_over] == ["vocab.gguf"]
    wrong = [m for m in found.models if any(f.severity != "info" for f in m.findings)]
    assert [Path(m.path).name for m in wrong] == ["broken-off.gguf"]
    assert [f.rule for f in wrong[0].findings] == ["N601"]


def test_a_file_that_was_named_is_not_passed_over(tmp_path: Path) -> None:
    model = write(tmp_path / "model.gguf", build("llama"))
    alone = vocabulary(tmp_path / "vocab.gguf")

    found = ggufnorm.audit([str(model), str(alone)])

    assert [s.what for s in found.failed] == [str(alone)]
    assert found.passed_over == ()


def test_a_folder_without_any_model_is_no_good_news(tmp_path: Path) -> None:
    vocabulary(tmp_path / "vocab.gguf")

    assert [Path(s.what).name for s in ggufnorm.audit([tmp_path]).failed] == ["vocab.gguf"]


def test_a_truncated_model_says_how_much_of_it_is_there(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", build("qwen2"))
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[: whole * 3 // 4])

    report = ggufnorm.audit(path)

    assert isinstance(report, AuditReport)
    (finding,) = report.findings
    assert finding.rule == "N601"
    told = f"{whole * 3 // 4 / 1000:.1f} kB of about {whole / 1000:.1f} kB are there"
    assert f"{told}; the header says qwen2, 10 layers" in finding.message


def test_a_truncated_model_whose_name_has_control_characters_is_told_in_one_line(
    tmp_path: Path,
) -> None:
    values = np.ones((64, 64), np.float32)
    path = saved(tmp_path / "model.gguf", "be\x1b[2J\nrt", None, {"token_embd.weight": values})
    path.write_bytes(path.read_bytes()[:-4096])

    report = ggufnorm.audit(path)

    assert isinstance(report, AuditReport)
    (finding,) = report.findings
    assert "the header says be\\x1b[2J\\nrt" in finding.message
    assert finding.message.isprintable()


if __name__ == "__main__":
    print(table())
