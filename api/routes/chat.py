"""POST /v1/chat/completions."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.engine.prompt import Prompt
from api.routes.exchange import Answer, Exchange, Timeout
from api.routes.strict import StrictRoute, answers_with
from api.schema.chat import AssistantMessage, ChatCompletion, ChatRequest, Choice, ChoiceLogprobs
from api.schema.generation import Usage
from api.service import Service, ServiceOfApp
from api.sse import ChatFrames

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", response_class=JSONResponse, responses=answers_with(ChatCompletion))
async def create_chat_completion(
    request: ChatRequest, service: ServiceOfApp, timeout: Timeout = None
) -> Response:
    service.lifecycle.require_ready()
    service.require_model(request.model)
    return _Chat(request, service, timeout)


class _Chat(Exchange):
    id_prefix = "chatcmpl"
    prompt_field = "messages"

    def __init__(self, request: ChatRequest, service: Service, timeout_s: float | None) -> None:
        super().__init__(request, service, timeout_s)
        self._chat = request

    def prompts(self) -> int:
        return 1

    def encode(self, prompt: Prompt) -> list[list[int]]:
        return [prompt.encode(self._chat.messages)]

    def token_limit(self) -> int | None:
        return self._chat.max_completion_tokens or self._chat.max_tokens

    def logprobs_wanted(self) -> int | None:
        return (self._chat.top_logprobs or 0) if self._chat.logprobs else None

    def frames(self, head: dict[str, Any], answers: int) -> ChatFrames:
        return ChatFrames(head, answers, include_usage=self._chat.wants_usage())

    def whole(self, head: dict[str, Any], answers: Sequence[Answer], usage: Usage) -> ChatCompletion:
        choices = [
            Choice(
                index=index,
                message=AssistantMessage(content=answer.text),
                logprobs=ChoiceLogprobs(content=answer.logprobs) if self._chat.logprobs else None,
                finish_reason=answer.finish_reason,
            )
            for index, answer in enumerate(answers)
        ]
        return ChatCompletion(**head, choices=choices, usage=usage)
