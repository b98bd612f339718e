"""GET /v1/models: the merged model and the models served for comparison, also while they load."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from api.dialects import openai_errors
from api.engine.comparison import BASE
from api.service import Service, ServiceOfApp


class Model(BaseModel):
    """A model that is served. root: the id of its artifact, base or adapter.

    parent: the model that an adapter changes. max_model_len: tokens of prompt and answer together, by vLLM's
    name. licence: the base's. description, examples: what the model is for and prompts to try, for a chat
    page; null and empty for the base and for adapters.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["finechat"] = "finechat"
    root: str
    parent: str | None = None
    max_model_len: int
    licence: str
    description: str | None = None
    examples: list[str] = []


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


router = APIRouter(
    responses={"4XX": {"model": openai_errors.ErrorBody}, "5XX": {"model": openai_errors.ErrorBody}}
)
error_body = openai_errors.error_body


@router.get("/v1/models")
async def list_models(service: ServiceOfApp) -> ModelList:
    return ModelList(data=_models(service))


@router.get("/v1/models/{model}")
async def retrieve_model(model: str, service: ServiceOfApp) -> Model:
    service.require_model(model)
    return next(known for known in _models(service) if known.id == model)


def _models(service: Service) -> list[Model]:
    artifact = service.lifecycle.artifact
    manifest = artifact.manifest
    created, base = int(manifest.created_at.timestamp()), manifest.base_model
    known: list[tuple[str, int, str, str | None]]
    known = [(manifest.name, created, manifest.id, None)]
    if service.comparison:
        known.append((BASE, created, base.id, None))
        known += [(each.name, each.created, each.name, BASE) for each in service.comparison.adapters]
    context = artifact.context_tokens(service.max_model_len)
    models = [
        Model(
            id=name,
            created=made,
            root=root,
            parent=parent,
            max_model_len=context,
            licence=base.licence,
        )
        for name, made, root, parent in known
    ]
    models[0].description, models[0].examples = manifest.description, manifest.examples
    return models
