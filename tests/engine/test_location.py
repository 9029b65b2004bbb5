"""Models that lie elsewhere, run by llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from ggufnorm.analysis.drift.run import drift
from ggufnorm.samples import sample_model
from tests.unit.formats.test_location import finish, pull


def test_drift_runs_split_sets_and_models_of_ollama(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama := tmp_path / "ollama"))
    whole = sample_model()
    blob = pull(ollama, "registry.ollama.ai/library/sotu/latest", whole.read_bytes())
    shard = split_copy(whole, tmp_path / "sotu.gguf")[1]
    report = drift(shard, "ollama:sotu", n_ctx=64, chunks=1)
    assert report.logits is not None
    assert report.logits.mean_kld == 0.0
    assert report.reference.path == str(tmp_path / "sotu-00001-of-00002.gguf")
    assert report.quant.path == str(blob)


def split_copy(source: Path, target: Path) -> list[Path]:
    """A model rewritten in two shards by gguf-py."""
    reader = GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, arch, split_max_tensors=len(reader.tensors) // 2 + 1)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        kind = GGMLQuantizationType(tensor.tensor_type)
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=kind)
    finish(writer)
    return sorted(target.parent.glob(f"{target.stem}-*.gguf"))
