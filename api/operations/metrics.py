"""Serve /metrics, which names every key and its traffic: on the operator's port, and to Prometheus."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.service import ServiceOfApp

PATHS = frozenset({"/metrics"})
"""On the clients' port these paths are for the operator (http/access.py)."""

router = APIRouter()


@router.get("/metrics", response_class=Response)
async def metrics(service: ServiceOfApp) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
