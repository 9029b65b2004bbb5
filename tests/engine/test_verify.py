"""Is a file exactly what llama-quantize makes of another? Held against llama.cpp's quantizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.cli.main import cli
from ggufnorm.core.verify import VerifyReport
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.errors import MismatchError
from ggufnorm.formats.imatrix import Activations, write_imatrix
from ggufnorm.samples import sample_model
from tests import in_process, models

PLAIN = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S",
    "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
    "BF16",
)  # fmt: skip
WEIGHTED = ("Q2_K_S", "Q4_K_M", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def moe(folder: Path) -> Path:
    return models.qwen3moe(folder / "moe.gguf")


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """One layer: some types take seconds for more."""
    return models.qwen3moe(folder / "small.gguf", models.Shape(n_layer=1))


@pytest.fixture(scope="module")
def matrix(folder: Path, moe: Path) -> Path:
    """Importances that no two columns and no two experts share."""
    rng = np.random.default_rng(0)
    found = {}
    for t in gguf.GGUFReader(moe).tensors:
        if len(t.shape) > 1:
            experts = int(t.shape[2]) if len(t.shape) > 2 else 1
            sums = rng.lognormal(sigma=2, size=(experts, int(t.shape[0]))).astype(np.float32)
            found[t.name] = Activations(sums, np.full(experts, 3, np.float32))
    path = folder / "moe.imatrix.gguf"
    write_imatrix(path, found, text_name="made up", n_chunks=1, n_ctx=512)
    return path


def quantized(path: Path, file_type: str, imatrix: Path | None = None) -> Path:
    target = path.with_name(f"{path.stem}-{file_type}{'-i' if imatrix else ''}.gguf")
    if not target.exists():
        from ggufnorm.formats.imatrix import read_imatrix

        with in_process.engine():
            quantize(
                path, target, file_type, n_threads=1,
                importance=None if imatrix is None else read_imatrix(imatrix),
            )  # fmt: skip
    return target


def verified(quant: Path, source: Path, imatrix: Path | None = None) -> VerifyReport:
    return ggufnorm.verify(quant, source, imatrix=imatrix, n_threads=1)


@pytest.mark.parametrize("file_type", PLAIN)
def test_what_llama_quantize_makes_is_made_again(file_type: str, small: Path) -> None:
    report = verified(quantized(small, file_type), small)

    assert report.is_derived, report.verdict
    assert any(t.outcome == "derived" for t in report.tensors)
    assert report.verdict.startswith("All 15 tensors are what the source gives, bit for bit")


@pytest.mark.parametrize("file_type", WEIGHTED)
def test_each_expert_has_its_part_of_the_importance_matrix(
    file_type: str, small: Path, matrix: Path
) -> None:
    quant = quantized(small, file_type, matrix)

    assert verified(quant, small, matrix).is_derived
    if file_type.startswith("Q"):
        without = verified(quant, small)
        assert not without.is_derived
        assert without.differing or without.skipped


def test_an_importance_matrix_that_was_not_given_is_asked_for(moe: Path, matrix: Path) -> None:
    report = verified(quantized(moe, "Q4_K_M", matrix), moe)

    assert "importance matrix" in report.verdict


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_K_M", "IQ4_XS"])
def test_one_flipped_bit_names_its_tensor(file_type: str, moe: Path, tmp_path: Path) -> None:
    def flip(raw: np.ndarray) -> np.ndarray:
        raw.reshape(-1).view(np.uint8)[700] ^= 4
        return raw

    name = "blk.1.ffn_down_exps.weight"
    quant = models.rewritten(
        quantized(moe, file_type), tmp_path / "flipped.gguf", tensors={name: flip}
    )

    report = verified(quant, moe)

    (found,) = report.differing
    assert (found.tensor, found.layer, found.n_differing) == (name, 1, 1)
    assert report.verdict.startswith(f"1 of 39 tensors are not what the source gives: {name}")
    assert not report.is_derived


def test_a_copied_norm_is_compared_too(moe: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_norm.weight"
    changed = models.rewritten(
        quantized(moe, "Q8_0"), tmp_path / "norm.gguf", tensors={name: lambda w: w * 1.01}
    )

    (found,) = verified(changed, moe).differing

    assert (found.tensor, found.dtype_from, found.dtype) == (name, "F32", "F32")
    assert found.rel_l2 == pytest.approx(0.01, rel=1e-3)


def test_a_tensor_or_a_key_more_or_less_is_no_proof(moe: Path, tmp_path: Path) -> None:
    sound = quantized(moe, "Q8_0")
    lacking = models.rewritten(
        sound, tmp_path / "lacking.gguf", tensors={"blk.2.attn_q_norm.weight": None}
    )
    other = models.rewritten(sound, tmp_path / "key.gguf", {"qwen3moe.rope.freq_base": 500.0})

    assert verified(lacking, moe).lacking == ("blk.2.attn_q_norm.weight",)
    assert not verified(lacking, moe).is_derived
    assert "differ: qwen3moe.rope.freq_base" in verified(other, moe).verdict
    assert not verified(other, moe).is_derived


def dequantized(path: Path) -> Path:
    """The same values in F32: what llama-quantize makes of a quant before it goes on."""
    reader = gguf.GGUFReader(path)
    target = path.with_name(f"{path.stem}-F32.gguf")
    values = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    models.rewritten(path, target, tensors=values)
    return target


def test_a_quant_of_a_quant_is_made_again_from_that_one(moe: Path) -> None:
    eight = quantized(moe, "Q8_0")
    four = quantized(dequantized(eight), "Q4_K_M")

    assert verified(four, eight).is_derived
    assert not verified(four, moe).is_derived


def test_another_network_is_refused(moe: Path, folder: Path) -> None:
    with pytest.raises(MismatchError, match="neither is made of the other"):
        verified(quantized(moe, "Q8_0"), models.llama(folder / "llama.gguf"))


def test_the_statement_names_all_files_by_their_digests(tmp_path: Path) -> None:
    quant = tmp_path / "sotu-Q4_K_M.gguf"
    with in_process.engine():
        quantize(sample_model(), quant, "Q4_K_M", n_threads=1)
    out = tmp_path / "statement.json"
    command = ["verify", str(quant), "--from", str(sample_model()), "--attest", str(out)]

    assert CliRunner().invoke(cli, command, standalone_mode=False).return_value == 0

    said = json.loads(out.read_text())
    (subject,) = said["subject"]
    assert subject["name"] == quant.name
    assert subject["digest"]["sha256"] == hashlib.sha256(quant.read_bytes()).hexdigest()
    (material,) = said["predicate"]["materials"]
    assert material["digest"]["sha256"] == hashlib.sha256(sample_model().read_bytes()).hexdigest()
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(quant).tensors}
    assert said["predicate"]["tensorTypes"] == types


def test_there_is_no_statement_of_what_was_not_made_again(moe: Path, tmp_path: Path) -> None:
    changed = models.rewritten(
        quantized(moe, "Q8_0"), tmp_path / "n.gguf", tensors={"output_norm.weight": lambda w: w + 1}
    )
    out = tmp_path / "statement.json"
    command = ["verify", str(changed), "--from", str(moe), "--attest", str(out)]

    assert CliRunner().invoke(cli, command, standalone_mode=False).return_value == 1
    assert not out.exists()


def test_another_chat_template_is_no_proof(moe: Path, tmp_path: Path) -> None:
    """llama-quantize copies it: whoever changed it changed what users get."""

    def with_template(text: str) -> Path:
        path = tmp_path / f"{len(text)}.gguf"
        reader, writer = gguf.GGUFReader(moe), gguf.GGUFWriter(path, "qwen3moe")
        for name, field in reader.fields.items():
            if not name.startswith("GGUF.") and name != "general.architecture":
                kind = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(name, field.contents(), field.types[0], kind)
        writer.add_chat_template(text)
        for t in reader.tensors:
            writer.add_tensor(t.name, np.array(t.data), raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    source, other = with_template("{{ messages }}"), with_template("{{ messages }} and more")
    quant = quantized(source, "Q8_0")

    assert verified(quant, source).is_derived
    report = verified(quant, other)
    assert not report.is_derived
    assert "differ: tokenizer.chat_template" in report.verdict


def test_bytes_behind_the_last_tensor_are_no_proof(moe: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer.gguf"
    longer.write_bytes(quantized(moe, "Q8_0").read_bytes() + bytes(4096))

    report = verified(longer, moe)

    assert not report.is_derived
    assert report.verdict.endswith("4,096 bytes follow the last tensor.")


def test_the_ggml_that_quantized_is_named_by_its_own_account(moe: Path) -> None:
    from ggufnorm.engines.llama.binding import ggml

    said = verified(quantized(moe, "Q8_0"), moe).engine

    assert said.startswith(f"ggml {ggml().ggml_version().decode()} (")
    assert said.endswith("of llama-cpp-python")
