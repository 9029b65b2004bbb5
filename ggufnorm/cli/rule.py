"""``ggufnorm rule``."""

from __future__ import annotations

import click


@click.command("rule")
@click.argument("rule_id", metavar="ID")
def command(rule_id: str) -> int:
    """Explain a rule of audit: what it checks, why it matters, how to fix a finding."""
    from ggufnorm.analysis.audit.pages import page
    from ggufnorm.analysis.audit.rules import BY_ID

    rule = BY_ID.get(rule_id.upper())
    if rule is None:
        raise click.UsageError(f"there is no rule {rule_id}: `ggufnorm rules` lists them")
    click.echo(page(rule), nl=False)
    return 0
