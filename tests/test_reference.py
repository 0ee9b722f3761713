"""The pages that are made from the code say what the code says."""

from __future__ import annotations

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("torch")
pytest.importorskip("fastapi")

import make_reference
from pocketclip.cli.main import VERBS
from pocketclip.serve.app import openapi_documents
from pocketclip.serve.openapi import operations
from pocketclip.train.recipe import Recipe


@pytest.fixture(scope="module", autouse=True)
def pages():
    """The generated pages, made once for all tests."""
    made = make_reference.pages()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_reference, "pages", lambda: made)
        yield made


def test_the_pages_stand_as_they_are_made():
    stale = make_reference.stale()
    assert not stale, f"run python scripts/make_reference.py, since these differ: {stale}"


def test_a_page_that_differs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(make_reference, "pages", lambda: {"docs/reference/cli.md": "new\n"})
    make_reference.write(tmp_path)
    assert make_reference.stale(tmp_path) == []
    (tmp_path / "docs/reference/cli.md").write_text("old\n")
    (tmp_path / "docs/reference/api").mkdir()
    (tmp_path / "docs/reference/api/gone.md").write_text("old\n")
    assert make_reference.stale(tmp_path) == ["docs/reference/api/gone.md", "docs/reference/cli.md"]
    make_reference.write(tmp_path)
    assert make_reference.stale(tmp_path) == []


def test_every_verb_and_option_is_there(pages):
    page = pages["docs/reference/cli.md"]
    for verb in VERBS:
        assert f"## {verb} {{ #{verb} }}" in page
    for option in ("`--out`", "`-o`", "`--json`", "`--calibration`", "`--ray`"):
        assert option in page


def test_every_key_of_a_recipe_is_there_with_a_meaning(pages):
    page = pages["docs/reference/recipes.md"]
    for name in Recipe.model_fields:
        assert f"| `{name}` |" in page or f"### {name}\n" in page
    assert "|  |\n" not in page


def test_every_route_of_the_server_is_there_with_its_fields(pages):
    page = pages["docs/reference/http.md"]
    for document in openapi_documents().values():
        for path, method, operation in operations(document):
            assert f"### {method.upper()} {path} {{ #{operation['operationId']} }}" in page
    for field in ("`encoding_format`", "`results[].labels[].probability`", "`hits[].id`", "`clip`"):
        assert f"| {field} |" in page
