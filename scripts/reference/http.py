"""The page of the HTTP interface, from the OpenAPI documents of the server's two apps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pocketclip.serve.app import openapi_documents
from pocketclip.serve.openapi import operations
from pocketclip.serve.schema import EXAMPLE_IMAGE, MEANINGS
from reference.markdown import code, plain, table

Json = dict[str, Any]
_INTRODUCTION = """# HTTP API

What `pocketclip serve` answers; [Serve](../how-to/serve.md) says how to start it and shows each
protocol with its client. This page is made from the OpenAPI documents: a running server gives its
own at `/openapi.json`, for Swagger, Postman or a generator of clients.

## For all routes { #all-routes }

A server that was started with a key wants it on every route that does not say otherwise, as
`Authorization: Bearer KEY`; a browser sends the cookie of its session instead.

Every answer has the header `X-Request-Id`, by which the server's log names the request. These
statuses mean the same everywhere and are not repeated below:
"""
_TITLES = {
    "openai": "OpenAI",
    "hugging face": "Hugging Face",
    "classify": "Classification",
    "search": "Search",
    "session": "Sessions of browsers",
    "status": "The server itself",
    "pages": "Pages",
}
_HEAD = ("field", "type", "required", "meaning")
_DEEPEST = 4
_LINE = 90
_PLAIN_LIST = re.compile(r'\[((?:[^][{}"]|"[^"\n]*")*)\]')
_IMAGE = "data:image/png;base64,iVBORw0KGgo..."


def page() -> str:
    """Return the page."""
    documents = openapi_documents()
    shared = _shared(documents["main"])
    rows = [(status, MEANINGS[int(status)]) for status in shared]
    parts = [_INTRODUCTION + "\n" + table(("status", "meaning"), rows)]
    parts.append("An error has a body in OpenAI's form; on immich's port, it is in immich's:")
    schemas = documents["main"]["components"]["schemas"]
    parts.append(table(_HEAD, _fields(schemas["ErrorAnswer"], schemas)))
    for document in documents.values():
        before: dict[str, str] = {}
        for tag in document["tags"]:
            name = tag["name"]
            parts.append(f"## {_TITLES.get(name, name)} {{ #{name.replace(' ', '-')} }}")
            parts.append(_text(tag["description"]))
            for path, method, operation in operations(document):
                if name in operation["tags"]:
                    parts += _operation(path, method, operation, document, shared, before)
    return "\n\n".join(part for part in parts if part)


def _shared(document: Json) -> list[str]:
    """Return the statuses that mean the same on all routes, unless a route says otherwise."""
    found = {status for _, _, one in operations(document) for status in one["responses"]}
    always = ("400", "401", "403", "408", "413", "415", "421", "422", "429", "503")
    return [status for status in always if status in found]


def _operation(
    path: str,
    method: str,
    operation: Json,
    document: Json,
    shared: list[str],
    before: dict[str, str],
) -> Iterator[str]:
    schemas = document.get("components", {}).get("schemas", {})
    name = operation["operationId"]
    yield f"### {method.upper()} {path} {{ #{name} }}"
    keys = ("parameters", "requestBody", "responses")
    same = json.dumps([operation["tags"], *(operation.get(key) for key in keys)], sort_keys=True)
    first = before.setdefault(same, f"[{method.upper()} {path}](#{name})")
    if not first.endswith(f"(#{name})"):
        yield f"{_text(operation['description'])} All of it is as for {first}."
        return
    is_open = " Needs no key." if operation.get("security") == [] else ""
    yield f"**{plain(operation['summary'])}.** {_text(operation['description'])}{is_open}"
    if parameters := operation.get("parameters"):
        rows = [
            (code(one["name"]), one["in"], _type(one["schema"], schemas),
             "yes" if one.get("required") else "", _text(one["description"]))
            for one in parameters
        ]  # fmt: skip
        yield table(("parameter", "in", "type", "required", "meaning"), rows)
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body, {code(kind)}:"
        yield from _body(content, schemas)
    answers = []
    for status, answer in operation["responses"].items():
        if status in shared and answer["description"] == MEANINGS[int(status)]:
            continue
        kinds = " ".join(map(code, answer.get("content", {})))
        answers.append((status, kinds, _text(answer["description"])))
    yield table(("status", "body", "meaning"), answers)
    for status, answer in operation["responses"].items():
        content = answer.get("content", {}).get("application/json")
        if status.startswith("2") and content:
            yield f"The body of status {status}:"
            yield from _body(content, schemas)


def _body(content: Json, schemas: Json) -> Iterator[str]:
    schema = _resolved(content["schema"], schemas)
    if rows := list(_fields(content["schema"], schemas)):
        yield table(_HEAD, rows)
    examples = [one["value"] for one in content.get("examples", {}).values()]
    if "example" in content:
        examples.append(content["example"])
    for example in examples or schema.get("examples", ()):
        yield f"```json\n{_written(example)}\n```"


def _written(example: Any) -> str:
    """Return an example as JSON, on one line if it is short, lists of plain values always."""
    if isinstance(example, str):
        return example
    line = json.dumps(example, ensure_ascii=False).replace(EXAMPLE_IMAGE, _IMAGE)
    if len(line) < _LINE:
        return line
    text = json.dumps(example, ensure_ascii=False, indent=2).replace(EXAMPLE_IMAGE, _IMAGE)
    return _PLAIN_LIST.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)


def _fields(
    schema: Json, schemas: Json, prefix: str = "", depth: int = 0, within: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a schema's fields, those of inner objects below theirs."""
    name = schema.get("$ref", "")
    if depth > _DEEPEST or (name and name in within):
        return
    schema = _resolved(schema, schemas)
    within = (*within, name)
    for choice in _choices(schema):
        yield from _fields(choice, schemas, prefix, depth, within)
    if schema.get("type") == "array":
        yield from _fields(schema.get("items", {}), schemas, f"{prefix}[]", depth + 1, within)
    inner = schema.get("additionalProperties")
    if isinstance(inner, dict):
        yield from _fields(inner, schemas, f"{prefix}.…", depth + 1, within)
    required = schema.get("required", ())
    for field, about in schema.get("properties", {}).items():
        key = f"{prefix}.{field}" if prefix else field
        text = about.get("description") or _resolved(about, schemas).get("description", "")
        needed = "yes" if field in required else ""
        yield code(key), _type(about, schemas), needed, _text(text) + _default(about)
        yield from _fields(about, schemas, key, depth + 1, within)


def _choices(schema: Json) -> list[Json]:
    return [one for key in ("anyOf", "oneOf", "allOf") for one in schema.get(key, ())]


def _resolved(schema: Json, schemas: Json) -> Json:
    if "$ref" in schema:
        return schemas[schema["$ref"].rpartition("/")[2]]
    return schema


def _type(schema: Json, schemas: Json) -> str:
    schema = _resolved(schema, schemas)
    if choices := _choices(schema):
        return " or ".join(dict.fromkeys(_type(one, schemas) for one in choices))
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(json.dumps(one)) for one in schema["enum"])
    kind = schema.get("type", "object")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}), schemas)}"
    if schema.get("format") == "binary" or "contentMediaType" in schema:
        return "file"
    return kind if isinstance(kind, str) else " or ".join(kind)


def _default(schema: Json) -> str:
    if schema.get("default") is None:
        return ""
    return f" Default: {code(json.dumps(schema['default'], ensure_ascii=False))}"


def _text(text: str) -> str:
    return plain(" ".join(text.split()))
