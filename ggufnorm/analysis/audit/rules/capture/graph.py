"""What llama.cpp computes: whether it runs, its graph, its norms' formulae."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import inf, isfinite
from typing import Any

from ggufnorm.analysis.audit.config import same_float32
from ggufnorm.analysis.audit.registry import NotApplicableError, Problem, Rule, rule
from ggufnorm.analysis.audit.rules.capture.common import (
    capture_of,
    of_norm,
    of_norms,
    outcome_of,
    pairs,
)
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.capture import Capture, NormCapture
from ggufnorm.core.formula import Fit, best_formula
from ggufnorm.core.model import NormKind, NormSite
from ggufnorm.core.node_names import node_words
from ggufnorm.core.tolerances import KERNEL_RESIDUAL
from ggufnorm.errors import EngineError

# What norm_sites calls by its meaning and llama.cpp builds of another operation: a group
# norm as a LayerNorm over each head (rwkv), an L2 norm as a scaled RMSNorm (delta nets).
_SAME_KINDS: frozenset[tuple[NormKind, NormKind]] = frozenset({("group", "layer"), ("l2", "rms")})

_NAMES: dict[NormKind, str] = {
    "rms": "RMSNorm",
    "layer": "LayerNorm",
    "group": "GroupNorm",
    "l2": "L2 norm",
}


_LAYER = re.compile(r"-\d+(?=@|$)")
"""The block number in llama.cpp's labels."""
_FOLDERS = re.compile(r"\S*[/\\](?=[\w.-]+:\d+: )")
"""Where llama.cpp was built, before a source file's name."""


@rule("C101", "engine-fails", "error")
def engine_fails(subject: Subject) -> Iterator[Problem]:
    """llama.cpp does not load the model, or fails or crashes when it runs it.

    What it does:
        Loads the model in a process of its own, runs one short text, and quotes
        llama.cpp's last lines if that goes wrong.

    Why it matters:
        Some files load and abort at the first token: norms stored as F16, a negative
        epsilon.

    What to do:
        Read what llama.cpp says. A wrong number of tensors or a missing key comes from the
        conversion; an unknown architecture needs a newer llama.cpp.

    Example:
        ``llama.cpp crashed (SIGABRT): ops.cpp:4132: GGML_ASSERT(eps >= 0.0f) failed``
    """
    error = outcome_of(subject)
    if isinstance(error, EngineError):
        why = _telling(error.log)
        message = f"{error}: {why}" if why else str(error)
        yield Problem(message, evidence={"log": list(error.log)})


@rule("C201", "epsilon-used", "error")
def epsilon_used(subject: Subject) -> Iterator[Problem]:
    """A norm runs with another epsilon than the file's metadata says.

    What it does:
        Compares the epsilon of each norm operation in llama.cpp's graph, as float32, with
        the metadata key that the norm should take it from.

    Why it matters:
        llama.cpp ignores keys that it does not look for and has numbers of its own in
        some graphs: changing the file's key then changes nothing.

    What to do:
        Find out which number the model was trained with; if llama.cpp runs with another,
        report it there.

    Example:
        ``11 norms run with epsilon 1e-06, llama.attention.layer_norm_rms_epsilon says 1e-05``
    """
    groups: dict[tuple[str, float, float], list[NormCapture]] = defaultdict(list)
    for site, norm in pairs(subject):
        if site.epsilon is None or site.epsilon_key is None or not _is_same_kind(site, norm):
            continue
        # A delta net's RMSNorm takes the L2 norm's epsilon over the number of channels.
        used = inf if norm.epsilon is None else norm.epsilon
        if site.kind == norm.kind and not same_float32(site.epsilon, used):
            groups[site.epsilon_key, site.epsilon, used].append(norm)
    for (key, stated, used), norms in groups.items():
        message = f"{_count(norms)} with epsilon {used:g}, {key} says {stated:g}"
        evidence = {"key": key, "epsilon": _json(stated), "epsilon_used": _json(used)}
        yield of_norms(norms, message, evidence)


@rule("C202", "kind-used", "error")
def kind_used(subject: Subject) -> Iterator[Problem]:
    """A norm runs as another kind than the file's metadata implies.

    What it does:
        Compares the operation in llama.cpp's graph (RMS_NORM, NORM, GROUP_NORM, L2_NORM)
        with the kind whose epsilon key the file carries.

    Why it matters:
        LayerNorm takes the mean off and RMSNorm does not: the hidden states differ, and
        the text is often still readable.

    What to do:
        Check ``general.architecture`` and the epsilon keys against the source's modelling
        code.

    Example:
        ``7 norms run as LayerNorm, the file's keys are RMSNorm's``
    """
    groups: dict[tuple[NormKind, NormKind], list[NormCapture]] = defaultdict(list)
    for site, norm in pairs(subject):
        if site.kind is not None and not _is_same_kind(site, norm):
            groups[site.kind, norm.kind].append(norm)
    for (stated, used), norms in groups.items():
        message = f"{_count(norms)} as {_NAMES[used]}, the file tells of {_NAMES[stated]}"
        yield of_norms(norms, message, {"kind": stated, "kind_used": used})


@rule("C203", "norm-unused", "info")
def norm_unused(subject: Subject) -> Iterator[Problem]:
    """The file has a norm's weight or bias that the graph never uses.

    What it does:
        Looks for norms of the file in llama.cpp's graph of a plain run.

    Why it matters:
        Heads for multi-token prediction rightly stand idle. Anything else was trained and
        is now left out.

    What to do:
        See whether the norm belongs to a part that only runs on demand. If not, llama.cpp
        does not implement it for this architecture.

    Example:
        ``blk.1.attn_q_norm.weight is read by no node of the graph``
    """
    capture = capture_of(subject)
    normed = {n.tensor for n in capture.norms} | {n.bias for n in capture.norms}
    not_recomputed = {s.what for s in capture.skipped}
    for site in subject.sites:
        for tensor in (site.tensor, site.bias):
            if tensor is None or tensor in normed or tensor in not_recomputed:
                continue
            read = tensor in capture.tensors
            how = "is read, but by no norm" if read else "is read by no node of the graph"
            yield Problem(f"{tensor} {how}", tensor, site.layer, {"read": read})


@rule("C204", "norm-untold", "info")
def norm_untold(subject: Subject) -> Iterator[Problem]:
    """The graph has a norm of which the file does not tell.

    What it does:
        Looks for norm operations in llama.cpp's graph that belong to no norm tensor and
        to none of the norms without tensors that the architecture is known for.

    Why it matters:
        Such a norm is in no listing of the file and has no weight to be compared.

    What to do:
        Nothing, if the source's model has it too.

    Example:
        ``node norm-0 (and 31 like it) is an RMSNorm without a weight, of which the file does
        not tell``
    """
    told = {tensor for site in subject.sites for tensor in (site.tensor,) if tensor}
    weightless: dict[int | None, list[str]] = defaultdict(list)
    for site in subject.sites:
        if site.tensor is None:
            weightless[site.layer].append(site.role)
    seen: dict[int | None, list[NormCapture]] = defaultdict(list)
    for norm in capture_of(subject).norms:
        if norm.tensor is None:
            seen[norm.layer].append(norm)
        elif norm.tensor not in told:
            message = f"the weight of {_a(norm.kind)} in the graph is {norm.tensor}, no norm's name"
            yield of_norm(norm, message, {"node": norm.node, "kind": norm.kind})
    alike: dict[tuple[str, NormKind], list[NormCapture]] = defaultdict(list)
    for layer, norms in seen.items():
        # Labels in graphs are not always the roles: as many as are told are not surprising.
        others = [n for n in norms if n.role not in weightless[layer]]
        for norm in others if len(norms) > len(weightless[layer]) else ():
            alike[_LAYER.sub("", norm.node), norm.kind].append(norm)
    for (_label, kind), norms in alike.items():
        more = f" (and {len(norms) - 1} like it)" if len(norms) > 1 else ""
        what = f"{_a(kind)} without a weight, of which the file does not tell"
        evidence = {"node": norms[0].node, "kind": kind, "epsilon": norms[0].epsilon}
        yield of_norms(norms, f"node {node_words(norms[0].node)}{more} is {what}", evidence)


@rule("C301", "recompute", "error")
def recompute(subject: Subject) -> Iterator[Problem]:
    """A norm's result is not the one that its input, weight and epsilon give.

    What it does:
        Computes every norm in NumPy from the hidden state that llama.cpp had, with the
        file's weight and bias and the graph's epsilon and kind, and compares the results
        (relative L2, at most 1e-4). Where they differ it looks for the formula that fits:
        RMSNorm, LayerNorm, L2 norm or GroupNorm, epsilon, an offset on the weight, a
        weight or bias left out, the usual slips with root and square.

    Why it matters:
        The kernel computes something else, or llama.cpp changes the weight as it loads it.

    What to do:
        The formula that fits names the difference. Try another backend, and
        llama-cpp-python of another version.

    Example:
        ``blk.0.attn_norm.weight: llama.cpp's result is off by 0.69 (relative L2); it is that
        of RMSNorm with epsilon 1e-05, weight + 1``
    """
    capture = capture_of(subject)
    for norm in capture.norms:
        if norm.residual is not None and norm.residual > KERNEL_RESIDUAL:
            yield _off(norm)
    missing = [n for n in capture.norms if n.residual is None and not _is_explained(n, capture)]
    if missing or capture.skipped:
        reasons = [s.reason for s in capture.skipped] or ["no row was finite"]
        n = len({s.what for s in capture.skipped} | {n.tensor or n.node for n in missing})
        raise NotApplicableError(f"{n} of the norms could not be recomputed: {reasons[0]}")


RULES: tuple[Rule, ...] = (
    engine_fails, epsilon_used, kind_used, norm_unused, norm_untold, recompute,
)  # fmt: skip


def _telling(log: Iterable[str]) -> str:
    """The line of llama.cpp's log that names the reason."""
    lines = list(log)
    marks = ("GGML_ASSERT", "error loading model", "GGML_ABORT", "error")
    found = (line for mark in marks for line in lines if mark in line)
    return _FOLDERS.sub("", next(found, lines[-1] if lines else ""))


def _is_same_kind(site: NormSite, norm: NormCapture) -> bool:
    return site.kind == norm.kind or (site.kind, norm.kind) in _SAME_KINDS


def _is_explained(norm: NormCapture, capture: Capture) -> bool:
    """Whether another rule tells why a norm could not be recomputed."""
    return capture.first_non_finite is not None or norm.n_rows == norm.zero_outputs


def _off(norm: NormCapture) -> Problem:
    expected = norm.formula
    fit = _fit(norm)
    start = f"llama.cpp's result is off by {norm.residual:.3g} (relative L2)"
    evidence: dict[str, Any] = {"residual": norm.residual, "expected": str(expected)}
    if fit is None:
        return of_norm(norm, f"{start} from {expected}", evidence)
    evidence |= {"formula": str(fit.formula), "formula_residual": fit.residual}
    if fit.residual > KERNEL_RESIDUAL:
        what = f"{start}, and no formula fits: the nearest is {fit.formula} ({fit.residual:.2g})"
    elif fit.formula == expected:
        what = f"{start} from {expected}, in some rows only"
    else:
        what = f"{start}; it is that of {fit.formula}"
    return of_norm(norm, what, evidence)


def _fit(norm: NormCapture) -> Fit | None:
    s = norm.sample
    if s is None:
        return None
    try:
        return best_formula(s.input, s.output, s.weight, s.bias, expected=norm.formula)
    except ValueError:
        return None


def _count(norms: list[NormCapture]) -> str:
    return f"{len(norms)} norm{'s run' if len(norms) > 1 else ' runs'}"


def _a(kind: NormKind) -> str:
    return f"{'a' if kind in ('layer', 'group') else 'an'} {_NAMES[kind]}"


def _json(value: float) -> float | str:
    # JSON has no NaN and no infinity.
    return value if isfinite(value) else str(value)
