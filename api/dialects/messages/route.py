"""POST /v1/messages and /v1/messages/count_tokens."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api.dialects.json_route import JsonRoute, answers_with
from api.dialects.messages import errors
from api.dialects.messages.answer import Ending, MessageBody, TokenCount, ToolUse, content
from api.dialects.messages.frames import MessageFrames
from api.dialects.messages.schema import MessageRequest, PromptRequest
from api.engine.sampling import Sampling
from api.generation.events import Answer, Identity, Usage
from api.generation.request import FieldNames, GenerationRequest
from api.generation.runner import Timeout
from api.generation.token_count import count_tokens
from api.http.state import RequestState
from api.service import ServiceOfApp

_FIELDS = FieldNames("messages", "max_tokens", "output_config.format")

REQUEST_ID = b"request-id"  # the header in which Anthropic's clients look for it

router = APIRouter(route_class=JsonRoute)
error_body = errors.error_body


@router.post(
    "/v1/messages", response_class=JSONResponse, responses=answers_with(MessageBody, errors.ErrorBody)
)
async def create_message(request: MessageRequest, service: ServiceOfApp, timeout: Timeout = None) -> Response:
    service.lifecycle.require_ready()
    service.require_model(request.model)
    generation = _generation(request, request.sampling(), request.max_tokens, stream=bool(request.stream))
    return service.runner.respond(generation, _Message(request.max_tokens), timeout)


@router.post(
    "/v1/messages/count_tokens",
    responses={"4XX": {"model": errors.ErrorBody}, "5XX": {"model": errors.ErrorBody}},
)
async def count_message_tokens(request: PromptRequest, service: ServiceOfApp, http: Request) -> TokenCount:
    service.lifecycle.require_ready()
    service.require_model(request.model)
    generation = _generation(request, Sampling(), None)
    counted = await count_tokens(service.runner, generation, RequestState.of(http.scope))
    return TokenCount(input_tokens=counted)


def _generation(
    request: PromptRequest, sampling: Sampling, max_tokens: int | None, stream: bool = False
) -> GenerationRequest:
    return GenerationRequest(
        model=request.model,
        prompts=[request.conversation()],
        sampling=sampling,
        max_tokens=max_tokens,
        stream=stream,
        fields=_FIELDS,
        offer=request.offer(),
        format=request.format(),
        unused=request.unused(),
        show_thinking=request.shows_thinking(),
    )


class _Message:
    id_prefix = "msg_"

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens

    def frames(self, identity: Identity, answers: int) -> MessageFrames:
        return MessageFrames(identity, self._max_tokens)

    def body(self, identity: Identity, answers: Sequence[Answer], usage: Usage) -> bytes:
        """Return what a stream of the same answer adds up to."""
        [answer] = answers
        blocks = content(answer)
        called = any(isinstance(block, ToolUse) for block in blocks)
        in_context = usage.completion_tokens >= self._max_tokens
        ending = Ending.of(answer, called, in_context)
        begun = MessageBody.begun(identity, usage)
        return begun.model_copy(update={"content": blocks, **ending.model_dump()}).model_dump_json().encode()
