"""Known-good manifests, baselines and the severity policy of ``ggufnorm audit``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.analysis.audit.manifest import read_manifest, save_manifest
from ggufnorm.cli.main import cli
from ggufnorm.errors import ConfigError, InputError
from tests.conversions import Model, build, write

ARCHITECTURES = ["llama", "gemma3", "gpt2", "mamba", "deepseek2", "bert"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["audit", *map(str, arguments)], standalone_mode=False)
    if isinstance(result.exception, Exception):
        raise result.exception
    return int(result.return_value or 0), result.stdout, result.stderr


def against(path: Path, manifest: Path) -> list[tuple[str, str, str | None]]:
    report = ggufnorm.audit(path, manifest=manifest, select=["M"])
    return [(f.rule, f.severity, f.tensor) for f in report.findings]


@pytest.fixture(params=ARCHITECTURES)
def known(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Model, Path, Path]:
    model = build(request.param)
    path = write(tmp_path / "m.gguf", model)
    manifest = tmp_path / "m.json"
    save_manifest(path, manifest)
    return model, path, manifest


def test_the_same_file_is_as_the_manifest_says(known: tuple[Model, Path, Path]) -> None:
    _, path, manifest = known
    assert against(path, manifest) == []
    assert set(ggufnorm.audit(path, manifest=manifest).summary.rules_run) >= {
        "M101", "M102", "M103",
    }  # fmt: skip


def test_a_flipped_bit_names_its_tensor(known: tuple[Model, Path, Path]) -> None:
    model, path, manifest = known
    name = sorted(model.tensors)[3]
    values = model.tensors[name].reshape(-1).view(np.uint8)
    values[5] ^= 1
    write(path, model)
    ((rule, severity, tensor),) = against(path, manifest)
    assert (rule, severity, tensor) == ("M101", "error", name)


def test_swapped_tensors_are_told_with_whose_they_are(known: tuple[Model, Path, Path]) -> None:
    model, path, manifest = known
    a, b = [n for n in model.tensors if n.endswith("attn_norm.weight") or "ln1" in n][:2] or list(
        model.tensors
    )[:2]
    model.tensors[a], model.tensors[b] = model.tensors[b], model.tensors[a]
    write(path, model)
    report = ggufnorm.audit(path, manifest=manifest, select=["M"])
    assert {f.tensor for f in report.findings} == {a, b}
    if model.tensors[a].shape == model.tensors[b].shape:
        assert any(f"it holds what {b} held" in f.message for f in report.findings)


def test_keys_that_count_are_errors_and_others_are_told(known: tuple[Model, Path, Path]) -> None:
    model, path, manifest = known
    model.metadata["general.name"] = "another"
    model.metadata[f"{path.stem}.unread"] = 1
    key = next(k for k in read_manifest(manifest).keys if k.endswith(".block_count"))
    base = key.replace("block_count", "rope.freq_base")
    model.metadata[base] = 5.0
    write(path, model)
    found = ggufnorm.audit(path, manifest=manifest, select=["M"]).findings
    assert {(f.evidence["key"], f.severity) for f in found} == {
        (base, "error"),
        ("general.name", "info"),
        ("m.unread", "info"),
    }


def test_the_digest_of_all_is_of_neither_names_nor_metadata(tmp_path: Path) -> None:
    model = build("llama")
    first = save_manifest(write(tmp_path / "a.gguf", model), tmp_path / "a.json")
    model.metadata["general.name"] = "another"
    renamed = {f"x{name}": values for name, values in reversed(list(model.tensors.items()))}
    model.tensors.clear()
    model.tensors.update(renamed)
    second = save_manifest(write(tmp_path / "b.gguf", model), tmp_path / "b.json")
    assert first.digest == second.digest
    found = against(tmp_path / "b.gguf", tmp_path / "a.json")
    assert {(rule, severity) for rule, severity, _ in found} >= {("M102", "warning")}
    assert ("M102", "error") not in {(rule, severity) for rule, severity, _ in found}


def test_the_command_writes_and_compares(tmp_path: Path) -> None:
    model = build("llama")
    path, manifest = write(tmp_path / "m.gguf", model), tmp_path / "m.json"
    code, _, said = run(path, "--save-manifest", manifest)
    assert (code, f"manifest written to {manifest}" in said) == (0, True)
    assert run(path, "--manifest", manifest)[0] == 0
    model.tensors["blk.3.attn_norm.weight"][0] += 1
    write(path, model)
    code, text, _ = run(path, "--manifest", manifest)
    assert code == 1
    assert "M101 tensor-changed" in text
    with pytest.raises(click.UsageError, match="a manifest is of one model"):
        run(path, path, "--manifest", manifest)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: "[]", "no manifest"),
        (lambda text: text.replace("ggufnorm/manifest", "ggufnorm/drift"), "no manifest"),
        (lambda text: text.replace('"version": 1', '"version": 9'), "upgrade ggufnorm"),
        (lambda text: text.replace('"tensors": [', '"tensors": [3, '), "damaged manifest"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, spoil: Callable[[str], str], says: str) -> None:
    path, manifest = write(tmp_path / "m.gguf", build("llama")), tmp_path / "m.json"
    save_manifest(path, manifest)
    manifest.write_text(spoil(manifest.read_text()))
    with pytest.raises(ConfigError, match=says):
        read_manifest(manifest)
    with pytest.raises(InputError, match="cannot open"):
        read_manifest(tmp_path / "gone.json")


# -- baseline and policy -----------------------------------------------------------------


def test_a_baseline_accepts_what_was_found_and_nothing_new(tmp_path: Path) -> None:
    model = build("llama")
    model.tensors["blk.3.attn_norm.weight"][:] = 0
    path, saved = write(tmp_path / "m.gguf", model), tmp_path / "base.json"
    assert run(path, "-o", saved)[0] == 1
    code, text, _ = run(path, "--baseline", saved)
    assert code == 0
    assert "in the baseline base.json" in text
    model.tensors["blk.4.attn_norm.weight"][:] = 0
    write(path, model)
    code, text, _ = run(path, "--baseline", saved, "--format", "json")
    assert code == 1
    new = [f for f in json.loads(text)["findings"] if f["severity"] == "error"]
    assert [f["tensor"] for f in new] == ["blk.4.attn_norm.weight"]


def test_a_policy_grades_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = build("llama")
    model.tensors["blk.3.attn_norm.weight"][:] = 0
    write(Path("m.gguf"), model)
    assert run("m.gguf")[0] == 1
    policy = Path(".ggufnorm-ignore.toml")
    policy.write_text('[severity]\nN3 = "warning"\nN302 = "info"\n')
    assert run("m.gguf")[0] == 0
    found = ggufnorm.audit("m.gguf", severities={"N3": "warning"}).findings
    assert [f.severity for f in found if f.rule == "N302"] == ["warning"]
    policy.write_text('[severity]\nN3 = "grave"\n')
    with pytest.raises(ConfigError, match="must be one of error, warning, info"):
        run("m.gguf")
    Path("pyproject.toml").write_text('[tool.ggufnorm.severity]\nn302 = "info"\n')
    policy.unlink()
    assert run("m.gguf")[0] == 0
