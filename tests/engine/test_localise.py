"""Where drift is: against hidden states of torch, logits of an unobserved run, and definitions."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ggufnorm
from ggufnorm.analysis.drift.localise import robust_z
from ggufnorm.core.drift import DriftReport
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.runs.options import SideOptions
from ggufnorm.samples import default_text
from tests import framework_models as made
from tests import in_process, models, plain_decode

LLAMA = made.NETWORKS["llama"]
LAYER, CHANNEL = 1, 5
N_CTX = 32


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, text: str) -> dict[str, Any]:
    """A network, and the same with a little noise in each layer and one loud channel."""
    folder = tmp_path_factory.mktemp("localise")
    reference = made.build(LLAMA)
    loud = copy.deepcopy(reference)
    with torch.no_grad():
        torch.manual_seed(0)
        for layer in loud.model.layers:
            down = layer.mlp.down_proj.weight
            down += 1e-3 * down.std() * torch.randn_like(down)
        loud.model.layers[LAYER].mlp.down_proj.weight[CHANNEL] *= 300
    paths = [
        made.write(folder / f"{name}.gguf", LLAMA, made.converted(model, LLAMA))
        for name, model in (("reference", reference), ("loud", loud))
    ]
    with in_process.engine(), LlamaModel(str(paths[0]), EngineOptions(N_CTX, 1)) as model:
        ids = model.tokenize(text)[:N_CTX]
        if model.bos is not None:
            ids[0] = model.bos
    # Half-precision keys and values would be as far off as the little noise is.
    whole = SideOptions(flash_attention="off", cache_type_k="f32", cache_type_v="f32")
    report = ggufnorm.drift(
        *paths, text=text, n_ctx=N_CTX, chunks=1, n_threads=1, options=whole, options_ref=whole
    )
    weights = [m.model.layers[i].mlp.down_proj.weight.detach().double().numpy()
               for m in (reference, loud) for i in range(made.LAYERS)]  # fmt: skip
    return {
        "report": report,
        "seen": [sums(m, ids) for m in (reference, loud)],
        "gated": gated(reference, ids),
        "down": (weights[: made.LAYERS], weights[made.LAYERS :]),
    }


def gated(model: Any, ids: np.ndarray) -> list[np.ndarray]:
    """What goes into each layer's ``ffn_down`` in torch."""
    found: list[np.ndarray] = []
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _m, x: found.append(x[0].detach().double().numpy()[0])
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(torch.from_numpy(ids.astype(np.int64))[None])
    for hook in hooks:
        hook.remove()
    found[-1] = found[-1][len(ids) // 2 :]  # as below
    return found


def sums(model: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """A Llama's residual sums in torch and what its feed-forwards add, by llama.cpp's names."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, value: torch.Tensor) -> None:
        found[name] = value.detach().double().numpy()[0]

    hooks = []
    for i, layer in enumerate(model.model.layers):
        hooks += [
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _m, x, i=i: keep(f"ffn_inp-{i}", x[0])
            ),
            layer.mlp.register_forward_hook(lambda _m, _x, y, i=i: keep(f"ffn_out-{i}", y)),
            layer.register_forward_hook(
                lambda _m, _x, y, i=i: keep(f"l_out-{i}", y[0] if isinstance(y, tuple) else y)
            ),
        ]
    with torch.no_grad():
        model(torch.from_numpy(ids.astype(np.int64))[None])
    for hook in hooks:
        hook.remove()
    # Behind its last attention llama.cpp computes the rows alone that give logits.
    last = len(model.model.layers) - 1
    for name in (f"ffn_inp-{last}", f"ffn_out-{last}", f"l_out-{last}"):
        found[name] = found[name][len(ids) // 2 :]
    return found


def test_cumulative_drift_is_torch_s_at_every_sum(files: dict[str, Any]) -> None:
    ref, loud = files["seen"]
    found = {o.node: o.cumulative for o in files["report"].operations}
    for node in ref:
        d = loud[node] - ref[node]
        expected = np.linalg.norm(d) / np.linalg.norm(ref[node])
        assert found[node].rel_l2 == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert found[node].max_abs == pytest.approx(np.abs(d).max(), rel=1e-3, abs=1e-6)


def test_local_error_is_the_changed_matrix_on_torch_s_unchanged_input(
    files: dict[str, Any],
) -> None:
    found = {o.tensor: o.local for o in files["report"].operations}
    for i, (x, ref, loud) in enumerate(zip(files["gated"], *files["down"], strict=True)):
        d, local = x @ (loud - ref).T, found[f"blk.{i}.ffn_down.weight"]
        assert local.rel_l2 == pytest.approx(
            np.linalg.norm(d) / np.linalg.norm(x @ ref.T), rel=1e-3
        )
        token, channel = np.unravel_index(np.abs(d).argmax(), d.shape)
        behind = N_CTX - len(x)
        assert (local.max_abs_token, local.max_abs_channel) == (token + behind, channel)
    for name in ("attn_q", "attn_output", "ffn_up"):
        assert found[f"blk.2.{name}.weight"].rel_l2 == 0


def test_drift_and_growth_of_each_layer_are_torch_s(files: dict[str, Any]) -> None:
    ref, loud = files["seen"]
    layers = files["report"].localisation.layers
    assert [layer.node for layer in layers] == [f"l_out-{i}" for i in range(made.LAYERS)]
    expected = [
        np.linalg.norm(loud[layer.node] - ref[layer.node]) / np.linalg.norm(ref[layer.node])
        for layer in layers
    ]
    assert [layer.rel_l2 for layer in layers] == pytest.approx(expected, rel=1e-3)
    assert layers[0].growth is None
    growth = [b / a for a, b in pairwise(expected)]
    assert [layer.growth for layer in layers[1:]] == pytest.approx(growth, rel=1e-3)
    assert growth[LAYER - 1] > 100


def test_outlier_channels_hold_torch_s_share_of_error_and_energy(files: dict[str, Any]) -> None:
    ref, loud = files["seen"]
    shares: dict[int, tuple[float, float, str]] = {}
    for node in (n for n in ref if not n.startswith("ffn_out")):
        error = ((loud[node] - ref[node]) ** 2).sum(axis=0)
        energy = (ref[node] ** 2).sum(axis=0)
        error, energy = error / max(error.sum(), 1e-300), energy / energy.sum()
        for c in np.flatnonzero((error > 25 / len(error)) | (energy > 25 / len(error))).tolist():
            shares[c] = max(shares.get(c, (0.0, 0.0, "")), (error[c], energy[c], node))
    found = files["report"].localisation.outlier_channels
    assert found[0].channel == CHANNEL
    assert {c.channel: c.node for c in found} == {c: s[2] for c, s in shares.items()}
    for c in found:
        error, energy, _ = shares[c.channel]
        assert (c.error_share, c.energy_share) == pytest.approx((error, energy), rel=1e-3)


def test_the_peak_and_what_is_left_below_half_precision_are_torch_s(files: dict[str, Any]) -> None:
    _, loud = files["seen"]
    node = max(loud, key=lambda name: np.abs(loud[name]).max())
    token, channel = np.unravel_index(np.abs(loud[node]).argmax(), loud[node].shape)
    value = float(loud[node][token, channel])
    localisation = files["report"].localisation
    peak = localisation.peak
    assert (peak.node, peak.layer, peak.channel) == (node, int(node[-1]), CHANNEL)
    behind = N_CTX - len(loud[node])
    assert (peak.token, peak.channel) == (token + behind, channel)
    assert peak.value == pytest.approx(value, rel=1e-3)
    assert localisation.f16_headroom == pytest.approx(65504 / abs(value), rel=1e-3)


def test_the_worst_tokens_are_those_of_an_unobserved_run(sample: Path, sample_q4: Path) -> None:
    report = ggufnorm.drift(sample, sample_q4, chunks=3)
    (ref, following), (quant, _) = (
        plain_decode.logits(p, default_text(), n_ctx=512, chunks=3) for p in (sample, sample_q4)
    )
    p, q = (np.exp(m.astype(np.float64)) for m in (ref, quant))
    p, q = (m / m.sum(axis=1, keepdims=True) for m in (p, q))
    kld = (p * np.log(p / q)).sum(axis=1)
    worst = report.localisation.worst_tokens
    at = np.argsort(-kld)[: len(worst)]
    # The 255 scored positions of a chunk predict its tokens 257 to 511.
    assert [w.token for w in worst] == (at // 255 * 512 + 257 + at % 255).tolist()
    assert [w.kld for w in worst] == pytest.approx(kld[at], rel=1e-4)
    assert [w.p_ref for w in worst] == pytest.approx(p[at, following[at]], rel=1e-4)
    assert [w.p_quant for w in worst] == pytest.approx(q[at, following[at]], rel=1e-4)


def drift(tiny: Path, target: Path, text: str, changes: dict[str, Any]) -> DriftReport:
    models.edited(tiny, target, tensors=changes)
    return ggufnorm.drift(tiny, target, text=text, n_ctx=N_CTX, chunks=2, n_threads=1)


def test_a_jump_is_the_layer_out_of_line_with_the_others(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    levels = (0.01, 0.01, 0.3)
    for order in (levels, levels[::-1], (0.01, 0.01, 0.01)):
        changes = {
            f"blk.{i}.ffn_down.weight": models.noise(level, i) for i, level in enumerate(order)
        }
        report = drift(tiny["llama"], tmp_path / "noisy.gguf", text, changes)
        jump = report.localisation.first_jump
        if max(order) == 0.01:
            assert jump is None
            continue
        assert jump is not None
        assert jump.tensor == f"blk.{order.index(0.3)}.ffn_down.weight"
        local = {o.tensor: o.local.rel_l2 for o in report.operations if o.tensor in changes}
        a, b = sorted(math.log(v) for t, v in local.items() if t != jump.tensor)
        spread = max(0.1, 1.4826 * (b - a) / 2)
        assert jump.value == pytest.approx((math.log(local[jump.tensor]) - (a + b) / 2) / spread)


def test_a_robust_z_score_by_hand() -> None:
    others = [1.0, math.e, math.e**2]
    assert robust_z(math.e**4, others) == pytest.approx(3 / 1.4826)
    assert robust_z(math.e**4, [math.e] * 3) == pytest.approx(3 / 0.1)
    assert robust_z(0.0, others) is None
    assert robust_z(1.0, [0.0, 0.0, 1.0]) is None


def test_the_first_nan_is_where_it_is_made(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    def spoil(w: np.ndarray) -> np.ndarray:
        w[3] = np.nan
        return w

    sound = drift(tiny["llama"], tmp_path / "sound.gguf", text, {})
    assert sound.localisation.first_non_finite is None
    changes = {"blk.1.ffn_down.weight": spoil}
    report = drift(tiny["llama"], tmp_path / "nan.gguf", text, changes)
    found = report.localisation.first_non_finite
    assert found is not None
    assert (found.tensor, found.layer, found.token) == ("blk.1.ffn_down.weight", 1, 0)
