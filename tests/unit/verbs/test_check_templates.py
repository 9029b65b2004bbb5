"""``check`` beside a better quant: do both put a chat to the model alike?"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest

from ggufnorm.verbs.check.steps import _templates


def made(path: Path, template: str | None) -> str:
    writer = gguf.GGUFWriter(path, "llama")
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize(
    ("own", "theirs", "says"),
    [
        ("a\nb\nc", "a\nb\nd", "is not that of {}, from line 3 on"),
        ("a", "a\nb", "is not that of {}, from line 2 on"),
        (None, "a", "it has no chat template, unlike {}"),
        ("a", None, "it has a chat template, unlike {}"),
        ("a\nb", "a\nb", None),
        (None, None, None),
    ],
)
def test_templates_of_two_files(
    tmp_path: Path, own: str | None, theirs: str | None, says: str | None
) -> None:
    model, reference = made(tmp_path / "m.gguf", own), made(tmp_path / "ref.gguf", theirs)
    case: Any = SimpleNamespace(evidence=SimpleNamespace(model=model))
    found = list(_templates(case, reference))
    if says is None:
        assert found == []
        return
    (judgement,) = found
    assert judgement.suspect == "tokenizer"
    assert judgement.state == "partly", "which of the two is right, neither tells"
    assert says.format(reference) in judgement.sentence
