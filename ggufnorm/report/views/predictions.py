"""What drift does to the predictions: of drift reports and of comparisons with logits."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.core.drift import ModelFacts
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.severity import COSTS, FEW_POSITIONS, USUAL_KLD, severity
from ggufnorm.report.formatting import counted, number, plus_minus
from ggufnorm.report.view import Figure, Section, facts

QUOTED_KLD = f"Llama 3 8B: {', '.join(f'{k} {v}' for k, v in USUAL_KLD.items())}"


_FAMILY, _F16_BYTES = "llama", (12e9, 18e9)
"""Architecture and size in half precision of the models whose cost is known."""


def _yardstick(kld: float, quant: ModelFacts, reference: ModelFacts) -> str:
    """What a type costs models whose cost is known, beside what was measured.

    The type is the one that the file claims, or else the coarsest that costs no more.
    """
    claimed = (quant.file_type or "").removeprefix("MOSTLY_")
    model = "Llama 3 8B"
    low, high = _F16_BYTES
    if reference.architecture == _FAMILY and low <= reference.n_bytes <= high:
        unknown = ""
    else:
        unknown = "; for this model none is known"
    if claimed not in COSTS[model]:
        below = [t for t, cost in COSTS[model].items() if cost <= kld]
        return f"{f'more than {below[-1]}' if below else 'less than Q8_0'} costs {model}{unknown}"
    if unknown:
        return f"{claimed} costs {model} {COSTS[model][claimed]:g}{unknown}"
    costs = " and ".join(f"{name} {of[claimed]:g}" for name, of in COSTS.items())
    return f"{claimed} costs {costs}"


def severity_figure(
    s: LogitStatistics | None, quant: ModelFacts, reference: ModelFacts
) -> Iterator[Figure]:
    """How bad the divergence is, in a word, with what it is measured by."""
    if s is None:
        return
    if s.mean_kld is None:
        yield Figure("Severity", "not known", "no position has finite logits in both")
    elif s.n_tokens < FEW_POSITIONS:
        few = f"{counted(s.n_tokens, 'position')} scored, of {FEW_POSITIONS} that a mean needs"
        yield Figure("Severity", "not known", few)
    else:
        yield Figure("Severity", severity(s.mean_kld), _yardstick(s.mean_kld, quant, reference))


def exceeded_type(s: LogitStatistics | None) -> str | None:
    """The coarsest type from Q4_K_M on whose usual KL divergence this one exceeds."""
    kld = s.mean_kld if s else None
    above = [t for t in ("Q4_K_M", "Q2_K") if kld is not None and kld > USUAL_KLD[t]]
    return above[-1] if above else None


def prediction_figures(s: LogitStatistics | None) -> Iterator[Figure]:
    """KL divergence with its yardstick, top token and perplexity."""
    if s is None:
        return
    yield Figure(
        "KL divergence", f"{number(s.mean_kld)} nats", f"± {number(s.mean_kld_se, 2)}; {QUOTED_KLD}"
    )
    yield Figure(
        "Same top token",
        f"{plus_minus(s.same_top1, None, 2, 100)} %",
        f"± {plus_minus(s.same_top1_se, None, 2, 100)} %;"
        f" RMS Δp of the right token {plus_minus(s.rms_delta_p, None, 2, 100)} %",
    )
    yield Figure(
        "Perplexity",
        f"× {plus_minus(s.ppl_ratio, None, 4)}",
        f"± {plus_minus(s.ppl_ratio_se, None, 4)};"
        f" {number(s.ppl_ref, 5)} → {number(s.ppl_quant, 5)}",
    )


def predictions_section(s: LogitStatistics | None, floor: LogitStatistics | None = None) -> Section:
    """Statistics over the positions, and the reference's own noise if it was measured."""
    if s is None:
        return Section("Predictions", table=facts("predictions", ()))
    return Section(
        f"Predictions at {counted(s.n_tokens, 'position')}",
        charts=("kld",),
        table=facts("predictions", _rows(s, floor)),
    )


def _rows(s: LogitStatistics, floor: LogitStatistics | None) -> Iterator[tuple[str, str]]:
    yield "KL divergence", f"mean {plus_minus(s.mean_kld, s.mean_kld_se, 6)} nats"
    found = s.kld_percentiles
    if found:
        shown = [("median", found.get("50")), ("90 %", found.get("90")), ("99 %", found.get("99"))]
        shown += [("99.9 %", s.p999_kld), ("max", s.max_kld)]
        yield "", ", ".join(f"{label} {number(value)}" for label, value in shown)
    delta = plus_minus(s.mean_delta_p, s.mean_delta_p_se, 3, 100)
    rms = plus_minus(s.rms_delta_p, s.rms_delta_p_se, 3, 100)
    yield "Δp of the right token", f"mean {delta} %, RMS {rms} %"
    yield "same top token", f"{plus_minus(s.same_top1, s.same_top1_se, 3, 100)} %"
    ref, quant = (
        plus_minus(ppl, error, 4)
        for ppl, error in ((s.ppl_ref, s.ppl_ref_se), (s.ppl_quant, s.ppl_quant_se))
    )
    ratio = plus_minus(s.ppl_ratio, s.ppl_ratio_se, 6)
    yield "perplexity", f"{ref} → {quant}, ratio {ratio}"
    if floor is not None:
        mean, most = number(floor.mean_kld), number(floor.max_kld)
        yield "reference with itself", f"KL divergence mean {mean}, max {most}"
    if s.non_finite_tokens:
        n = counted(s.non_finite_tokens, "position")
        yield "left out", f"{n} with a NaN or infinite logit"
