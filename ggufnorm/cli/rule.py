"""``ggufnorm rule``."""

from __future__ import annotations

import click


@click.command("rule")
@click.argument("rule_id", metavar="ID|NAME")
def command(rule_id: str) -> int:
    """Explain a rule of audit: what it checks, why it matters, how to fix a finding."""
    from ggufnorm.analysis.audit.pages import page
    from ggufnorm.analysis.audit.rules import find_rule, no_such_rule

    rule = find_rule(rule_id)
    if rule is None:
        raise click.UsageError(no_such_rule(rule_id, "no rule"))
    click.echo(page(rule), nl=False)
    return 0
