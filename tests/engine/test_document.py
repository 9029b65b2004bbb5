"""Documents of real runs."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

import ggufnorm
from ggufnorm.core.drift import DriftReport
from ggufnorm.report.document import to_json
from ggufnorm.report.formats import render
from ggufnorm.report.schema import json_schema


def test_documents_of_real_runs_keep_to_the_schema(sample: Path, sample_q4: Path) -> None:
    for result, kind in (
        (ggufnorm.inspect(sample, tensors=True), "ggufnorm/inspect"),
        (ggufnorm.diff(sample, sample_q4), "ggufnorm/diff"),
        (ggufnorm.drift(sample, sample_q4, chunks=1), "ggufnorm/drift"),
    ):
        jsonschema.validate(json.loads(to_json(result)), json_schema(kind))


def test_what_a_run_cost_is_not_saved(sample: Path, sample_q4: Path, tmp_path: Path) -> None:
    report = ggufnorm.drift(sample, sample_q4, chunks=1)
    ggufnorm.save(report, tmp_path / "report.json")
    loaded = ggufnorm.load(tmp_path / "report.json")
    assert isinstance(loaded, DriftReport)
    assert (report.cost is None, loaded.cost) == (False, None)
    assert to_json(loaded) == to_json(report)
    again = render(loaded, "text").splitlines()
    once = render(report, "text").splitlines()
    assert [a for a in again if a not in once] == [next(a for a in again if a.startswith("run "))]
