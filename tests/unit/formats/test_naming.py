"""From generated files to norm sites, against what llama.cpp's source says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf.constants import MODEL_TENSOR, TENSOR_NAMES

from ggufnorm.core.model import NormSite
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.naming import norm_sites, parse_norm_name
from ggufnorm.formats.naming.names import EXCLUDED, ROLES, is_norm_like
from tests.architectures import N_EMBD, N_LAYERS, is_norm_member, norm_tensors, write_model

RMS = "layer_norm_rms_epsilon"
LAYER = "layer_norm_epsilon"
EPSILON = 3e-5

# LLM_NORM or LLM_NORM_RMS in src/models/<architecture>.cpp, and the key that
# load_arch_hparams() reads there.
KINDS = {
    "rms": """
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bitnet chameleon chatglm
    cogvlm deci deepseek deepseek2 deepseek2-ocr dots1 dream ernie4_5 ernie4_5-moe eurobert
    exaone exaone4 exaone-moe falcon-h1 gemma gemma2 gemma3 gemma3n gemma4 gemma-embedding
    glm-dsa glm4 glm4moe gpt-oss granite granitehybrid granitemoe grok grovemoe hunyuan-dense
    hunyuan-moe internlm2 jamba kimi-linear lfm2 lfm2moe llada llada-moe llama llama4 mamba
    mamba2 mimo2 minicpm minicpm3 minimax-m2 mistral3 nemotron_h neo-bert olmo2
    olmoe openelm paddleocr pangu-embedded phi3 phimoe plamo plamo2 plamo3 plm qwen qwen2
    qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe refact rnd1
    rwkv6qwen2 seed_oss smallthinker smollm3 step35 t5 t5encoder xverse
    hunyuan_vl llama-embed maincoder mistral4
    """,
    "layer": """
    bert bloom codeshell cohere2 command-r dbrx falcon gpt2 gptneox jais jais2 jina-bert-v2
    jina-bert-v3 modern-bert mpt nemotron nomic-bert nomic-bert-moe orion phi2 rwkv6 rwkv7
    stablelm starcoder starcoder2
    """,
}
ARCHITECTURES = {name: kind for kind, names in KINDS.items() for name in names.split()}
NO_BIAS = {"cohere2", "command-r", "dbrx", "modern-bert"}

# (architecture, end of the tensor's stem): kind and what the note names, the literal that
# stands in the graph.
LITERALS = {
    ("chameleon", "attn_q_norm"): ("layer", "1e-05"),
    ("chameleon", "attn_k_norm"): ("layer", "1e-05"),
    ("glm-dsa", "indexer.k_norm"): ("layer", "uses 0 "),
    ("rwkv6", "time_mix_ln"): ("group", "0.00064"),
    ("rwkv6qwen2", "time_mix_ln"): ("group", "0.00064"),
    ("rwkv7", "time_mix_ln"): ("group", "0.00064"),
    ("arwkv7", "time_mix_ln"): ("group", "0.00064"),
}


def sites_of(path: Path) -> tuple[NormSite, ...]:
    with GGUFFile(path) as file:
        return norm_sites(file)[0]


def architecture_file(
    folder: Path,
    name: str,
    keys: dict[str, object],
    *,
    bias: bool = False,
    extra: tuple[str, ...] = (),
) -> Path:
    stems = norm_tensors(name)
    tensors = [f"{stem}.weight" for stem in stems]
    tensors += [f"{stem}.bias" for stem in stems] if bias else []
    metadata = {f"{name}.{key}": value for key, value in keys.items()}
    return write_model(folder / "model.gguf", name, metadata, [*tensors, *extra])


@pytest.mark.parametrize("both_keys", [False, True])
@pytest.mark.parametrize(("name", "kind"), ARCHITECTURES.items())
def test_every_norm_of_an_architecture_is_listed_with_its_kind_and_epsilon(
    tmp_path: Path, name: str, kind: str, both_keys: bool
) -> None:
    key, other = (RMS, LAYER) if kind == "rms" else (LAYER, RMS)
    key = f"attention.{key}"
    keys: dict[str, object] = {key: EPSILON}
    keys |= {f"attention.{other}": 7e-4} if both_keys else {}
    bias = kind == "layer" and name not in NO_BIAS
    path = architecture_file(tmp_path, name, keys, bias=bias)

    weighted = [s for s in sites_of(path) if s.tensor]

    stems = norm_tensors(name)
    assert sorted(s.tensor or "" for s in weighted) == sorted(f"{stem}.weight" for stem in stems)
    for site in weighted:
        stem = (site.tensor or "").removesuffix(".weight")
        expected_kind, literal = LITERALS.get(
            (name, stem.removeprefix(f"blk.{site.layer}.")), (kind, "")
        )
        assert site.kind == expected_kind, stem
        if literal:
            assert (site.epsilon, site.epsilon_key) == (None, None), stem
            assert literal in site.note, stem
        else:
            assert site.epsilon == EPSILON, stem
            assert (site.epsilon_key, site.note) == (f"{name}.{key}", ""), stem
        assert site.bias == (f"{stem}.bias" if bias else None)
        assert not site.inferred


# Roles in execution order, read off build_arch_graph() in src/models/<architecture>.cpp.
# "0." and "1." are the blocks.
ORDERED_ROLES = {
    "llama": "0.attn 0.ffn 1.attn 1.ffn output",
    "gemma3": "0.attn 0.q 0.k 0.post_attn 0.ffn 0.post_ffn"
    " 1.attn 1.q 1.k 1.post_attn 1.ffn 1.post_ffn output",
    "olmo2": "0.q 0.k 0.post_attn 0.post_ffn 1.q 1.k 1.post_attn 1.post_ffn output",
    "exaone4": "0.q 0.k 0.post_attn 0.post_ffn 1.q 1.k 1.post_attn 1.post_ffn output",
    "gpt-oss": "0.attn 0.ffn 1.attn 1.ffn output",
    "seed_oss": "0.attn 0.ffn 1.attn 1.ffn output",
    "bert": "token_embd 0.attn_output 0.layer_output 1.attn_output 1.layer_output output",
    "dbrx": "0.attn 0.ffn 1.attn 1.ffn output",
    "deepseek2": "0.attn 0.q_a 0.kv_a 0.ffn 1.attn 1.q_a 1.kv_a 1.ffn output",
    "falcon": "0.attn 0.attn_2 1.attn 1.attn_2 output",
    "bitnet": "0.attn 0.attn_sub 0.ffn 0.ffn_sub 1.attn 1.attn_sub 1.ffn 1.ffn_sub output",
    "rwkv6": "token_embd 0.attn 0.time_mix 0.ffn 1.attn 1.time_mix 1.ffn output",
    "grok": "0.attn 0.attn_output 0.ffn 0.post_ffn 0.layer_output"
    " 1.attn 1.attn_output 1.ffn 1.post_ffn 1.layer_output output",
    "t5": "0.enc.attn 0.enc.ffn 1.enc.attn 1.enc.ffn enc.output"
    " 0.dec.attn 0.dec.cross_attn 0.dec.ffn 1.dec.attn 1.dec.cross_attn 1.dec.ffn dec.output",
    "glm4moe": "0.nextn.embd 0.nextn.hidden 0.attn 0.q 0.k 0.ffn 0.nextn.shared_head"
    " 1.nextn.embd 1.nextn.hidden 1.attn 1.q 1.k 1.ffn 1.nextn.shared_head output",
    "jamba": "0.attn 0.ssm_b 0.ssm_c 0.ssm_dt 0.ffn 1.attn 1.ssm_b 1.ssm_c 1.ssm_dt 1.ffn output",
}


@pytest.mark.parametrize("name", ORDERED_ROLES)
def test_roles_come_in_execution_order(tmp_path: Path, name: str) -> None:
    key = f"attention.{LAYER if ARCHITECTURES[name] == 'layer' else RMS}"
    sites = sites_of(architecture_file(tmp_path, name, {key: EPSILON}))

    found = [s.role if s.layer is None else f"{s.layer}.{s.role}" for s in sites]

    # A newer gguf-py may know more tensors of an architecture: the first test is for those.
    expected = ORDERED_ROLES[name].split()
    assert [f for f in found if f in expected] == expected


@pytest.mark.parametrize("name", ["gemma2", "glm4", "plamo2", "afmoe"])
def test_post_attention_norm_beside_an_ffn_norm_is_the_attentions(
    tmp_path: Path, name: str
) -> None:
    sites = sites_of(architecture_file(tmp_path, name, {f"attention.{RMS}": EPSILON}))

    roles = {s.tensor: s.role for s in sites}

    assert roles["blk.1.post_attention_norm.weight"] == "post_attn"
    assert roles["blk.1.ffn_norm.weight"] == "ffn"


@pytest.mark.parametrize("name", ["glm4moe", "qwen3next", "qwen35", "qwen35moe", "gpt-oss"])
def test_post_attention_norm_without_an_ffn_norm_is_the_ffns(tmp_path: Path, name: str) -> None:
    sites = sites_of(architecture_file(tmp_path, name, {f"attention.{RMS}": EPSILON}))

    assert {s.tensor: s.role for s in sites}["blk.0.post_attention_norm.weight"] == "ffn"


@pytest.mark.parametrize("name", ["lfm2", "lfm2moe"])
def test_lfm2_calls_its_output_norm_token_embd_norm(tmp_path: Path, name: str) -> None:
    sites = sites_of(architecture_file(tmp_path, name, {f"attention.{RMS}": EPSILON}))

    assert sites[-1].tensor == "token_embd_norm.weight"
    assert sites[-1].role == "output"


@pytest.mark.parametrize(
    ("name", "kind", "key"),
    [
        ("nemotron", "layer", LAYER),
        ("stablelm", "layer", LAYER),
        ("t5", "rms", RMS),
        ("t5encoder", "rms", RMS),
        ("nemotron_h", "rms", RMS),
        ("llama", "rms", RMS),
        ("cohere2moe", "rms", RMS),
    ],
)
def test_with_both_keys_the_architecture_decides(
    tmp_path: Path, name: str, kind: str, key: str
) -> None:
    metadata = {f"{name}.attention.{RMS}": 1e-6, f"{name}.attention.{LAYER}": 1e-5}
    path = write_model(tmp_path / "m.gguf", name, metadata, ["output_norm.weight"])

    (site,) = (s for s in sites_of(path) if s.tensor)

    assert (site.kind, site.epsilon_key) == (kind, f"{name}.attention.{key}")
    assert site.epsilon == {RMS: 1e-6, LAYER: 1e-5}[key]


@pytest.mark.parametrize(("key", "kind"), [(RMS, "rms"), (LAYER, "layer")])
def test_cohere2moe_takes_the_kind_of_the_key_that_is_present(
    tmp_path: Path, key: str, kind: str
) -> None:
    metadata = {f"cohere2moe.attention.{key}": EPSILON}
    path = write_model(tmp_path / "m.gguf", "cohere2moe", metadata, ["blk.0.attn_norm.weight"])

    (site,) = sites_of(path)

    assert (site.kind, site.epsilon) == (kind, EPSILON)


def test_both_keys_of_an_unknown_architecture_leave_the_kind_open_without_a_bias(
    tmp_path: Path,
) -> None:
    metadata = {f"newer.attention.{RMS}": 1e-6, f"newer.attention.{LAYER}": 1e-5}
    names = ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "blk.0.ffn_norm.bias"]
    attn, ffn = sites_of(write_model(tmp_path / "m.gguf", "newer", metadata, names))

    assert (attn.kind, attn.epsilon) == (None, None)
    assert "both" in attn.note
    assert (ffn.kind, ffn.epsilon) == ("layer", 1e-5)


def test_without_any_key_kind_and_epsilon_stay_unknown(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "llama", {}, ["output_norm.weight"])

    (site,) = sites_of(path)

    assert (site.kind, site.epsilon, site.epsilon_key) == (None, None, None)
    assert "llama.attention.layer_norm_rms_epsilon" in site.note


def test_a_layer_norm_architecture_with_the_other_key_only_is_noted(tmp_path: Path) -> None:
    metadata = {f"gpt2.attention.{RMS}": EPSILON}
    (site,) = sites_of(write_model(tmp_path / "m.gguf", "gpt2", metadata, ["output_norm.weight"]))

    assert "gpt2.attention.layer_norm_epsilon" in site.note


def test_nemotron_h_falls_back_on_the_layer_norm_key_but_stays_rms(tmp_path: Path) -> None:
    metadata = {f"nemotron_h_moe.attention.{LAYER}": EPSILON}
    names = ["blk.1.attn_norm.weight", "blk.1.nextn.shared_head_norm.weight"]
    attn, head = sites_of(write_model(tmp_path / "m.gguf", "nemotron_h_moe", metadata, names))

    assert (attn.kind, attn.epsilon) == ("rms", EPSILON)
    assert (head.kind, head.epsilon) == ("layer", EPSILON)


def test_an_array_of_epsilons_gives_each_layer_its_own(tmp_path: Path) -> None:
    metadata = {f"llama.attention.{RMS}": [1e-5, 1e-6]}
    names = ["blk.0.attn_norm.weight", "blk.1.attn_norm.weight", "output_norm.weight"]
    first, second, output = sites_of(write_model(tmp_path / "m.gguf", "llama", metadata, names))

    assert (first.epsilon, second.epsilon) == (1e-5, 1e-6)
    assert output.epsilon is None
    assert "no number for this norm" in output.note


def test_wavtokenizer_has_group_norms_and_layer_norms(tmp_path: Path) -> None:
    keys: dict[str, object] = {
        "attention.layer_norm_epsilon": 1e-6,
        "attention.group_norm_epsilon": 2e-6,
        "attention.group_norm_groups": 4,
    }
    sites = sites_of(architecture_file(tmp_path, "wavtokenizer-dec", keys, bias=True))

    groups = [s for s in sites if s.role.startswith("posnet.")]
    layers = [s for s in sites if not s.role.startswith("posnet.")]
    assert {s.role for s in groups} == {
        "posnet.conv1", "posnet.conv2", "posnet.attn", "posnet.output",
    }  # fmt: skip
    assert {(s.kind, s.epsilon, s.groups) for s in groups} == {("group", 2e-6, 4)}
    assert {s.role for s in layers} == {"token_embd", "convnext", "output"}
    assert {(s.kind, s.epsilon, s.groups) for s in layers} == {("layer", 1e-6, None)}


def test_rwkv_groups_are_its_heads(tmp_path: Path) -> None:
    keys: dict[str, object] = {f"attention.{LAYER}": EPSILON, "wkv.head_size": 2}
    sites = sites_of(architecture_file(tmp_path, "rwkv6", keys, bias=True))

    assert {s.groups for s in sites if s.role == "time_mix"} == {N_EMBD // 2}


def weightless(path: Path) -> set[tuple[int | None, str, str | None, float | None]]:
    found = [s for s in sites_of(path) if s.tensor is None]
    assert all("no weight" in s.note and s.dtype is None and s.shape == () for s in found)
    return {(s.layer, s.role, s.kind, s.epsilon) for s in found}


def test_all_norms_of_olmo_have_no_weight(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "m.gguf", "olmo", {f"olmo.attention.{LAYER}": EPSILON},
        ["token_embd.weight", *(f"blk.{i}.attn_q.weight" for i in range(N_LAYERS))],
    )  # fmt: skip

    expected = {(i, r, "layer", EPSILON) for i in range(N_LAYERS) for r in ("attn", "ffn")}
    assert weightless(path) == expected | {(None, "output", "layer", EPSILON)}


@pytest.mark.parametrize(("experts", "layers"), [(16, {0, 1, 2, 4}), (128, set())])
def test_llama4_normalizes_q_and_k_in_rope_layers(
    tmp_path: Path, experts: int, layers: set[int]
) -> None:
    metadata = {
        f"llama4.attention.{RMS}": EPSILON,
        "llama4.expert_count": experts,
        "llama4.block_count": 5,
    }
    names = [f"blk.{i}.attn_norm.weight" for i in range(5)]
    path = write_model(tmp_path / "m.gguf", "llama4", metadata, names)

    assert weightless(path) == {(i, r, "rms", EPSILON) for i in layers for r in ("q", "k")}


def test_gemma4_normalizes_values_where_a_layer_has_its_own(tmp_path: Path) -> None:
    keys: dict[str, object] = {f"attention.{RMS}": EPSILON, "attention.shared_kv_layers": 1}
    path = architecture_file(tmp_path, "gemma4", keys, extra=("blk.1.ffn_gate_inp.weight",))

    assert weightless(path) == {(0, "v", "rms", EPSILON), (1, "ffn_router", "rms", EPSILON)}


def test_gemma3n_normalizes_values(tmp_path: Path) -> None:
    path = architecture_file(tmp_path, "gemma3n", {f"attention.{RMS}": EPSILON})

    assert weightless(path) == {(i, "v", "rms", EPSILON) for i in range(N_LAYERS)}


@pytest.mark.parametrize("name", ["qwen3next", "qwen35", "qwen35moe"])
def test_delta_nets_have_l2_norms_in_their_linear_layers(tmp_path: Path, name: str) -> None:
    path = architecture_file(
        tmp_path, name, {f"attention.{RMS}": EPSILON}, extra=("blk.1.ssm_conv1d.weight",)
    )

    assert weightless(path) == {(1, "q", "l2", EPSILON), (1, "k", "l2", EPSILON)}


def test_deepseek4_normalizes_queries_and_hyper_connections(tmp_path: Path) -> None:
    metadata = {f"deepseek4.attention.{RMS}": EPSILON}
    names = ["output_hc_fn.weight", "blk.0.hc_attn_fn.weight", "blk.1.hc_ffn_fn.weight"]
    path = write_model(tmp_path / "m.gguf", "deepseek4", metadata, names)

    assert weightless(path) == {
        (0, "q", "rms", EPSILON), (1, "q", "rms", EPSILON), (0, "hc_attn", "rms", EPSILON),
        (1, "hc_ffn", "rms", EPSILON), (None, "output_hc", "rms", EPSILON),
    }  # fmt: skip


def test_rwkv7_has_an_l2_norm_of_a_literal_epsilon(tmp_path: Path) -> None:
    path = architecture_file(tmp_path, "rwkv7", {f"attention.{LAYER}": EPSILON}, bias=True)

    assert weightless(path) == {(i, "k", "l2", None) for i in range(N_LAYERS)}
    assert all("1e-12" in s.note for s in sites_of(path) if s.kind == "l2")


def test_more_blocks_than_tensors_are_not_believed(tmp_path: Path) -> None:
    metadata: dict[str, object] = {f"olmo.attention.{LAYER}": EPSILON, "olmo.block_count": 2**31}
    names = [f"blk.{i}.attn_q.weight" for i in range(3)]
    path = write_model(tmp_path / "m.gguf", "olmo", metadata, names)

    assert len([s for s in sites_of(path) if s.tensor is None]) == 3 * 2 + 1


def test_an_architecture_newer_than_gguf_py_is_read_by_the_shape_of_its_names(
    tmp_path: Path,
) -> None:
    metadata = {f"newer.attention.{RMS}": EPSILON}
    head, matrix = np.ones((4, 2), np.float32), np.ones((N_EMBD, N_EMBD), np.float32)
    row = np.ones(N_EMBD, np.float32)
    tensors = {
        "blk.0.attn_norm.weight": row,
        "blk.0.attn_rope_norm.weight": head,
        "blk.1.mixer.ln_out.weight": row,
        "blk.1.norm_proj.weight": matrix,
        "blk.1.attn_q.bias": row,
        "rope_freqs.weight": row,
        "blk.1.lonely_norm.bias": row,
    }
    with GGUFFile(write_model(tmp_path / "m.gguf", "newer", metadata, tensors)) as file:
        sites, skipped = norm_sites(file)

    assert [(s.layer, s.role, s.kind, s.epsilon, s.inferred) for s in sites] == [
        (0, "attn", "rms", EPSILON, True),
        (0, "attn_rope", "rms", EPSILON, True),
        (1, "mixer.out", "rms", EPSILON, True),
    ]
    assert {s.what: s.reason for s in skipped} == {
        "blk.1.norm_proj.weight": "named like a norm, but its shape 8×8 is a matrix's",
        "blk.1.lonely_norm.bias": "a norm's bias without a weight",
    }


def test_a_tensor_newer_than_gguf_py_in_a_known_architecture_is_marked(tmp_path: Path) -> None:
    metadata = {f"llama.attention.{RMS}": EPSILON}
    names = ["blk.0.attn_norm.weight", "blk.0.gate_pre_ln.weight"]
    sites = sites_of(write_model(tmp_path / "m.gguf", "llama", metadata, names))

    assert {s.role: s.inferred for s in sites} == {"attn": False, "gate_pre": True}


# tools/mtmd/models/*.cpp: (projector, tensor): kind, and the literal where one stands in
# the code; None where the key counts.
ENCODERS = {
    ("mlp", "v.blk.0.ln1"): ("layer", None),
    ("mlp", "v.pre_ln"): ("layer", None),
    ("pixtral", "v.blk.0.ln1"): ("rms", None),
    ("pixtral", "mm.input_norm"): ("rms", None),
    ("gemma3", "v.blk.0.ln2"): ("layer", None),
    ("gemma3", "mm.soft_emb_norm"): ("rms", None),
    ("gemma3nv", "v.conv_stem.bn"): ("rms", "1e-06"),
    ("gemma3nv", "mm.soft_emb_norm"): ("rms", "1e-06"),
    ("gemma4v", "v.blk.0.attn_q_norm"): ("rms", None),
    ("qwen2vl_merger", "v.blk.0.ln1"): ("layer", None),
    ("qwen2.5vl_merger", "v.blk.0.ln1"): ("rms", None),
    ("qwen3vl_merger", "v.deepstack.0.norm"): ("layer", None),
    ("internvl", "v.blk.0.ln1"): ("layer", None),
    ("internvl", "mm.model.mlp.0"): ("layer", "1e-05"),
    ("nemotron_v2_vl", "mm.model.mlp.0"): ("rms", "1e-06"),
    ("glm4v", "v.norm_embd"): ("rms", None),
    ("glm4v", "mm.post_norm"): ("layer", "1e-05"),
    ("kimivl", "mm.input_norm"): ("layer", "1e-05"),
    ("kimik25", "mm.input_norm"): ("layer", None),
    ("lfm2", "mm.input_norm"): ("layer", "1e-05"),
    ("youtuvl", "mm.input_norm"): ("rms", "1e-06"),
    ("cogvlm", "mm.post_fc_norm"): ("layer", "1e-05"),
    ("hunyuanvl", "mm.pre_norm"): ("rms", None),
    ("hunyuanvl", "v.blk.0.ln1"): ("layer", None),
    ("mimovl", "v.post_ln"): ("layer", "1e-06"),
    ("deepseekocr", "v.sam.blk.0.pre_ln"): ("layer", "1e-06"),
    ("deepseekocr", "v.blk.0.ln1"): ("layer", "1e-05"),
    ("deepseekocr2", "v.blk.0.ln1"): ("rms", None),
    ("resampler", "resampler.ln_kv"): ("layer", None),
    ("ultravox", "a.blk.0.ln1"): ("layer", None),
    ("ultravox", "mm.a.norm_mid"): ("rms", "1e-06"),
    ("lfm2a", "a.blk.0.norm_conv"): ("layer", "1e-05"),
    ("lfm2a", "mm.a.mlp.0"): ("layer", "1e-05"),
    ("gemma4a", "a.conv1d.0.norm"): ("layer", "1e-06"),
    ("gemma4a", "a.blk.0.conv_norm"): ("rms", "1e-06"),
    ("granite_speech", "a.proj_blk.0.ffn_norm"): ("layer", "1e-12"),
    ("granite_speech", "a.blk.0.ffn_norm_1"): ("layer", None),
}


@pytest.mark.parametrize(("projector", "stem"), ENCODERS)
def test_norms_of_vision_and_audio_encoders(tmp_path: Path, projector: str, stem: str) -> None:
    kind, literal = ENCODERS[projector, stem]
    modality = "audio" if stem.startswith(("a.", "mm.a.")) else "vision"
    key = f"clip.{modality}.attention.layer_norm_epsilon"
    metadata = {"clip.projector_type": projector, key: EPSILON}
    path = write_model(tmp_path / "m.gguf", "clip", metadata, [f"{stem}.weight"])

    (site,) = (s for s in sites_of(path) if s.tensor)

    assert site.kind == kind
    assert (site.epsilon, site.epsilon_key) == ((None, None) if literal else (EPSILON, key))
    assert (literal or "") in site.note


def test_a_file_of_two_modalities_has_two_projectors_and_two_epsilons(tmp_path: Path) -> None:
    metadata = {
        "clip.vision.projector_type": "gemma4v",
        "clip.audio.projector_type": "ultravox",
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.audio.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.block_count": 1,
    }
    names = ["v.blk.0.ln1.weight", "a.blk.0.ln1.weight"]
    sites = sites_of(write_model(tmp_path / "m.gguf", "clip", metadata, names))

    assert [(s.role, s.kind, s.epsilon) for s in sites] == [
        ("v.attn", "rms", 1e-6),
        ("v.v", "rms", 1e-6),
        ("mm.input", "rms", 1e-6),
        ("a.attn", "layer", 1e-5),
    ]
    assert [s.tensor for s in sites if s.tensor is None] == [None, None]


def test_the_large_internvl_encoder_has_rms_norms(tmp_path: Path) -> None:
    metadata = {
        "clip.projector_type": "internvl",
        "clip.vision.attention.layer_norm_epsilon": EPSILON,
        "clip.vision.embedding_length": 3200,
        "clip.vision.block_count": 45,
    }
    (site,) = sites_of(write_model(tmp_path / "m.gguf", "clip", metadata, ["v.blk.0.ln1.weight"]))

    assert site.kind == "rms"


def test_an_unknown_projector_leaves_the_kind_open_without_a_bias(tmp_path: Path) -> None:
    key = "clip.vision.attention.layer_norm_epsilon"
    metadata = {"clip.projector_type": "newer", key: EPSILON}
    names = ["v.blk.0.ln1.weight", "v.blk.0.ln2.weight", "v.blk.0.ln2.bias"]
    attn, ffn = sites_of(write_model(tmp_path / "m.gguf", "clip", metadata, names))

    assert (attn.kind, attn.epsilon, attn.epsilon_key) == (None, EPSILON, key)
    assert "newer" in attn.note
    assert ffn.kind == "layer"


def test_batch_norms_are_skipped_with_the_reason(tmp_path: Path) -> None:
    metadata = {"clip.projector_type": "parakeet", "clip.audio.attention.layer_norm_epsilon": 1e-5}
    names = [
        "a.blk.0.conv_norm.weight", "a.blk.0.conv_norm.bias",
        "a.blk.0.conv_norm_mean", "a.blk.0.conv_norm_var",
    ]  # fmt: skip
    with GGUFFile(write_model(tmp_path / "m.gguf", "clip", metadata, names)) as file:
        sites, skipped = norm_sites(file)

    assert sites == ()
    assert {s.what for s in skipped} == {names[0], names[2], names[3]}
    assert all("batch norm" in s.reason for s in skipped)


def test_every_norm_like_tensor_of_gguf_py_has_a_role_or_a_reason() -> None:
    norm_like = {
        m.name
        for m, template in TENSOR_NAMES.items()
        if is_norm_member(m) or is_norm_like(template.replace("{bid}", "0"))
    }

    assert norm_like - ROLES.keys() - EXCLUDED.keys() == set()


def test_roles_are_given_to_norm_like_tensors_only() -> None:
    others = {m.name for m in MODEL_TENSOR if not is_norm_member(m)}

    assert ROLES.keys() & others == set()


@pytest.mark.parametrize(
    "tensor",
    ["blk.0.attn_q.bias", "rope_factors_long.weight", "output.weight", "norm", "",
     "blk.3.ffn_down.weight", "blk.0.ffn_gate_inp.scale", "v.blk.0.ln1.input_scale"],
)  # fmt: skip
def test_other_tensors_are_no_norms(tensor: str) -> None:
    assert parse_norm_name(tensor) is None
