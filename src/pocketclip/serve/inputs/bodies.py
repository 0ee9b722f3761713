"""JSON of requests and answers: read with limits, and in a thread where it is large.

router = APIRouter(route_class=JsonRoute)

@router.post("/embed")
async def embed(body: Embed) -> Response:
return await json_answer(lambda: {"embedding": rows.tolist()}, values=rows.size)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from pocketclip.errors import ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.serve.errors import RequestError

M = TypeVar("M", bound=BaseModel)
_INLINE_BYTES = 1 << 18  # more are read in a thread: they take more than a millisecond
_MOST_TEXTS = 100_000
"""In a body, with keys; reading more would hold all other requests up for seconds."""
_VALUE_BYTES = 32 << 20
"""Memory of a body's values beside its texts. A body counts as its own bytes only, and its value
may need many times as much: empty lists need 20 times."""
_INLINE_VALUES = 1 << 13  # as many numbers are written in a millisecond


def is_json(request: Request) -> bool:
    """Return whether the body of a request is said to be JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


class JsonRequest(Request):
    """A request whose JSON is read by `read_json`."""

    async def json(self) -> Any:
        """Return the value of the body.

        Raises:
            HTTPException: 400, it is not JSON as we take it.
        """
        if not hasattr(self, "_value"):
            self._value = await read_json(self)
        return self._value


class JsonRoute(APIRoute):
    """A route whose JSON is read by `read_json`; `APIRouter(route_class=JsonRoute)`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handler = super().get_route_handler()
        takes_json = self.body_field is not None

        async def handle(request: Request) -> Response:
            if takes_json and not is_json(request):
                raise RequestError(
                    415, "the Content-Type of the body must be application/json "
                    "(curl: -H 'Content-Type: application/json')",
                )  # fmt: skip
            return await handler(JsonRequest(request.scope, request.receive))

        return handle


async def read_json(request: Request) -> Any:
    """Return the value of a request's body.

    Repeated keys, NaN, lone surrogates, very deep nesting, and more small values than any request
    needs are refused.

    Raises:
        HTTPException: 400, it is not JSON as we take it. FastAPI passes no other exception on.
    """
    body = await request.body()
    try:
        if len(body) < _INLINE_BYTES:
            return _load(body)
        return await asyncio.to_thread(_load, body)
    except ParseError as error:
        raise HTTPException(400, str(error)) from None


def _load(body: bytes) -> Any:
    # Python reads JSON without letting other threads run, so what may be in it is counted first.
    if body.count(b'"') - body.count(b'\\"') > 2 * _MOST_TEXTS:
        raise ParseError(f"the body holds too many texts: the limit is {_MOST_TEXTS:,}, with keys")
    return load_json(body, what="the body", max_memory=len(body) + _VALUE_BYTES)


def check_is_json(request: Request) -> None:
    """Refuse a body that says to be neither JSON nor, where the caller looked before, a form.

    So the page of another origin cannot send one without asking first.

    Raises:
        RequestError: 415.
    """
    if not is_json(request):
        raise RequestError(415, "the Content-Type must be application/json or multipart/form-data")


def validated(model: type[M], value: object) -> M:
    """Return what a body holds as a model, where FastAPI does not do it.

    Raises:
        RequestValidationError: it has another form.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError(
            [{**one, "loc": ("body", *one["loc"])} for one in found]
        ) from None


async def json_answer(
    fields: Mapping[str, Any], name: str = "", items: Iterable[Any] = (), *, values: int = 0
) -> Response:
    """Return an answer in JSON: an object, whose last field may be a long list.

    Numbers are written so that the same float64, and so the same float32, is read back. This takes
    a fifth of the time of Python's own `json`. A long list is written in a thread, item by item:
    between two of them, others may run.

    Args:
        fields: of the object, of plain types.
        name: of the last field; "" if there is no list.
        items: of the list, of plain types; taken in a thread if the answer is long.
        values: how many numbers and texts the items have together, about.
    """

    def written() -> bytes:
        if not name:
            return to_json(fields)
        head = to_json({**fields, name: []}).removesuffix(b"]}")
        return head + b",".join(to_json(item) for item in items) + b"]}"

    data = written() if values < _INLINE_VALUES else await asyncio.to_thread(written)
    return Response(data, media_type="application/json")
