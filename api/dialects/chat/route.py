"""POST /v1/chat/completions."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.dialects.chat.frames import CallFrames, ChatFrames
from api.dialects.chat.schema import (
    AssistantMessage,
    ChatCompletion,
    ChatFinishReason,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
)
from api.dialects.strict import StrictRoute, answers_with
from api.engine.prompt import Prompt
from api.errors import InvalidRequest
from api.generation.answer_schema import AnswerSchema, Offer
from api.generation.exchange import Answer, Exchange, Timeout
from api.generation.schema import Usage
from api.generation.tool_calls import CallParser, assembled
from api.generation.tools import NamedToolChoice
from api.service import Service, ServiceOfApp

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", response_class=JSONResponse, responses=answers_with(ChatCompletion))
async def create_chat_completion(
    request: ChatRequest, service: ServiceOfApp, timeout: Timeout = None
) -> Response:
    service.lifecycle.require_ready()
    service.require_model(request.model)
    return _Chat(request, service, timeout)


class _Chat(Exchange):
    id_prefix = "chatcmpl-"
    prompt_field = "messages"

    def __init__(self, request: ChatRequest, service: Service, timeout_s: float | None) -> None:
        super().__init__(request, service, timeout_s)
        self._chat = request
        choice = request.tool_choice
        only = choice.function.name if isinstance(choice, NamedToolChoice) else None
        any_of = None if isinstance(choice, NamedToolChoice) else choice
        self._offer = Offer(request.tools, any_of, only, request.parallel_tool_calls)

    def prompts(self) -> int:
        return 1

    def encode(self, prompt: Prompt) -> list[list[int]]:
        return [prompt.encode(self._chat.messages, self._offer.tools)]

    def answer_schema(self, prompt: Prompt) -> AnswerSchema | None:
        format = self._chat.response_format
        wanted = format.schema_wanted() if format else None
        schema = self._offer.answer_schema(wanted, "response_format", prompt.arguments_key)
        if schema and self._chat.stop_token_ids:
            raise InvalidRequest(
                f"stop_token_ids: they could end an answer before it obeys {schema.param}.",
                param="stop_token_ids",
            )
        return schema

    def token_limit(self) -> int | None:
        return self._chat.max_completion_tokens or self._chat.max_tokens

    def logprobs_wanted(self) -> int | None:
        return (self._chat.top_logprobs or 0) if self._chat.logprobs else None

    def frames(self, head: dict[str, Any], answers: int) -> ChatFrames:
        if self._offer.tools:
            parsers = [self._parser() for _ in range(answers)]
            return CallFrames(head, parsers, include_usage=self._chat.wants_usage())
        return ChatFrames(head, answers, include_usage=self._chat.wants_usage())

    def whole(self, head: dict[str, Any], answers: Sequence[Answer], usage: Usage) -> ChatCompletion:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return ChatCompletion(**head, choices=choices, usage=usage)

    def _choice(self, index: int, answer: Answer) -> Choice:
        message = AssistantMessage(content=answer.text)
        reason: ChatFinishReason = answer.finish_reason
        if self._offer.tools:
            parser = self._parser()
            text, calls = assembled([*parser.feed(answer.text), *parser.end()])
            message = AssistantMessage(content=text or (None if calls else ""), tool_calls=calls or None)
            reason = parser.reason(reason)
        logprobs = ChoiceLogprobs(content=answer.logprobs) if self._chat.logprobs else None
        return Choice(index=index, message=message, logprobs=logprobs, finish_reason=reason)

    def _parser(self) -> CallParser:
        return CallParser(self._offer.names, self._offer.parallel)
