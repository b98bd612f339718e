"""GET /v1/models: the one model that is served, known from its manifest before it is loaded."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from api.errors import ErrorBody
from api.service import Service, ServiceOfApp


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["finechat"] = "finechat"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


router = APIRouter(responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}})


@router.get("/v1/models")
async def list_models(service: ServiceOfApp) -> ModelList:
    return ModelList(data=[_model(service)])


@router.get("/v1/models/{model}")
async def retrieve_model(model: str, service: ServiceOfApp) -> Model:
    service.require_model(model)
    return _model(service)


def _model(service: Service) -> Model:
    manifest = service.lifecycle.artifact.manifest
    return Model(id=manifest.name, created=int(manifest.created_at.timestamp()))
