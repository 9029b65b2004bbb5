"""H304: chat templates that fail, or lose what is said, and right ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gguf
import pytest

from ggufnorm.analysis.audit.chat import CHATS, Trouble, troubles
from ggufnorm.analysis.audit.run import audit
from ggufnorm.core.audit import Finding
from ggufnorm.engines import worker
from ggufnorm.engines.chat import ChatRequest, Rendered, render, render_chat, render_chats
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.special_tokens import are_special, special_tokens

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """\
{%- if tools %}
<|im_start|>system
You have {{ tools | tojson }}<|im_end|>
{%- endif %}
{%- for message in messages %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{%- endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{%- endif %}
"""

BRACKETS = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- set start = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set start = '' %}
{%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate') }}
{%- endif %}
{%- if message['role'] == 'user' %}
[INST] {{ start if loop.first else '' }}{{ message['content'] | trim }} [/INST]
{%- else %}
 {{ message['content'] }}{{ eos_token }}
{%- endif %}
{%- endfor %}
"""

TURNS = """\
{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- macro turn(name, text) -%}
<start_of_turn>{{ name }}
{{ text | trim }}<end_of_turn>
{% endmacro %}
{%- for message in messages %}
{{ turn('model' if message.role == 'assistant' else message.role, message.content) }}
{%- endfor %}
{%- if add_generation_prompt %}<start_of_turn>model
{% endif %}
"""

THINKS = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{{- strftime_now('%d %B %Y') }}
{%- for message in messages %}
{%- if loop.index0 > 99 %}{% break %}{% endif %}
{%- generation %}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and loop.index0 > ns.last %}<think></think>{% endif %}
{{ message.content.split('</think>')[-1] }}<|im_end|>
{%- endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{%- endif %}
"""

RIGHT = {"chatml": CHATML, "brackets": BRACKETS, "turns": TURNS, "thinks": THINKS}


def of(template: str, special: bool | None = True) -> list[Trouble]:
    rendered = [render_chat(template, TOKENS, chat.request) for chat in CHATS]

    def kinds(names: Sequence[str]) -> Mapping[str, bool | None]:
        return dict.fromkeys(names, special)

    return list(troubles(rendered, kinds))


@pytest.mark.parametrize("name", RIGHT)
def test_of_right_templates_nobody_complains(name: str) -> None:
    assert of(RIGHT[name]) == []


def without_end(template: str) -> str:
    head, _, tail = template.rpartition("{%- endfor %}")
    return head + tail


def misspelt_content(template: str) -> str:
    return template.replace("['content']", "['contents']").replace(".content", ".contents")


def unknown_filter(template: str) -> str:
    return template.replace("{%- for message", "{{ 'x' | tidied }}{%- for message", 1)


def method_that_is_none(template: str) -> str:
    return template.replace("{%- for message", "{{ messages[0].role.shout() }}{%- for message", 1)


def name_that_is_none(template: str) -> str:
    return template.replace("{%- for message", "{{ chat.name }}{%- for message", 1)


def wrong_types(template: str) -> str:
    return template.replace("{%- for message", "{{ messages + 'x' }}{%- for message", 1)


def refusing(template: str) -> str:
    return "{{ raise_exception('Only one question') if messages | length == 3 }}" + template


def first_message_lost(template: str) -> str:
    return "{%- set messages = messages[1:] %}\n" + template


def too_long(template: str) -> str:
    return "{%- for i in range(10000000) %}{% endfor %}" + template


def endless_recursion(template: str) -> str:
    return "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}" + template


def printing_nothing(template: str) -> str:
    return template.replace("{%- for message", "{{ date_string }}{%- for message", 1)


FAULTS: dict[Callable[[str], str], str] = {
    without_end: "fails",
    unknown_filter: "fails",
    method_that_is_none: "fails",
    name_that_is_none: "fails",
    wrong_types: "fails",
    refusing: "refuses a second question",
    first_message_lost: "leaves out what was said",
    too_long: "Range too big",
    endless_recursion: "calls itself without end",
    printing_nothing: "prints date_string, which is not defined, as nothing at line",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", RIGHT)
def test_a_planted_fault_is_told(name: str, fault: Callable[[str], str]) -> None:
    found = [t for t in of(fault(RIGHT[name])) if t.severity != "info"]
    assert found, "nothing was found"
    said = [t.message for t in found]
    # Without the first message, one of the templates reads an item that is not there.
    gone = fault is first_message_lost and "has no element 0" in said[0]
    assert gone or any(FAULTS[fault] in words for words in said), said
    if fault in (unknown_filter, method_that_is_none, wrong_types):
        assert found[0].line is not None
        assert found[0].severity == "error"


@pytest.mark.parametrize("name", RIGHT)
def test_a_misspelt_content_is_told(name: str) -> None:
    found = of(misspelt_content(RIGHT[name]))
    assert found[0].severity == "error"
    assert "leaves out" in found[0].message or "fails" in found[0].message


def test_each_thing_is_told_once() -> None:
    found = of("{% for m in messages %}\n{{ m.a.b }}{% endfor %}")
    assert [(t.line, t.severity) for t in found] == [(2, "error")]


def test_texts_that_look_like_control_tokens_and_are_none() -> None:
    (found,) = of(CHATML, special=False)
    assert found.severity == "warning"
    assert "<|im_start|>, <|im_end|>" in found.message
    (found,) = of(CHATML, special=None)
    assert found.severity == "info"
    assert of(BRACKETS, special=None) == [], "plain text from the start"


def test_special_tokens_of_a_file() -> None:
    values: dict[str, Any] = {
        "tokenizer.ggml.tokens": ["<s>", "a", "<|im_start|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [3, 1, 1, 4],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 99,
    }
    metadata: Any = SimpleNamespace(get=values.get, integer=values.get)
    assert special_tokens(metadata) == {"bos_token": "<s>", "eos_token": ""}
    names = ["<|im_start|>", "<|im_end|>", "<|x|>"]
    assert are_special(metadata, names) == dict(zip(names, (False, True, None), strict=True))


# -- the child ---------------------------------------------------------------------------


def test_what_does_not_end_is_given_up() -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    found = render(loops, TOKENS, [ChatRequest(()), ChatRequest(())], patience=0.5)
    assert [r.failure for r in found] == ["endless"] * 2
    assert found[0].message == "it does not end within 0.5 s"


def test_a_template_cannot_leave_its_sandbox() -> None:
    for escape in (
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.append(1) }}",
    ):
        found = render_chat(escape, TOKENS, ChatRequest(()))
        assert found.failure in ("raised", "undefined", "other") or found.text == "", escape


def audited(tmp_path: Path, template: str | None) -> list[Finding]:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    def here(task: Any, job: Any, *_: Any) -> Any:
        assert task is render_chats
        return render_chats(job, Channel())

    with mock.patch.object(worker, "call", here):
        report = audit(path, select=["H304"])
    if template is None:
        assert [n.reason for n in report.not_run if n.rule == "H304"] == [
            "the file has no chat template"
        ]
    return list(report.findings)


def test_the_rule_names_the_line(tmp_path: Path) -> None:
    (found,) = audited(tmp_path, "{% for m in messages %}\n\n{{ m.text.x }}{% endfor %}")
    assert found.rule == "H304"
    assert found.severity == "error"
    assert found.message == (
        "tokenizer.chat_template fails at line 3 on a question: 'dict object' has no attribute"
        " 'text'"
    )
    assert found.evidence["line"] == 3
    assert audited(tmp_path, CHATML)[0].severity == "info", "the file has no tokens"
    assert audited(tmp_path, None) == []


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [(["<|eot_id|>"], "the file does not say which tokens are markers"),
     ("<|eot_id|>", "the file has no chat template, or no vocabulary"),
     (None, "the file has no chat template, or no vocabulary")],
)  # fmt: skip
def test_markers_are_not_looked_up_where_nothing_tells_which_tokens_are_some(
    tmp_path: Path, tokens: list[str] | str | None, reason: str
) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_chat_template("<|im_start|>{{ messages[0].content }}<|im_end|>")
    if isinstance(tokens, list):
        writer.add_token_list(tokens)
    elif tokens is not None:
        writer.add_string("tokenizer.ggml.tokens", tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    report = audit(path, select=["H303"])

    assert [n.reason for n in report.not_run if n.rule == "H303"] == [reason]
    assert not report.findings


_IN_PARTS = """{% for message in messages %}{{ message['role'] }}: {% for part in message['content']
%}{%- if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"""


def test_a_template_that_takes_contents_in_parts_is_right(tmp_path: Path) -> None:
    assert audited(tmp_path, _IN_PARTS) == []
    (found, *_) = audited(tmp_path, _IN_PARTS.replace("part['text']", "''"))
    assert (found.rule, found.severity) == ("H304", "error")


def test_a_file_without_bos_and_eos_has_empty_ones(tmp_path: Path) -> None:
    right = "{{ bos_token + '!' }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    assert audited(tmp_path, right) == []
    (found,) = audited(tmp_path, right + "{{ pad_token }}")
    assert found.severity == "warning"


def test_a_long_template_is_read_to_its_end(tmp_path: Path) -> None:
    filler = "{# " + 3000 * "x" + " #}"
    right = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    assert audited(tmp_path, filler + right + filler) == []


def test_the_rule_without_jinja_is_not_run(tmp_path: Path) -> None:
    with mock.patch("importlib.util.find_spec", return_value=None):
        assert audited(tmp_path, CHATML + "{# another #}") == []


def test_a_child_that_dies_is_the_templates_doing() -> None:
    from ggufnorm.errors import EngineError

    def dies(*_: Any) -> Any:
        raise EngineError("the engine was killed")

    with mock.patch.object(worker, "call", dies):
        (found,) = render("x", {}, [ChatRequest(())])
    assert isinstance(found, Rendered)
    assert found.failure == "endless"
    assert "it ended the process that ran it" in found.message
