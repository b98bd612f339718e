"""GET /v1/models: what is served, known before it is loaded: the merged model, and what is beside it."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from api.engine.beside import BASE
from api.errors import ErrorBody
from api.service import Service, ServiceOfApp


class Model(BaseModel):
    """root: which artifact, base or adapter it is. parent: of an adapter, the model that it changes."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["finechat"] = "finechat"
    root: str
    parent: str | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


router = APIRouter(responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}})


@router.get("/v1/models")
async def list_models(service: ServiceOfApp) -> ModelList:
    return ModelList(data=_models(service))


@router.get("/v1/models/{model}")
async def retrieve_model(model: str, service: ServiceOfApp) -> Model:
    service.require_model(model)
    return next(known for known in _models(service) if known.id == model)


def _models(service: Service) -> list[Model]:
    manifest = service.lifecycle.artifact.manifest
    created = int(manifest.created_at.timestamp())
    models = [Model(id=manifest.name, created=created, root=manifest.id)]
    if service.beside:
        models.append(Model(id=BASE, created=created, root=manifest.base_model["id"]))
        models += [
            Model(id=adapter.name, created=adapter.created, root=adapter.name, parent=BASE)
            for adapter in service.beside.adapters
        ]
    return models
