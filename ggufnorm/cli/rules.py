"""``ggufnorm rules``."""

from __future__ import annotations

import click


@click.command("rules")
def command() -> int:
    """List the rules of audit: id, severity, name and the problem that each detects."""
    from ggufnorm.analysis.audit.rules import RULES

    for rule in RULES:
        click.echo(f"{rule.id}  {rule.severity:<7}  {rule.name}: {rule.summary}")
    return 0
