"""Every route answers as its OpenAPI document says, whatever it is sent.

schemathesis draws requests that follow the document and requests that do not, from a fixed seed.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

import hypothesis
import requests
import schemathesis
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks

from pocketclip.serve.app import openapi_documents
from pocketclip.serve.openapi import operations

load_all_checks()
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
PATIENCE = 60.0
"""Seconds for an answer: the machine may be busy with others."""
FEW, MANY = 3, 100
"""Requests per operation and kind: in the quick suite, and in the slow one."""
DOCUMENTS = openapi_documents()


def _operations() -> dict[str, Any]:
    found = {}
    for port, document in DOCUMENTS.items():
        config = schemathesis.Config()
        schema = schemathesis.openapi.from_dict(copy.deepcopy(document), config=config)
        for result in schema.get_all_operations():
            operation = result.ok()
            found[f"{port} {operation.label}"] = (port, operation)
    return found


def _examples() -> dict[str, Any]:
    """Return the documented requests in JSON."""
    found = {}
    for port, document in DOCUMENTS.items():
        for path, method, operation in operations(document):
            contents = operation.get("requestBody", {}).get("content", {})
            content = contents.get("application/json", {})
            schema = content.get("schema", {})
            if "$ref" in schema:
                schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            shown = [one["value"] for one in content.get("examples", {}).values()]
            shown = shown or [one for one in [content.get("example")] if one is not None]
            for i, example in enumerate(shown or schema.get("examples", ())):
                found[f"{port} {method} {path} {i}"] = (port, method, path, example)
    return found


OPERATIONS, EXAMPLES = _operations(), _examples()
each_operation = pytest.mark.parametrize("key", OPERATIONS)
each_kind = pytest.mark.parametrize("kind", ["POSITIVE", "NEGATIVE"])


@pytest.fixture(scope="module")
def urls(offering_server):
    """The URL of each port of a server that offers everything."""
    return {"main": offering_server.url, "immich": offering_server.immich_url}


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        session.trust_env = False
        yield session


def explore(key: str, kind: str, urls: dict[str, str], session: Any, count: int) -> None:
    """Send requests of an operation, and check the answers."""
    port, operation = OPERATIONS[key]
    sent = 0

    @hypothesis.seed(17)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(operation.as_strategy(generation_mode=schemathesis.GenerationMode[kind]))
    def run(case: Any) -> None:
        nonlocal sent
        sent += 1
        response = case.call(base_url=urls[port], session=session, timeout=PATIENCE)
        if response.status_code != 503:
            assert response.status_code < 500, response.content
        case.validate_response(response, checks=CHECKS)

    try:
        run()
        assert sent
    except hypothesis.errors.Unsatisfiable:
        assert kind == "NEGATIVE"  # of a route that takes nothing, which could be wrong


@each_operation
@each_kind
def test_answers_are_as_documented(key, kind, urls, session):
    explore(key, kind, urls, session, FEW)


@pytest.mark.slow
@each_operation
@each_kind
def test_answers_are_as_documented_at_length(key, kind, urls, session):
    explore(key, kind, urls, session, MANY)


@pytest.mark.parametrize("key", EXAMPLES)
def test_a_documented_request_is_answered_as_it_stands(key, urls, session):
    port, method, path, example = EXAMPLES[key]
    answer = session.request(method, urls[port] + path, json=example)
    assert answer.status_code in (200, 204), answer.content
