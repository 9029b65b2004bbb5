"""JSON Schema of the documents, from the dataclasses that they are made of.

    python -m ggufnorm.report.schema FOLDER

writes one file per kind. The dialect is 2020-12; descriptions are the docstrings'.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ggufnorm.core.plain import has_default
from ggufnorm.report.document import UNWRITTEN, VERSION
from ggufnorm.report.kinds import BY_NAME

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NAMES: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def json_schema(name: str) -> dict[str, Any]:
    """The schema of one kind of document.

    Names that it does not list may come: a document may be of a later release.

    Args:
        name: a key of :data:`~ggufnorm.report.kinds.BY_NAME`.
    """
    definitions: dict[str, Any] = {}
    body = _object(BY_NAME[name].result, definitions)
    head = {
        "schema": {"const": name},
        "version": {"const": VERSION, "description": "names of one version stay what they are"},
    }
    return {
        "$schema": DIALECT,
        "$id": f"urn:{name.replace('/', ':')}:{VERSION}",
        "title": name,
        **body,
        "properties": head | body["properties"],
        "required": [*head, *body["required"]],
        "$defs": dict(sorted(definitions.items())),
    }


def _object(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    fields = [f for f in dataclasses.fields(kind) if f.name not in UNWRITTEN]
    told = attributes(kind)
    properties = {}
    for field in fields:
        properties[field.name] = _schema(hints[field.name], definitions)
        if field.name in told:
            properties[field.name]["description"] = told[field.name]
    return {
        "type": "object",
        "description": (inspect.getdoc(kind) or "").partition("\n")[0],
        "properties": properties,
        "required": [f.name for f in fields if not has_default(f)],
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if kind in _NAMES:
        return {"type": _NAMES[kind]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return _array(arguments, definitions)
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if origin in (Union, types.UnionType):
        return _optional(next(a for a in arguments if a is not type(None)), definitions)
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # keeps a type that holds itself from going on for ever
        definitions[kind.__name__] = _object(kind, definitions)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _array(arguments: tuple[Any, ...], definitions: dict[str, Any]) -> dict[str, Any]:
    if arguments[1:] == (Ellipsis,):
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    items = [_schema(kind, definitions) for kind in arguments]
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def _optional(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _schema(kind, definitions)
    if "enum" in schema:
        return {"enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


def attributes(kind: type) -> dict[str, str]:
    """A class's attributes, as its docstring and its bases' describe them in google style."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, listed = (inspect.cleandoc(base.__doc__ or "")).partition("\nAttributes:\n")
        found |= {name: " ".join(text.split()) for name, text in _ATTRIBUTE.findall(listed)}
    return found


def write_schemas(folder: Path) -> None:
    """Write the schema of each kind to ``folder``, named as the kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in BY_NAME:
        text = json.dumps(json_schema(name), indent=2, ensure_ascii=False) + "\n"
        file = folder / f"{name.partition('/')[2]}.json"
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
