"""Encoders without and with faults in what normalizes pixels and hidden states.

``python -m tests.unit.analysis.test_audit_vision`` prints the family's table of
``docs/detection-audit.md``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufnorm.analysis.audit.rules import vision
from ggufnorm.core.audit import Finding
from tests.checkpoints import BY_NAME, LAYERS, Network, Pair, check, pair
from tests.paths import DOCS

DOCUMENT = DOCS / "detection-audit.md"
HEADING = "## Rules of vision encoders (V)"

MEAN, STD = "clip.vision.image_mean", "clip.vision.image_std"
EPSILON = "clip.vision.attention.layer_norm_epsilon"
Constants = tuple[list[float], list[float]]

CLIP: Constants = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
IMAGENET: Constants = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF: Constants = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
OWN: Constants = ([0.51, 0.47, 0.43], [0.31, 0.3, 0.29])


@dataclass(frozen=True)
class Encoder:
    """A projector type with the names and constants of its models."""

    projector: str
    constants: Constants
    norms: dict[str, str]
    epsilon: str = "layer_norm_eps"
    value: float = 1e-6
    bias: bool = True
    soft_offset: bool = False


SIGLIP = {
    "vision_tower.vision_model.encoder.layers.{}.layer_norm1": "v.blk.{}.ln1",
    "vision_tower.vision_model.encoder.layers.{}.layer_norm2": "v.blk.{}.ln2",
    "vision_tower.vision_model.post_layernorm": "v.post_ln",
}
CLIP_VIT = {
    **SIGLIP,
    "vision_tower.vision_model.pre_layrnorm": "v.pre_ln",
}
QWEN_VL = {
    "visual.blocks.{}.norm1": "v.blk.{}.ln1",
    "visual.blocks.{}.norm2": "v.blk.{}.ln2",
    "visual.merger.ln_q": "v.post_ln",
}
PIXTRAL = {
    "vision_tower.transformer.layers.{}.attention_norm": "v.blk.{}.ln1",
    "vision_tower.transformer.layers.{}.ffn_norm": "v.blk.{}.ln2",
    "vision_tower.ln_pre": "v.pre_ln",
}
INTERN = {
    "vision_tower.encoder.layer.{}.layernorm_before": "v.blk.{}.ln1",
    "vision_tower.encoder.layer.{}.layernorm_after": "v.blk.{}.ln2",
}

ENCODERS = (
    Encoder("mlp", CLIP, CLIP_VIT, value=1e-5),
    Encoder("gemma3", HALF, SIGLIP, soft_offset=True),
    Encoder("idefics3", HALF, {f"model.{k.replace('vision_tower.', '')}": v
                               for k, v in SIGLIP.items()}),
    Encoder("llama4", HALF, {f"vision_model.{k}": v for k, v in {
        "model.layers.{}.input_layernorm": "v.blk.{}.ln1",
        "model.layers.{}.post_attention_layernorm": "v.blk.{}.ln2",
        "layernorm_pre": "v.pre_ln", "layernorm_post": "v.post_ln"}.items()},
        "norm_eps", 1e-5),
    Encoder("qwen2vl_merger", CLIP, QWEN_VL, "", 1e-6),
    Encoder("qwen2.5vl_merger", CLIP, QWEN_VL, "", 1e-6, bias=False),
    Encoder("pixtral", CLIP, PIXTRAL, "", 1e-5, bias=False),
    Encoder("internvl", IMAGENET, INTERN),
    Encoder("lfm2", HALF, {k.replace("vision_tower.", "model.vision_tower."): v
                           for k, v in SIGLIP.items()}),
)  # fmt: skip
BY_PROJECTOR = {encoder.projector: encoder for encoder in ENCODERS}


def encoder_pair(encoder: Encoder, dtype: str = "BF16") -> Pair:
    network = Network("clip", encoder.norms, "", bias=encoder.bias)
    made = pair(network, dtype)
    del made.tensors["token_embd.weight"], made.source["model.embed_tokens.weight"]
    if encoder.soft_offset:
        gains = made.tensors["v.post_ln.weight"]
        made.source["multi_modal_projector.mm_soft_emb_norm.weight"] = gains
        made.tensors["mm.soft_emb_norm.weight"] = gains + np.float32(1)
    mean, std = encoder.constants
    made.metadata = {
        "clip.has_vision_encoder": 1,
        "clip.projector_type": encoder.projector,
        "clip.vision.block_count": LAYERS,
        EPSILON: encoder.value,
        MEAN: list(mean),
        STD: list(std),
    }
    own: dict[str, Any] = {"num_hidden_layers": LAYERS}
    if encoder.epsilon:
        own[encoder.epsilon] = encoder.value
    made.config = {"vision_config": own, "text_config": {"rms_norm_eps": 3e-3}}
    made.preprocessor = {"image_mean": list(mean), "image_std": list(std)}
    return made


def not_info(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.severity != "info"]


# No false alarm.


@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: e.projector)
def test_a_right_encoder_raises_no_alarm(
    tmp_path: Path, encoder: Encoder, dtype: str, with_source: bool
) -> None:
    made = encoder_pair(encoder, dtype)

    findings, not_run = check(tmp_path, made, with_source=with_source)

    assert not_info(findings) == []
    of_file = {"V101", "V102", "V103", "V104", "V105", "V301"}
    assert of_file.isdisjoint(not_run)
    assert ("V106" in not_run) == (not with_source)
    assert ("V107" in not_run) == with_source
    if with_source:
        assert {"S102", "S103", "S208"}.isdisjoint(not_run)
        assert ("V201" in not_run) == (not encoder.epsilon)


def test_constants_that_a_config_rounds_are_the_same(tmp_path: Path) -> None:
    made = encoder_pair(BY_PROJECTOR["pixtral"])
    made.metadata[MEAN] = [0.4815, 0.4578, 0.4082]
    made.metadata[STD] = [0.2686, 0.2613, 0.2758]

    assert not_info(check(tmp_path, made, with_source=False)[0]) == []


def test_constants_of_ones_own_are_no_alarm(tmp_path: Path) -> None:
    made = encoder_pair(BY_PROJECTOR["gemma3"])
    made.metadata[MEAN], made.metadata[STD] = OWN
    made.preprocessor = {"image_mean": OWN[0], "image_std": OWN[1]}

    assert not_info(check(tmp_path, made)[0]) == []


@pytest.mark.parametrize("nested", ["media_proc_cfg", "image_processor"])
def test_a_nested_preprocessor_config_is_read(tmp_path: Path, nested: str) -> None:
    made = encoder_pair(BY_PROJECTOR["gemma3"])
    made.preprocessor = None
    model, checkpoint = made.write(tmp_path)
    name = "processor_config.json" if nested == "image_processor" else "preprocessor_config.json"
    import json

    content = {nested: {"image_mean": CLIP[0], "image_std": CLIP[1]}}
    (checkpoint / name).write_text(json.dumps(content))
    from tests.checkpoints import subject

    with subject(model, checkpoint) as looked_at:
        findings = list(vision.RULES[5].findings(looked_at))

    assert {f.rule for f in findings} == {"V106"}
    assert {f.evidence["key"] for f in findings} == {MEAN, STD}


def test_one_number_for_all_channels_is_read(tmp_path: Path) -> None:
    made = encoder_pair(BY_PROJECTOR["gemma3"])
    made.preprocessor = {"image_mean": 0.5, "image_std": 0.5}

    findings, not_run = check(tmp_path, made)

    assert not_info(findings) == []
    assert "V106" not in not_run


def test_a_source_that_does_not_normalize_is_not_compared(tmp_path: Path) -> None:
    made = encoder_pair(BY_PROJECTOR["gemma3"])
    made.preprocessor = {"do_normalize": False, "image_mean": CLIP[0], "image_std": CLIP[1]}

    findings, not_run = check(tmp_path, made, vision.RULES)

    assert findings == []
    assert "do_normalize" in not_run["V106"]


def test_a_language_model_is_no_encoder(tmp_path: Path) -> None:
    findings, not_run = check(tmp_path, pair(BY_NAME["llama"]), vision.RULES)

    assert findings == []
    assert set(not_run) == {rule.id for rule in vision.RULES}
    assert set(not_run.values()) == {"the file is no encoder's (mmproj)"}


def test_an_encoder_of_sound_is_no_encoder_of_pictures(tmp_path: Path) -> None:
    made = encoder_pair(BY_PROJECTOR["gemma3"])
    made.tensors = {"a.post_ln.weight": np.ones(8, np.float32)}

    findings, not_run = check(tmp_path, made, vision.RULES)

    assert findings == []
    assert set(not_run.values()) == {"the file has no vision encoder"}


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: e.projector)
@pytest.mark.parametrize("network", ["llama", "qwen3", "gemma3", "qwen2vl", "llama4", "gemma3n"])
def test_parts_of_one_checkpoint_are_kept_apart(
    tmp_path: Path, network: str, encoder: Encoder
) -> None:
    text, picture = pair(BY_NAME[network]), encoder_pair(encoder)
    both = {**picture.source, **text.source}
    text.source = picture.source = both
    text.config["vision_config"] = picture.config["vision_config"]
    (tmp_path / "text").mkdir()
    (tmp_path / "picture").mkdir()

    assert not_info(check(tmp_path / "text", text)[0]) == []
    assert not_info(check(tmp_path / "picture", picture)[0]) == []


def test_a_preprocessor_config_without_numbers_is_not_compared(tmp_path: Path) -> None:
    made = encoder_pair(BY_PROJECTOR["gemma3"])
    made.preprocessor = {"image_mean": ["a", None, {}], "image_std": [0.5, 0.5]}

    findings, not_run = check(tmp_path, made)

    assert not_info(findings) == []
    assert not_run["V106"] == "the source does not say how pixels are normalized"


def test_a_preprocessor_config_of_endless_integers_is_compared(tmp_path: Path) -> None:
    made = encoder_pair(BY_PROJECTOR["gemma3"])
    made.preprocessor = {"image_mean": [10**400] * 3, "image_std": [0.5] * 3}

    (finding,) = not_info(check(tmp_path, made)[0])

    assert finding.rule == "V106"
    assert finding.evidence["expected"] == ["inf"] * 3


# No miss.

Change = Callable[[Pair], None]


@dataclass(frozen=True)
class Fault:
    """Something wrong with an encoder."""

    name: str
    rule: str
    projectors: str
    change: Change
    severity: str = "error"
    says: str = ""
    with_source: bool = False
    tensor: str | None = None
    layer: int | None = None


def constant(key: str, function: Callable[[list[float]], object]) -> Change:
    def change(made: Pair) -> None:
        value = made.metadata[key]
        assert isinstance(value, list)
        made.metadata[key] = function(value)

    return change


def without(*keys: str) -> Change:
    def change(made: Pair) -> None:
        for key in keys:
            del made.metadata[key]

    return change


def constants(of: Constants) -> Change:
    def change(made: Pair) -> None:
        made.metadata[MEAN], made.metadata[STD] = (list(part) for part in of)

    return change


def std_is_mean(made: Pair) -> None:
    made.metadata[STD] = made.metadata[MEAN]


def epsilon(factor: float) -> Change:
    def change(made: Pair) -> None:
        value = made.metadata[EPSILON]
        assert isinstance(value, float)
        made.metadata[EPSILON] = value * factor

    return change


def lose(*names: str) -> Change:
    def change(made: Pair) -> None:
        for name in names:
            made.tensors.pop(name, None)

    return change


FAULTS: tuple[Fault, ...] = (
    Fault("no mean", "V101", "gemma3 pixtral", without(MEAN), says=f"{MEAN} is missing"),
    Fault("no deviation", "V101", "internvl idefics3", without(STD), says=f"{STD} is missing"),
    Fault("one number", "V102", "gemma3 llama4", constant(MEAN, lambda v: v[:1]),
          says="has 1 number, not 3"),
    Fault("four numbers", "V102", "pixtral mlp", constant(STD, lambda v: [*v, 0.25]),
          says="has 4 numbers, not 3"),
    Fault("no numbers", "V102", "gemma3 lfm2", constant(STD, lambda v: ["a", "b", "c"]),
          says="has no numbers"),
    Fault("a deviation of 0", "V103", "gemma3 qwen2vl_merger",
          constant(STD, lambda v: [v[0], 0.0, v[2]]), says="must be above 0"),
    Fault("negative deviations", "V103", "internvl llama4",
          constant(STD, lambda v: [-x for x in v]), says="must be above 0"),
    Fault("a deviation that is no number", "V103", "mlp gemma3",
          constant(STD, lambda v: [math.nan, v[1], v[2]]), says="nan"),
    Fault("a mean that is infinite", "V103", "mlp gemma3",
          constant(MEAN, lambda v: [math.inf, v[1], v[2]]), says="must be finite"),
    Fault("the mean twice", "V104", "pixtral internvl mlp", std_is_mean,
          says="the values of the mean"),
    Fault("mean for 0 to 255", "V105", "internvl mlp gemma3",
          constant(MEAN, lambda v: [255 * x for x in v]), says="pixels are from 0 to 1"),
    Fault("deviation for 0 to 255", "V105", "internvl pixtral",
          constant(STD, lambda v: [255 * x for x in v]), says="pixels are from 0 to 1"),
    Fault("CLIP's constants, not the source's", "V106", "gemma3 internvl", constants(CLIP),
          says="(CLIP's), the source has", with_source=True),
    Fault("0.5, not the source's", "V106", "pixtral mlp", constants(HALF),
          says="(SigLIP's and Inception's), the source has", with_source=True),
    Fault("constants of nobody's, not the source's", "V106", "gemma3 qwen2vl_merger",
          constants(OWN), says="the source has", with_source=True),
    Fault("channels in the order blue, green, red", "V106", "pixtral internvl",
          constant(MEAN, lambda v: v[::-1]), says="the source has", with_source=True),
    Fault("CLIP's constants, no source", "V107", "gemma3 internvl llama4", constants(CLIP),
          severity="warning", says="normalized with CLIP's constants"),
    Fault("ImageNet's constants, no source", "V107", "pixtral qwen2.5vl_merger",
          constants(IMAGENET), severity="warning", says="normalized with ImageNet's constants"),
    Fault("0.5, no source", "V107", "pixtral internvl", constants(HALF), severity="warning",
          says="normalized with SigLIP's and Inception's constants"),
    Fault("one model's mean, another's deviation", "V107", "mlp pixtral",
          constant(STD, lambda v: IMAGENET[1]), severity="warning", says="deviation ImageNet's"),
    Fault("another epsilon", "V201", "gemma3 mlp llama4 internvl", epsilon(10),
          says="config.json has vision_config.", with_source=True),
    Fault("a block without its second norm", "V301", "gemma3 internvl pixtral",
          lose("v.blk.1.ln2.weight", "v.blk.1.ln2.bias"), tensor="v.blk.1.ln2.weight", layer=1,
          says="2 other blocks have it"),
    Fault("a block without a bias", "V301", "gemma3 mlp", lose("v.blk.2.ln1.bias"),
          tensor="v.blk.2.ln1.bias", layer=2, says="2 other blocks have it"),
    Fault("no second norm at all", "V301", "gemma3 qwen2vl_merger",
          lose(*(f"v.blk.{i}.ln2.{part}" for i in range(LAYERS) for part in ("weight", "bias"))),
          tensor="v.blk.0.ln2.weight", says="no block has ln2.weight"),
)  # fmt: skip

CASES = [(fault, name) for fault in FAULTS for name in fault.projectors.split()]


def findings_of(folder: Path, fault: Fault, projector: str) -> list[Finding]:
    made = encoder_pair(BY_PROJECTOR[projector])
    fault.change(made)
    return not_info(check(folder, made, with_source=fault.with_source)[0])


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0].name}-{c[1]}".replace(" ", "_"))
def test_a_fault_is_found_by_the_rule_that_describes_it(
    tmp_path: Path, case: tuple[Fault, str]
) -> None:
    fault, projector = case

    findings = findings_of(tmp_path, fault, projector)

    assert {f.rule for f in findings} == {fault.rule}
    assert {f.severity for f in findings} == {fault.severity}
    assert any(fault.says in f.message for f in findings)
    bias = fault.tensor and fault.tensor.replace(".weight", ".bias")
    places = {(f.tensor, f.layer) for f in findings}
    assert (fault.tensor, fault.layer) in places <= {(n, fault.layer) for n in (fault.tensor, bias)}


@pytest.mark.parametrize("projector", ["gemma3", "mlp"])
def test_an_encoders_norms_are_compared_with_the_source_too(tmp_path: Path, projector: str) -> None:
    made = encoder_pair(BY_PROJECTOR[projector])
    made.tensors["v.blk.1.ln1.weight"] = made.tensors["v.blk.1.ln1.weight"] * np.float32(2)

    (finding,) = not_info(check(tmp_path, made)[0])

    assert (finding.rule, finding.tensor, finding.layer) == ("S202", "v.blk.1.ln1.weight", 1)


def test_gemmas_projector_without_its_offset_is_found(tmp_path: Path) -> None:
    made = encoder_pair(BY_PROJECTOR["gemma3"])
    made.tensors["mm.soft_emb_norm.weight"] = made.tensors["mm.soft_emb_norm.weight"] - 1

    (finding,) = not_info(check(tmp_path, made)[0])

    assert (finding.rule, finding.tensor) == ("S201", "mm.soft_emb_norm.weight")


def test_the_epsilon_of_the_language_model_is_not_the_encoders(tmp_path: Path) -> None:
    made = encoder_pair(replace(BY_PROJECTOR["gemma3"], epsilon=""))

    findings, not_run = check(tmp_path, made)

    assert not_info(findings) == []
    assert not_run["V201"] == "the source's vision config names no epsilon"


# The table.


def rows() -> Iterator[str]:
    for fault in FAULTS:
        names = fault.projectors.split()
        found = 0
        for projector in names:
            with tempfile.TemporaryDirectory() as folder:
                findings = findings_of(Path(folder), fault, projector)
            found += any(f.rule == fault.rule for f in findings)
        shown = f"{found} of {len(names)}"
        yield f"| {fault.name} | {fault.rule} | {shown} | {', '.join(names)} |"


def table() -> str:
    head = ["| Fault | Rule | Found | Projectors |", "|---|---|---|---|"]
    return "\n".join([*head, *rows()])


def test_the_document_has_the_table() -> None:
    assert f"{HEADING}\n" in DOCUMENT.read_text(encoding="utf-8")
    assert table() in DOCUMENT.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
