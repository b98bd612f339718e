"""POST /v1/chat/completions."""

from collections.abc import Sequence
from dataclasses import replace

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.dialects import openai_errors
from api.dialects.chat.answer import AssistantMessage, ChatCompletion, Choice, ChoiceLogprobs
from api.dialects.chat.frames import ChatFrames
from api.dialects.chat.schema import ChatRequest, ToolCall
from api.dialects.chunks import Usage, head
from api.dialects.fields import most_tokens
from api.dialects.json_route import JsonRoute, answers_with
from api.generation import events
from api.generation.events import Answer, Identity
from api.generation.request import FieldNames, GenerationRequest
from api.generation.runner import Timeout
from api.service import ServiceOfApp

_FIELDS = FieldNames("messages", "max_tokens", "response_format")

router = APIRouter(route_class=JsonRoute)
error_body = openai_errors.error_body


@router.post(
    "/v1/chat/completions",
    response_class=JSONResponse,
    responses=answers_with(ChatCompletion, openai_errors.ErrorBody),
)
async def create_chat_completion(
    request: ChatRequest, service: ServiceOfApp, timeout: Timeout = None
) -> Response:
    service.lifecycle.require_ready()
    service.require_model(request.model)
    return service.runner.respond(_generation(request), _Chat(request), timeout)


def _generation(request: ChatRequest) -> GenerationRequest:
    return GenerationRequest(
        model=request.model,
        prompts=[request.conversation()],
        sampling=replace(request.sampling(request.n), thinking_tokens=request.thinking_tokens()),
        max_tokens=most_tokens(request.max_completion_tokens or request.max_tokens),
        stream=bool(request.stream),
        fields=_FIELDS,
        usage_in_chunks=request.wants_usage_in_chunks(),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        offer=request.offer(),
        format=request.response_format.wanted() if request.response_format else None,
        show_thinking=request.shows_thinking(),
    )


class _Chat:
    id_prefix = "chatcmpl-"

    def __init__(self, request: ChatRequest) -> None:
        self._request = request

    def frames(self, identity: Identity, answers: int) -> ChatFrames:
        return ChatFrames(identity, answers, include_usage=self._request.wants_usage())

    def body(self, identity: Identity, answers: Sequence[Answer], usage: events.Usage) -> bytes:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        body = ChatCompletion(**head(identity), choices=choices, usage=Usage.of(usage))
        return body.model_dump_json().encode()

    def _choice(self, index: int, answer: Answer) -> Choice:
        calls = [ToolCall.of(call) for call in answer.calls] or None
        content, thinking = answer.text or (None if calls else ""), answer.thinking or None
        message = AssistantMessage(
            content=content, reasoning_content=thinking, reasoning=thinking, tool_calls=calls
        )
        logprobs = ChoiceLogprobs(content=answer.logprobs) if self._request.logprobs else None
        return Choice(
            index=index,
            message=message,
            logprobs=logprobs,
            finish_reason=answer.finish_reason,
            schema_error=answer.schema_error,
        )
