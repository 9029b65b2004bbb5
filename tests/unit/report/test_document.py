"""Documents: their schemas, saving and loading, several side by side, and damaged ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ggufnorm
from ggufnorm.core.drift import DriftSet
from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.errors import InputError, MissingPackageError
from ggufnorm.report.document import document, from_json, side_by_side, to_json
from ggufnorm.report.formats import render
from ggufnorm.report.kinds import BY_NAME
from ggufnorm.report.notebook import to_fragment
from ggufnorm.report.schema import attributes, json_schema, write_schemas
from tests.pages import check_html
from tests.paths import DOCS
from tests.processes import ggufnorm as run
from tests.processes import one_line_error
from tests.results import HOSTILE, drift_report, inspection, one_of_each

PUBLISHED = DOCS / "schema"
RESULTS = one_of_each()
every_kind = pytest.mark.parametrize("kind", BY_NAME)


# -- schemas -----------------------------------------------------------------------------


def test_the_published_schemas_are_current(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    current = {file.name: file.read_text() for file in tmp_path.iterdir()}
    published = {file.name: file.read_text() for file in PUBLISHED.iterdir()}
    assert published == current, "run make schemas"


@every_kind
def test_schemas_are_schemas_and_documents_keep_to_them(kind: str) -> None:
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document(RESULTS[kind]), schema)


LATER = {
    "circumstances",
    "engine",
    "experts",
    "kernels",
    "passed_over",
    "provenance",
    "tensors",
    "types",
    "waveform",
}
"""Names that documents of an earlier release lack."""


@every_kind
def test_a_schema_refuses_what_lacks_a_name_or_holds_another_type(kind: str) -> None:
    validator = jsonschema.Draft202012Validator(json_schema(kind))
    sound = document(RESULTS[kind])
    for name, value in sound.items():
        lacking = {n: v for n, v in sound.items() if n != name}
        if name not in LATER:
            assert not validator.is_valid(lacking), name
        if value is not None:
            assert not validator.is_valid(sound | {name: {"no": "such"}}), name


@every_kind
def test_a_schema_describes_every_name_or_the_whole_that_they_make(kind: str) -> None:
    for name, definition in json_schema(kind)["$defs"].items():
        assert definition["description"], name
        told = {f: "description" in d for f, d in definition["properties"].items()}
        told = {f: t for f, t in told.items() if not f.endswith("_se")}  # described together
        assert all(told.values()) or not any(told.values()), (name, told)


def test_attributes_are_read_from_docstrings() -> None:
    class Told:
        """A thing.

        Attributes:
            first: one
                line and another.
            second: word.
        """

    assert attributes(Told) == {"first": "one line and another.", "second": "word."}


# -- saving and loading ------------------------------------------------------------------


@every_kind
def test_a_saved_result_is_loaded_as_it_was(kind: str, tmp_path: Path) -> None:
    result = RESULTS[kind]
    result.save(tmp_path / "result.json")
    assert ggufnorm.load(tmp_path / "result.json") == result


def test_a_document_may_lack_what_has_a_default_and_hold_what_is_unknown() -> None:
    data = document(inspection())
    del data["tensors"]
    del data["norms"][0]["note"]
    data["norms"][1]["of a later release"] = 1
    loaded = from_json(json.dumps(data), "x.json")
    assert isinstance(loaded, Inspection)
    assert (loaded.tensors, loaded.norms[0].note) == (None, "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a ggufnorm document"),
        ("[" * 100_000, "not a ggufnorm document"),
        ("[]", "not a ggufnorm document"),
        ('{"schema": 3}', "not a ggufnorm document"),
        ('{"schema": "other/drift", "version": 1}', "not a ggufnorm document"),
        ('{"schema": "ggufnorm/drift", "x": NaN}', "NaN is not a finite number"),
        ('{"schema": "ggufnorm/drift", "x": 1e999}', "1e999 is not a finite number"),
        ('{"schema": "ggufnorm/drift", "version": 2}', "upgrade"),
        ('{"schema": "ggufnorm/unheard-of", "version": 1}', "upgrade"),
        ('{"schema": "ggufnorm/drift", "version": "1"}', "damaged document: version '1'"),
        ('{"schema": "ggufnorm/drift", "version": 1}', "damaged document: DriftReport lacks ref"),
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        ggufnorm.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norms": 3}, "DriftReport.norms: 3 does not fit"),
        ({"verdict": None}, "DriftReport.verdict: None does not fit str"),
        ({"run": {}}, "DriftReport.run lacks engine"),
        ({"operations": [{}]}, "DriftReport.operations[0] lacks node"),
        ({"logits": {"n_tokens": True}}, "DriftReport.logits lacks"),
    ],
)
def test_what_is_damaged_is_told_with_its_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        from_json(json.dumps(document(drift_report()) | change), "x.json")
    assert words in str(caught.value)


def test_a_truth_value_is_no_number_and_a_huge_one_no_float() -> None:
    data = document(drift_report())
    data["run"]["n_ctx"] = True
    with pytest.raises(InputError, match="n_ctx: True does not fit int"):
        from_json(json.dumps(data), "x.json")
    data = document(drift_report())
    data["localisation"]["f16_headroom"] = 10**400
    with pytest.raises(InputError, match="damaged document"):
        from_json(json.dumps(data), "x.json")


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    for path, words in (
        (tmp_path / "x.json", "not a ggufnorm document"),
        (tmp_path / "no.json", "No such file"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(InputError, match=words):
            ggufnorm.load(path)
    result = inspection()
    for path, words in (
        (tmp_path / "x.pdf", "its suffix is none of .json"),
        (tmp_path / "no" / "x.json", "cannot write"),
    ):
        with pytest.raises(InputError, match=words):
            result.save(path)
    with pytest.raises(InputError, match="no sarif of a DriftReport"):
        drift_report().save(tmp_path / "x.sarif")


JSON_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5),
    st.just([]), st.just({}), st.just(-1), st.just(10**30), st.just(HOSTILE), st.just("\x1b[31m\n"),
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(sorted(BY_NAME)), data=st.data())
def test_a_changed_document_is_shown_or_refused(kind: str, data: st.DataObject) -> None:
    changed = document(RESULTS[kind])
    place: Any = changed
    while isinstance(place, (dict, list)) and place:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or data.draw(st.integers(0, 3)) == 0:
            place[key] = data.draw(JSON_VALUES)
            break
        place = place[key]
    try:
        result = from_json(json.dumps(changed), "x.json")
    except InputError:
        return
    for fmt in ("text", "markdown", "html"):
        assert "\x1b" not in render(result, fmt)
    assert "\x1b" not in to_fragment(result)


@pytest.mark.slow
def test_sets_of_nothing_are_shown() -> None:
    for nothing in (DriftSet(()), InspectionSet((), ())):
        for fmt in ("text", "markdown", "html", "json"):
            render(nothing, fmt)
        assert from_json(to_json(nothing), "x.json") == nothing


# -- several side by side ----------------------------------------------------------------


def test_reports_of_one_kind_stand_side_by_side() -> None:
    one, other = drift_report(), drift_report(5)
    assert side_by_side([one]) is one
    assert side_by_side([one, DriftSet((other, one))]) == DriftSet((one, other, one))
    norms = inspection()
    both = side_by_side([norms, InspectionSet((norms,), ())])
    assert both == InspectionSet((norms, norms), ())
    with pytest.raises(InputError, match="ggufnorm/drift, ggufnorm/inspect side by side"):
        side_by_side([one, norms])


@pytest.mark.slow
def test_the_command_shows_saved_results_again(tmp_path: Path) -> None:
    sound, faulty = tmp_path / "sound.json", tmp_path / "faulty.json"
    drift_report().save(sound)
    drift_report(faulty=True).save(faulty)
    done = run("report", sound, faulty)
    assert (done.returncode, done.stderr) == (0, "")
    _, _, table, *_ = done.stdout.split("\n\n")
    assert [row.split()[-1] for row in table.splitlines()[2:4]] == ["none", "blk.1.ffn_down.weight"]
    for suffix, begins in ((".md", "## 2 models"), (".txt", "2 models"), (".json", "{\n")):
        out = tmp_path / f"both{suffix}"
        assert run("report", sound, faulty, "-o", out).returncode == 0
        assert out.read_text().startswith(begins)
    assert ggufnorm.load(tmp_path / "both.json") == DriftSet(
        (drift_report(), drift_report(faulty=True))
    )


@pytest.mark.slow
def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    drift_report().save(tmp_path / "drift.json")
    inspection().save(tmp_path / "norms.json")
    (tmp_path / "other.json").write_text("{}")
    one_line_error(run("report", tmp_path / "other.json"), 3, "not a ggufnorm document")
    both = tmp_path / "drift.json", tmp_path / "norms.json"
    one_line_error(run("report", *both), 3, "side by side")
    assert run("report").returncode == 2


# -- notebooks ---------------------------------------------------------------------------


@every_kind
def test_a_notebook_shows_a_small_fragment_without_scripts(kind: str) -> None:
    name = f"{HOSTILE}\x1b"
    shown = one_of_each(name)[kind]._repr_html_()
    check_html(shown)
    assert "<script" not in shown
    assert "<img" not in shown
    assert len(shown) < 100_000


# -- data frames -------------------------------------------------------------------------


def test_a_result_becomes_a_data_frame() -> None:
    frame = drift_report().to_dataframe()
    assert len(frame) == len(drift_report().operations)
    assert frame["local.rel_l2"].tolist() == [o.local.rel_l2 for o in drift_report().operations]
    assert drift_report().to_dataframe("norms")["tensor"][0] == "blk.0.attn_norm.weight"
    assert len(inspection().to_dataframe()) == 6
    assert list(RESULTS["ggufnorm/diff"].to_dataframe()["role"][:2]) == ["attn_q", "attn_k"]
    assert len(RESULTS["ggufnorm/drift-set"].to_dataframe()) == 2
    with pytest.raises(InputError, match="no table 'verdict'"):
        drift_report().to_dataframe("verdict")


def test_a_data_frame_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match="pip install pandas"):
        drift_report().to_dataframe()
