"""What the documentation says to type is typed, and what it links to is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnxruntime.quantization import quantize_dynamic

import ggufnorm
from ggufnorm.cli.main import cli
from ggufnorm.core.log_mel import whisper
from ggufnorm.core.pixels import Normalization
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.samples import sample_model, sample_path
from tests import checkpoints, framework_models, models, sounds, towers, vision
from tests.docs import outputs, symptoms
from tests.paths import ROOT
from tests.servers import HubServer, Repo, running

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

_BLOCK = re.compile(
    r"(?:<!-- exits with (\d+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
_COMMAND = re.compile(r"^ *(?:\$ )?(ggufnorm .*?)(?:  +#.*)?$", re.M)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)


@dataclass(frozen=True)
class Typed:
    """A command in a page, and the exit code that the page promises."""

    page: Path
    line: str
    exit_code: int

    def __str__(self) -> str:
        return f"{self.page.stem}: {self.line}"


def commands() -> Iterator[Typed]:
    for page in PAGES:
        for exit_code, language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in _COMMAND.findall(block) if language in ("", "console") else ():
                yield Typed(page, line, int(exit_code or 0))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with the files that the documentation speaks of."""
    with a_folder() as here:
        yield here


@contextmanager
def a_folder() -> Iterator[Path]:
    """The same, for whoever writes outputs into pages."""
    with tempfile.TemporaryDirectory(prefix="ggufnorm-docs-") as name:
        here = Path(name)
        symptoms.write(here)
        shutil.copyfile(sample_model(), here / "model-f16.gguf")
        shutil.copyfile(sample_model(), here / "model.gguf")
        for quant in ("Q8_0", "Q5_K_M", "Q4_K_M", "Q4_1"):
            quantize(sample_model(), here / f"model-{quant}.gguf", quant)
        write_chats(here)
        text = sample_path("heldout.txt").read_text(encoding="utf-8")[:8000]
        for file in ("models/model.gguf", "more/of/them/model.gguf"):
            (here / file).parent.mkdir(parents=True)
            shutil.copyfile(sample_model(), here / file)
        (here / "models.txt").write_text("model.gguf\nmodels/model.gguf\n", encoding="utf-8")
        write_checkpoint(here / "hf-folder", sample_model())
        gemma = checkpoints.pair(next(n for n in checkpoints.NETWORKS if n.architecture == "gemma"))
        gemma.write_model(here / "gemma.gguf")
        write_files(here / "gemma-hf", gemma.files())
        models.edited(
            sample_model(),
            here / "sotu-faulty.gguf",
            floats={"llama.attention.layer_norm_rms_epsilon": 0.0},
        )
        write_pixels(here)
        write_sounds(here)
        for file in ("text.txt", "wiki.test.raw"):
            (here / file).write_text(text, encoding="utf-8")
        write_frameworks(here, text)
        write_towers(here)
        yield here


def write_chats(here: Path) -> None:
    """A model with a chat template, a quantization of it, and a chat."""
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    for kind in ("f16", "Q4_K_M"):
        source = here / f"model-{kind}.gguf"
        keys = {"tokenizer.chat_template": template}
        models.rewritten(source, here / f"instruct-{kind}.gguf", keys)
    messages = [
        {"role": "user", "content": "What did the Congress do?"},
        {"role": "assistant", "content": "It passed an act for the relief of the States."},
    ]
    (here / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")


def write_frameworks(here: Path, text: str) -> None:
    """A checkpoint, and what right and wrong conversions make of it."""
    network = framework_models.NETWORKS["llama"]
    model = framework_models.build(network)
    checkpoint = framework_models.save(model, here / "checkpoint")
    framework_models.with_tokenizer(text[:1000], checkpoint)
    tensors = framework_models.converted(model, network)
    framework_models.write(here / "converted.gguf", network, tensors)
    tensors["blk.1.ffn_norm.weight"] += 1
    framework_models.write(here / "wrong.gguf", network, tensors)
    framework_models.export(model, here / "model.onnx")
    quantize_dynamic(here / "model.onnx", here / "model-int8.onnx")


def write_towers(here: Path) -> None:
    """A checkpoint with an image encoder, and what right and wrong conversions make of it."""
    tower = towers.TOWERS["gemma3"]
    model = towers.build(tower)
    vision.write_processor(framework_models.save(model, here / "vision-checkpoint"))
    tensors = towers.converted(model, tower)
    towers.write(here / "vision-mmproj.gguf", tower, tensors)
    towers.write(here / "vision-wrong.gguf", tower, tensors, constants=vision.CLIP)
    towers.export(model, here / "vision.onnx")


def write_pixels(folder: Path) -> None:
    """A picture, an image processor and two encoders, one with another model's constants."""
    vision.write_picture(folder / "photo.png", 48, 48)
    vision.write_processor(folder / "hf-vision", vision.CLIP)
    vision.write_mmproj(folder / "mmproj.gguf", vision.CLIP)
    vision.write_mmproj(folder / "mmproj-wrong.gguf", vision.IMAGENET)
    pixels = Normalization(*vision.IMAGENET).apply(vision.levels(48, 48)).astype(np.float32)
    np.save(folder / "array.npy", np.moveaxis(pixels, -1, 0))


def write_sounds(folder: Path) -> None:
    """A sound, a feature extractor, an audio encoder, and features in natural logarithms."""
    voice = sounds.sound(1.0)
    sounds.write_wav(folder / "speech.wav", voice, dtype="<f4")
    sounds.write_extractor(folder / "hf-audio")
    sounds.write_audio_mmproj(folder / "mmproj-audio.gguf")
    logs = np.log(np.maximum(whisper(80).energies(voice), 1e-10))
    np.save(folder / "features.npy", (np.maximum(logs, logs.max() - 8) + 4) / 4)


def write_checkpoint(folder: Path, model: Path) -> None:
    """What the model may have been converted from: its norms and its embedding."""
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for i in range(5):
        names[f"blk.{i}.attn_norm"] = f"model.layers.{i}.input_layernorm"
        names[f"blk.{i}.ffn_norm"] = f"model.layers.{i}.post_attention_layernorm"
    with GGUFFile(model) as file:
        tensors = {
            f"{name}.weight": ("F32", read_tensor(file, f"{target}.weight"))
            for target, name in names.items()
        }
    config = {"model_type": "llama", "rms_norm_eps": 1e-5}
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": checkpoints.safetensors(tensors),
    }
    write_files(folder, files)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def environment(folder: Path) -> Iterator[dict[str, str]]:
    with an_environment(folder) as found:
        yield found


@contextmanager
def an_environment(folder: Path) -> Iterator[dict[str, str]]:
    """Where ``hf://org/repo`` is a stand-in that this test runs."""
    files = {
        f"model-{q}.gguf": (folder / f"model-{q}.gguf").read_bytes() for q in ("Q8_0", "Q4_K_M")
    }
    files["file.gguf"] = files["model-Q4_K_M.gguf"]
    source = {path.name: path.read_bytes() for path in (folder / "hf-folder").iterdir()}
    repos = {"org/repo": Repo(files), "org/source": Repo(source)}
    with running(HubServer(repos=repos)) as hub:
        yield {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hub")}


@pytest.mark.parametrize("typed", tuple(commands()), ids=str)
def test_every_command_does_what_its_page_promises(
    typed: Typed, folder: Path, environment: dict[str, str]
) -> None:
    done = run(typed.line, folder, environment)

    assert done.returncode == typed.exit_code, done.stderr
    for shown in outputs.shown_by(typed.page, typed.line):
        outputs.require_same(shown, done.stdout)


def run(line: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    script = "from ggufnorm.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *shlex.split(line)[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_there_are_commands_on_every_how_to_page() -> None:
    with_commands = {typed.page for typed in commands()}
    assert set((ROOT / "docs" / "how-to").glob("*.md")) <= with_commands
    assert set((ROOT / "docs" / "symptoms").glob("*.md")) <= with_commands
    assert {ROOT / "README.md", ROOT / "docs" / "tutorial.md"} <= with_commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_reference_has_all_public_names() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"autofunction:: ggufnorm\.(\w+)", page))
    modules = set(re.findall(r"automodule:: (ggufnorm[\w.]+)", page)) | {"ggufnorm.errors"}
    missing = {
        name
        for name in ggufnorm.__all__
        if name not in listed and getattr(ggufnorm, name).__module__ not in modules
    }
    assert missing == set()


def test_the_exit_codes_of_readme_and_reference_agree() -> None:
    row = re.compile(r"^\| (\d+) \|", re.M)
    pages = (ROOT / "README.md", ROOT / "docs" / "reference" / "exit-codes.md")
    assert len({tuple(row.findall(p.read_text(encoding="utf-8"))) for p in pages}) == 1


def test_the_names_in_the_json_reference_are_in_the_documents(folder: Path) -> None:
    page = (ROOT / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    quant = str(folder / "model-Q8_0.gguf")
    ref = str(folder / "model.gguf")
    arguments = {
        "inspect": ["inspect", ref],
        "diff": ["diff", ref, quant],
        "drift": ["drift", ref, quant, "-c", "32", "--chunks", "1"],
        "audit": ["audit", ref],
        "check": ["check", ref],
        "verify": ["verify", quant, "--from", ref],
        "fix": ["fix", str(folder / "sotu-faulty.gguf"), "-o", str(folder / "mended.gguf")],
        "attribute": ["attribute", ref, quant, "-c", "32", "--chunks", "1", "--by", "layer"],
        "pixels": [
            "pixels",
            str(folder / "photo.png"),
            "--mmproj",
            str(folder / "mmproj-wrong.gguf"),
            "--processor",
            str(folder / "hf-vision"),
        ],
        "audio": [
            "audio",
            str(folder / "speech.wav"),
            "--processor",
            str(folder / "hf-audio"),
            "--array",
            str(folder / "features.npy"),
        ],
        "quants": ["quants", ref, quant, str(folder / "model-Q4_K_M.gguf"), "-c", "32"],
        "recipe": ["recipe", ref, quant, "-c", "32", "--chunks", "1", "--max-size", "+3%"],
    }
    documents = {}
    for name, words in arguments.items():
        done = CliRunner().invoke(cli, [*words, "--format", "json"], standalone_mode=False)
        documents[name] = json.loads(done.stdout)
    rows = re.findall(r"^\| (\w+) \| `(\w+)(?:\[\])?`.*?\| (.*) \|$", page, re.M)
    assert {document for document, _part, _names in rows} == set(arguments)
    for document, part, names in rows:
        found = documents[document][part]
        if isinstance(found, list) and found:
            for name in re.findall(r"`([a-z_0-9.]+)`", names.partition("(")[0]):
                assert value_at(found[0], name.split(".")), (document, part, name)


def value_at(found: object, names: list[str]) -> bool:
    for name in names:
        if not isinstance(found, dict) or name not in found:
            return False
        found = found[name]
    return True
