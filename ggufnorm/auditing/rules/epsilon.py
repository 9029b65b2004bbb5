"""Family E: the epsilon of each norm."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.auditing.registry import Problem, Rule, rule
from ggufnorm.auditing.subject import Subject


@rule("E103", "epsilon-negative", "error")
def negative(subject: Subject) -> Iterator[Problem]:
    """A norm's epsilon is negative.

    What it does:
        Looks at every epsilon that the file's metadata holds.

    Why it matters:
        llama.cpp loads such a file and aborts at the first token
        (``GGML_ASSERT(eps >= 0.0f)``).

    What to do:
        Write the epsilon of the source's config under the key.

    Example:
        ``llama.attention.layer_norm_rms_epsilon = -1e-05``
    """
    for site in subject.sites:
        if site.epsilon is not None and site.epsilon < 0:
            yield Problem(f"{site.epsilon_key} is {site.epsilon:g}", evidence={})


RULES: tuple[Rule, ...] = (negative,)
