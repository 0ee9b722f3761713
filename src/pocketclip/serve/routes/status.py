"""Whether the server lives, whether it can answer, and with what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from pocketclip.serve.services import Services, services_of

router = APIRouter(tags=["status"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """Whether the process answers at all; full queues do not matter."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(services: Annotated[Services, Depends(services_of)]) -> JSONResponse:
    """Whether the server can answer: both towers have encoded something, and it is not ending."""
    ready = services.is_ready and not services.is_draining
    return JSONResponse({"status": "ok" if ready else "unavailable"}, 200 if ready else 503)
