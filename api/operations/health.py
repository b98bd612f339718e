"""Serve /health/live (should the process be restarted?) and /health/ready (send requests?).

/health/live stays 200 while the model loads, while a dead engine is restarted, and while the service drains.
/health answers as /health/ready: load balancers and clients of vLLM's server ask there.
"""

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api.engine.lifecycle import State
from api.service import Service, ServiceOfApp


class Health(BaseModel):
    status: State
    detail: str


OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
"""These paths need no key, because orchestrators send none."""

router = APIRouter()


@router.get("/health/live", responses={503: {"model": Health}})
async def live(service: ServiceOfApp, response: Response) -> Health:
    if service.lifecycle.state is State.FAILED:
        response.status_code = 503
    return _health(service)


@router.get("/health", responses={503: {"model": Health}})
@router.get("/health/ready", responses={503: {"model": Health}})
async def ready(service: ServiceOfApp, response: Response) -> Health:
    if service.lifecycle.state is not State.READY:
        response.status_code = 503
        response.headers["retry-after"] = "5"
    return _health(service)


def _health(service: Service) -> Health:
    return Health(status=service.lifecycle.state, detail=service.lifecycle.explanation)
