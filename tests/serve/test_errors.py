"""Errors as answers."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from typing import Annotated, Literal

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from pocketclip.errors import (
    BundleError,
    ConfigError,
    DataError,
    EmbeddingError,
    ImageError,
    LibraryError,
    QueryError,
    StorageError,
)  # fmt: skip
from pocketclip.serve.app import _prepared
from pocketclip.serve.errors import RequestError, as_request_error, without_paths
from pocketclip.serve.middleware.answers import openai_form

SECRET = "SECRET"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RequestError(418, "tea"), 418, "tea"),
        (ImageError("image 3 (counted from 0): no image"), 400, "image 3 (counted from 0): no"),
        (QueryError("the text is empty"), 400, "the text is empty"),
        (DataError("the prompt 'a/b' has no {}"), 400, "the prompt 'a/b' has no {}"),
        (EmbeddingError("text 1", "is zero"), 400, "text 1: is zero"),
        (ImageError("/home/me/a.jpg: no image"), 400, "this input cannot be used"),
        (QueryError("no folder C:\\Users\\me"), 400, "this input cannot be used"),
        (ImageError("see file:///etc/passwd"), 400, "this input cannot be used"),
        (LibraryError("/home/me/library.db is damaged"), 503, "the server cannot do this"),
        (BundleError("/home/me/phone is gone"), 503, "the server cannot do this"),
        (StorageError("s3://bucket/key"), 503, "the server cannot do this"),
        (ConfigError("x"), 503, "the server cannot do this"),
        (sqlite3.OperationalError("database is locked"), 503, "the server cannot do this"),
        (OSError(errno.ENOSPC, "No space", "/home/me/x"), 503, "the server cannot do this"),
        (MemoryError(), 503, "the server cannot do this"),
        (asyncio.TimeoutError(), 503, "the server cannot do this"),
        (HTTPException(404, "Not Found"), 404, "there is nothing at this path"),
        (HTTPException(405, headers={"Allow": "GET"}), 405, "this path does not take"),
        (KeyError("/home/me"), 500, "the server failed"),
    ],
)  # fmt: skip
def test_every_error_has_an_answer_without_a_path(error, status, message, caplog):
    answer = as_request_error(error)
    assert answer.status == status
    assert str(answer).startswith(message)
    assert "me" not in str(answer).split("/")
    assert not any("/home" in text or "Users" in text for text in caplog.messages)
    if status == 503:
        assert answer.headers["Retry-After"] == "5"
        assert type(error).__name__ in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/a b.jpg: no image", "…: no image"), ("cannot read '/a/b'", "cannot read '…'"),
        ("and/or, 1/2, https://a.example/b, s3://b/k, ~/x", None), ("a\nb", "a b"),
        ("at C:\\Users\\me", "at …"), ("(/etc)", "(…"), ("a / b", None), ("\x1b[2J", "\\x1b[2J"),
    ],
)  # fmt: skip
def test_paths_are_cut_out_of_what_is_logged(text, expected):
    assert without_paths(text) == (text if expected is None else expected)


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    input: list[int]
    modality: Literal["text", "image"] = "text"
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    named: dict[str, int] = Field(default_factory=dict)


@pytest.fixture(scope="module")
def ask():
    app = _prepared(FastAPI(), (), openai_form)

    @app.post("/body")
    async def take(_body: Body, count: int = 0) -> int:
        return count

    def post(content, query=""):
        async def main():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
                headers = {"Content-Type": "application/json"}
                return await client.post(f"/body{query}", content=content, headers=headers)

        return asyncio.run(main())

    return post


@pytest.mark.parametrize(
    ("content", "query", "param", "message"),
    [
        ("{}", "", "input", "input: is missing"),
        ('{"input": ["SECRET"]}', "", "input[0]", "input[0]: Input should be a valid integer"),
        ('{"input": "SECRET"}', "", "input", "input: Input should be a valid list"),
        ('{"input": [], "modality": "SECRET"}', "", "modality", "modality: Input should be 'text'"),
        ('{"input": [], "pet": {"kind": "SECRET"}}', "", "pet", "pet: must be one of 'cat', 'dog'"),
        ('{"input": [], "other": "SECRET"}', "", "other", "other: there is no such field"),
        ('{"input": [], "a SECRET key": 1}', "", None, "…: there is no such field"),
        ('{"input": [], "named": {"a SECRET": "x"}}', "", None, "named…: Input should be"),
        ('["SECRET"]', "", None, "Input should be"),
        ('{"SECRET', "", None, "the body is not valid JSON"),
        ("\xff", "", None, "the body is not valid: it is neither"),
        ('{"input": []}', "?count=SECRET", "count", "count: Input should be a valid integer"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_and_what_it_held_is_not(ask, content, query, param, message):
    answer = ask(content.encode("latin-1"), query)
    assert answer.status_code in (400, 422)
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(message)
    assert error["type"] == "invalid_request_error"
    assert SECRET not in answer.text
    assert answer.text.isascii()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"input": [' + b"9" * 5000 + b"]}", b""])
def test_json_that_is_too_much_for_the_parser_is_the_clients_error(ask, content):
    answer = ask(content)
    assert answer.status_code in (400, 422)
    assert len(answer.content) < 500
