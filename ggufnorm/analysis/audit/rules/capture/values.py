"""The values that one run of the model shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ggufnorm.analysis.audit.registry import Problem, Rule, rule
from ggufnorm.analysis.audit.rules.capture.common import capture_of, of_norms
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.audit import Severity
from ggufnorm.core.capture import NormCapture, Sighting
from ggufnorm.core.floats import F16_MAX
from ggufnorm.core.node_names import node_words


@rule("C401", "non-finite", "error")
def non_finite(subject: Subject) -> Iterator[Problem]:
    """A hidden state holds a NaN or an infinity.

    What it does:
        Looks at the result of every operation that reads the file, every norm, attention,
        activation and residual sum, and tells the first that is not finite.

    Why it matters:
        It spreads to all later tokens and layers. Logits can come out finite all the same.

    What to do:
        Look at the tensor that is read there; if its values are finite, the value
        overflowed (C404).

    Example:
        ``the first NaN is in attn_norm-1 (blk.1.attn_norm.weight) at token 0, channel 17``
    """
    first = capture_of(subject).first_non_finite
    if first is not None:
        message = f"the first {first.non_finite} is in {_where(first)}"
        yield Problem(message, first.tensor, first.layer, _figures(first))


@rule("C402", "output-zero", "error")
def output_zero(subject: Subject) -> Iterator[Problem]:
    """A norm gives nothing but zeros.

    What it does:
        Looks for norms whose results are zero for every token, their input not being so.

    Why it matters:
        What follows sees nothing of the text: the layer is switched off.

    What to do:
        Look at the norm's weight; an infinite epsilon does it too.

    Example:
        ``the result is zero at all 128 rows, and so at 6 later norms``
    """
    norms = capture_of(subject).norms
    zero = [n for n in norms if n.zero_inputs < n.n_rows == n.zero_outputs]
    if zero:
        message = f"the result is zero at all {zero[0].n_rows} rows{_also_at(zero)}"
        yield of_norms(zero, message, {"n_rows": zero[0].n_rows})


@rule("C403", "input-zero", "warning")
def input_zero(subject: Subject) -> Iterator[Problem]:
    """A norm gets nothing but zeros.

    What it does:
        Looks for norms whose input is zero for every token; where it is for some, that is
        reported as an info.

    Why it matters:
        Zero stays zero (or becomes the bias), and with epsilon 0 it becomes NaN.

    What to do:
        Look at the tensors read before the norm.

    Example:
        ``the input is zero at all 128 rows``
    """
    norms = [n for n in capture_of(subject).norms if n.zero_inputs]
    whole = [n for n in norms if n.zero_inputs == n.n_rows]
    some = [n for n in norms if n.zero_inputs < n.n_rows]
    if whole:
        n = whole[0].n_rows
        yield of_norms(whole, f"the input is zero at all {n} rows{_also_at(whole)}", {"n_rows": n})
    if some:
        n, zeros = some[0].n_rows, some[0].zero_inputs
        message = f"the input is zero at {zeros} of {n} rows"
        evidence = {"n_rows": n, "zero_inputs": zeros}
        yield replace(of_norms(some, message, evidence), severity="info")


@rule("C404", "half-precision", "warning")
def half_precision(subject: Subject) -> Iterator[Problem]:
    """Hidden states are too large for half precision, or nearly so.

    What it does:
        Looks for values above 65504, the largest of half precision. Where llama.cpp
        turns them into half precision (an F16 matrix wants its other operand in F16, the
        cache of keys and values is F16) that is an error, elsewhere a warning. Values above
        a quarter of it are reported as an info. The largest of each is named.

    Why it matters:
        Beyond it a value becomes infinite on backends that compute in half precision, and
        the rest of the text is NaN.

    What to do:
        Run with BF16 or F32 weights and cache, or on a backend that computes in float32. Such
        states belong to the checkpoint, if the file agrees with it (``--source``): converting
        again does not change them.

    Example:
        ``ffn_swiglu-1 reaches 81920 (at token 3, channel 7), above 65504, and llama.cpp
        turns it into half precision``
    """
    peaks = [(p, abs(p.value)) for p in capture_of(subject).peaks if p.value is not None]
    over = [(p, size) for p, size in peaks if size > F16_MAX]
    levels: tuple[tuple[Severity, list[tuple[Sighting, float]], str], ...] = (
        ("error", [x for x in over if x[0].in_f16], "above 65504, and llama.cpp turns it into"
         " half precision"),
        ("warning", [x for x in over if not x[0].in_f16], "above 65504, the largest number of"
         " half precision"),
        ("info", [x for x in peaks if x[1] <= F16_MAX], "and half precision ends at 65504"),
    )  # fmt: skip
    for severity, found, what in levels:
        if found:
            peak = max(found, key=lambda x: x[1])[0]
            message = f"{_where(peak, 'reaches', f'{peak.value:.6g}')}, {what}"
            evidence = {**_figures(peak), "n_nodes": len(found)}
            yield Problem(message, peak.tensor, peak.layer, evidence, severity)


RULES: tuple[Rule, ...] = (non_finite, output_zero, input_zero, half_precision)


def _also_at(norms: list[NormCapture]) -> str:
    more = len(norms) - 1
    return f", and so at {more} later norm{'s' * (more > 1)}" if more else ""


def _where(place: Sighting, verb: str = "", value: str = "") -> str:
    node = node_words(place.node, place.tensor)
    if not verb:
        return f"{node} at token {place.token}, channel {place.channel}"
    return f"{node} {verb} {value} (at token {place.token}, channel {place.channel})"


def _figures(place: Sighting) -> dict[str, Any]:
    return {
        "node": place.node,
        "op": place.op,
        "token": place.token,
        "channel": place.channel,
        "value": place.non_finite or place.value,
    }
