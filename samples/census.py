"""A census of the norms of published GGUF files.

    python samples/census.py hf://ORG... --out census

Audits every GGUF model of the organisations (or of whatever locations are given) into
``census/audits.parquet``, and draws from it, with DuckDB, models by architecture and how many of
them have findings (``census/architectures.svg``) and the rules that found something
(``census/rules.svg``). Needs ``pip install 'ggufnorm[fleet,html]' duckdb``. Only headers and norms
are fetched; run it again and only new files are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import duckdb
import vl_convert

from ggufnorm.cli.main import cli

ARCHITECTURES = """
    SELECT architecture, count(*) AS models,
           count(*) FILTER (errors > 0) AS errors,
           count(*) FILTER (errors = 0 AND warnings > 0) AS warnings
    FROM '{}' WHERE not_read IS NULL AND passed_over IS NULL
    GROUP BY ALL ORDER BY models DESC, architecture
"""
RULES = """
    SELECT f.rule || ' ' || f.name AS rule, f.severity AS severity, count(DISTINCT path) AS models
    FROM '{}', unnest(findings) AS t(f) GROUP BY ALL ORDER BY models DESC, rule
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("locations", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("census"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    audits = options.out / "audits.parquet"
    cli(["audit", *options.locations, "-o", str(audits)], standalone_mode=False)

    kinds = rows(ARCHITECTURES, audits)
    for kind in kinds:
        sound = kind["models"] - kind["errors"] - kind["warnings"]
        kind["sound"] = sound
        print(f"{kind['architecture']:20} {kind['models']:6} {kind['errors']:6} errors")
    parts = [
        {"name": k["architecture"], "models": k[what], "what": what}
        for k in kinds
        for what in ("sound", "warnings", "errors")
    ]
    draw(options.out / "architectures.svg", parts, "what", ["sound", "warnings", "errors"])
    found = [{"name": r["rule"], **r, "what": r["severity"]} for r in rows(RULES, audits)]
    draw(options.out / "rules.svg", found, "what", ["info", "warning", "error"])


def rows(query: str, audits: Path) -> list[dict[str, Any]]:
    found = duckdb.sql(query.format(str(audits).replace("'", "''")))
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def draw(path: Path, values: list[dict[str, Any]], colour: str, order: list[str]) -> None:
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": values},
        "mark": "bar",
        "encoding": {
            "y": {"field": "name", "type": "nominal", "sort": "-x", "title": None},
            "x": {"field": "models", "type": "quantitative", "aggregate": "sum"},
            "color": {
                "field": colour,
                "type": "nominal",
                "scale": {"domain": order, "range": ["#9aa7b0", "#d9a441", "#c0392b"]},
                "title": None,
            },
        },
    }
    path.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")


if __name__ == "__main__":
    main()
