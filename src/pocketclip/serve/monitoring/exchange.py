"""What is known of a request when it has ended: counts and times, never contents.

A request is known by the template of its route and by its method, both of a fixed set, so that no
caller can make the metrics grow.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
OTHER = "other"
"""A path or a method that the server does not have."""
DropReason = Literal["client_gone", "deadline", "draining", "held_bytes", "queue_full"]
"""Why a request was given up: its client left, its time was over, the server ends, or too many
bytes or inputs of other requests are waiting."""
DROP_REASONS: tuple[DropReason, ...] = (
    "client_gone", "deadline", "draining", "held_bytes", "queue_full",
)  # fmt: skip
CLIENT_GONE = 499
"""The status that stands for a request without an answer; nginx has the same."""
KEY = "pocketclip.exchange"
"""Where the scope of a request has it."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """A request and its answer, without what is in them."""

    request_id: str
    """Made here, and sent as the header `X-Request-Id`."""
    port: str
    """`main` or `immich`."""
    method: str
    """One of `METHODS`, or `OTHER`."""
    route: str
    """The template of the path, such as `/photos/{id}`, or `OTHER`."""
    status: int | None = None
    """None until the answer begins; `CLIENT_GONE` if there was none."""
    seconds: float = 0.0
    """From the end of the request's header to the end of the answer."""
    received_bytes: int = 0
    """Of the body that was read."""
    sent_bytes: int = 0
    """Of the answer's body."""
    dropped: DropReason | None = None


def note_drop(scope: MutableMapping[str, Any], reason: DropReason) -> None:
    """Record why a request is given up; the first reason stays."""
    exchange: Exchange | None = scope.get(KEY)
    if exchange is not None and exchange.dropped is None:
        exchange.dropped = reason


def route_of(scope: MutableMapping[str, Any]) -> str | None:
    """Return the template of a request's path; None outside of a server."""
    exchange: Exchange | None = scope.get(KEY)
    return None if exchange is None else exchange.route
