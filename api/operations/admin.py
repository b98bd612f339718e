"""Serve /admin/status, /admin/usage and /admin/reload on the operator's port."""

from datetime import date
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from api.engine.lifecycle import State
from api.service import ServiceOfApp


class Status(BaseModel):
    """The service's state. running, waiting: numbers of answers."""

    state: State
    detail: str
    artifact: str
    running: int
    waiting: int
    engine_restarts: int


router = APIRouter()


@router.get("/admin/status")
async def status(service: ServiceOfApp) -> Status:
    lifecycle = service.lifecycle
    return Status(
        state=lifecycle.state,
        detail=lifecycle.explanation,
        artifact=lifecycle.artifact.manifest.id,
        running=service.admission.running,
        waiting=service.admission.waiting,
        engine_restarts=lifecycle.restarts,
    )


@router.get("/admin/usage")
async def usage(
    service: ServiceOfApp, day: date | None = None, key: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Return requests and tokens by day and key, newest day first."""
    asked = day.isoformat() if day else None
    return {"usage": [line._asdict() for line in await service.ledger.usage(asked, key)]}


@router.post("/admin/reload")
async def reload(service: ServiceOfApp) -> Status:
    """Serve what `models/current` names now. Answer once it is served, or refused (409)."""
    await service.lifecycle.reload()
    return await status(service)
