"""POST /v1/completions: continue a text, or several; no chat template is used."""

from collections.abc import Sequence

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.dialects import openai_errors
from api.dialects.chunks import Usage, head
from api.dialects.completions.frames import CompletionFrames
from api.dialects.completions.schema import (
    Completion,
    CompletionChoice,
    CompletionRequest,
    completion_logprobs,
)
from api.dialects.fields import most_tokens
from api.dialects.json_route import JsonRoute, answers_with
from api.generation import events
from api.generation.events import Answer, Identity
from api.generation.request import FieldNames, GenerationRequest
from api.generation.runner import Timeout
from api.service import ServiceOfApp

DEFAULT_MAX_TOKENS = 16  # OpenAI's
_FIELDS = FieldNames("prompt", "max_tokens")

router = APIRouter(route_class=JsonRoute)
error_body = openai_errors.error_body


@router.post(
    "/v1/completions",
    response_class=JSONResponse,
    responses=answers_with(Completion, openai_errors.ErrorBody),
)
async def create_completion(
    request: CompletionRequest, service: ServiceOfApp, timeout: Timeout = None
) -> Response:
    service.lifecycle.require_ready()
    service.require_model(request.model)
    return service.runner.respond(_generation(request), _Completion(request), timeout)


def _generation(request: CompletionRequest) -> GenerationRequest:
    return GenerationRequest(
        model=request.model,
        prompts=request.prompts(),
        sampling=request.sampling(request.n),
        max_tokens=most_tokens(request.max_tokens or DEFAULT_MAX_TOKENS),
        stream=bool(request.stream),
        fields=_FIELDS,
        usage_in_chunks=request.wants_usage_in_chunks(),
        logprobs=request.logprobs,
        echo=bool(request.echo),
    )


class _Completion:
    id_prefix = "cmpl-"

    def __init__(self, request: CompletionRequest) -> None:
        self._request = request

    def frames(self, identity: Identity, answers: int) -> CompletionFrames:
        return CompletionFrames(identity, answers, include_usage=self._request.wants_usage())

    def body(self, identity: Identity, answers: Sequence[Answer], usage: events.Usage) -> bytes:
        wanted = self._request.logprobs is not None
        choices = [
            CompletionChoice(
                index=index,
                text=answer.text,
                logprobs=completion_logprobs(answer.logprobs, 0) if wanted else None,
                finish_reason="length" if answer.finish_reason == "length" else "stop",
            )
            for index, answer in enumerate(answers)
        ]
        body = Completion(**head(identity), choices=choices, usage=Usage.of(usage))
        return body.model_dump_json().encode()
