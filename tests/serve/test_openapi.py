"""The OpenAPI document is complete: nothing of a route is left without a word or a schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

from pocketclip.serve import app
from pocketclip.serve.middleware.access import OPEN
from pocketclip.serve.openapi import TAGS, operations

DOCUMENTS = app.openapi_documents()
OPERATIONS = {
    f"{name} {method} {path}": (name, path, method, operation)
    for name in DOCUMENTS
    for path, method, operation in operations(DOCUMENTS[name])
}
each_operation = pytest.mark.parametrize("key", OPERATIONS)
KEY = "a-key-of-some-length"
NAME = re.compile(r"predict|[a-z]+(_[a-z]+)+")
KINDS = {"type", "$ref", "anyOf", "oneOf", "allOf", "const", "enum"}


def _schemas(document: dict[str, Any], schema: dict[str, Any], place: str, seen: set[str]):
    """Yield every schema below one, with its place; each component once."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name not in seen:
            seen.add(name)
            yield from _schemas(document, document["components"]["schemas"][name], name, seen)
        return
    yield place, schema
    for name, inner in schema.get("properties", {}).items():
        yield from _schemas(document, inner, f"{place}.{name}", seen)
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for i, inner in enumerate(schema.get(key, ())):
            yield from _schemas(document, inner, f"{place}.{key}.{i}", seen)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _schemas(document, schema[key], f"{place}.{key}", seen)


def _contents(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the place, the media type and the description of every body of an operation."""
    bodies = {"request": operation.get("requestBody", {}), **operation["responses"]}
    for place, body in bodies.items():
        for kind, content in body.get("content", {}).items():
            yield place, kind, content


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_document_follows_the_specification(name):
    validator = pytest.importorskip("openapi_spec_validator")
    validator.OpenAPIV31SpecValidator(DOCUMENTS[name]).validate()


def test_every_route_is_described():
    for document, routers in (("main", app.ROUTERS), ("immich", app.IMMICH_ROUTERS)):
        described = {(path, method.upper()) for path, method, _ in operations(DOCUMENTS[document])}
        there = {
            (route.path.replace(":path}", "}"), method) for one in routers for route in one.routes
            for method in route.methods if route.include_in_schema  # not the pages' files
        }  # fmt: skip
        assert described == there


def test_names_of_operations_are_stable_and_unique():
    for document in DOCUMENTS.values():
        names = [operation["operationId"] for _, _, operation in operations(document)]
        assert len(set(names)) == len(names)
        for name in names:
            assert NAME.fullmatch(name), name


@each_operation
def test_an_operation_says_what_it_does(key):
    name, _, _, operation = OPERATIONS[key]
    assert operation["summary"][0].isupper() or operation["summary"].startswith("immich")
    assert not operation["summary"].endswith(".")
    assert operation["description"].endswith((".", "`", ":")), operation["description"]
    [tag] = operation["tags"]
    assert tag in TAGS
    assert tag in {one["name"] for one in DOCUMENTS[name]["tags"]}
    for parameter in operation.get("parameters", ()):
        assert parameter.get("description"), parameter["name"]


@each_operation
def test_an_operation_says_what_it_answers(key):
    name, path, method, operation = OPERATIONS[key]
    answers = operation["responses"]
    good = [status for status in answers if status.startswith("2")]
    assert good
    for status, about in answers.items():
        assert about["description"] not in ("Successful Response", ""), status
        if status not in ("204", "304"):
            assert about["content"], status
        assert "X-Request-Id" in about["headers"]
    is_open = name == "immich" or path in OPEN
    assert ("401" in answers) == (not is_open or (path, method) == ("/session", "post"))
    assert "500" not in answers
    for status in {"429", "503"} & answers.keys():
        assert "Retry-After" in answers[status]["headers"]
    if "requestBody" in operation:
        assert {"400", "408", "413", "415"} <= answers.keys()


@each_operation
def test_bodies_have_a_schema_with_words_and_examples(key):
    document, operation = DOCUMENTS[OPERATIONS[key][0]], OPERATIONS[key][3]
    for place, kind, content in _contents(operation):
        schema = content.get("schema")
        assert schema, f"{place} {kind}"
        for where, inner in _schemas(document, schema, place, set()):
            assert KINDS & inner.keys(), f"{where} may be anything"
            for name, field in inner.get("properties", {}).items():
                target = field.get("$ref", "").rpartition("/")[2]
                about = field.get("description") or (
                    target and document["components"]["schemas"][target].get("description")
                )
                assert about, f"{where}.{name} has no description"
        if place == "request" or (kind == "application/json" and place.startswith("2")):
            assert _has_example(document, content), f"{place} {kind} has no example"


def _has_example(document: dict[str, Any], content: dict[str, Any]) -> bool:
    if content.get("example") is not None or content.get("examples"):
        return True
    schema = content["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    fields = schema.get("properties", {}).values()  # of a form, whose parts are not JSON
    return bool(schema.get("examples")) or any("example" in field for field in fields)


def test_a_server_without_a_key_asks_for_none_in_its_document(make_client):
    document = make_client().get("/openapi.json").json()
    assert "security" not in document
    assert "securitySchemes" not in document["components"]
    asking = {path for path, _, one in operations(document) if "401" in one["responses"]}
    assert asking == {"/session"}  # which may be given a wrong key
    assert document["paths"].keys() == DOCUMENTS["main"]["paths"].keys()


def test_a_server_with_a_key_answers_nothing_without_it_but_what_is_open(make_client):
    client = make_client(api_key=KEY)
    document = client.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
    assert document.json() == DOCUMENTS["main"]
    for path, method, operation in operations(DOCUMENTS["main"]):
        status = client.request(method.upper(), path.replace("{", "1").replace("}", "")).status_code
        assert (status == 401) == (operation.get("security") != []), path


@pytest.mark.parametrize("path", ["/info", "/session", "/openapi.json"])
def test_a_method_that_a_path_has_not_is_answered_with_those_it_has(make_client, path):
    answer = make_client().request("PATCH", path)
    there = DOCUMENTS["main"]["paths"].get(path, {"get": {}, "head": {}})
    assert answer.status_code == 405
    assert answer.headers["allow"] == ", ".join(sorted(method.upper() for method in there))
