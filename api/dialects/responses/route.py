"""POST /v1/responses: chat with items in and out; a conversation is sent whole each time."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.dialects.responses.frames import ResponseFrames
from api.dialects.responses.schema import FunctionChoice, ResponseBody, ResponseRequest, TextSettings
from api.dialects.strict import StrictRoute, answers_with
from api.engine.prompt import Prompt
from api.generation.answer_schema import AnswerSchema, Offer
from api.generation.exchange import Answer, Exchange, Timeout
from api.generation.schema import Usage
from api.generation.tool_calls import CallParser
from api.service import Service, ServiceOfApp

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/responses", response_class=JSONResponse, responses=answers_with(ResponseBody))
async def create_response(
    request: ResponseRequest, service: ServiceOfApp, timeout: Timeout = None
) -> Response:
    service.lifecycle.require_ready()
    service.require_model(request.model)
    return _Response(request, service, timeout)


class _Response(Exchange):
    id_prefix = "resp_"
    prompt_field = "input"
    limit_field = "max_output_tokens"

    def __init__(self, request: ResponseRequest, service: Service, timeout_s: float | None) -> None:
        super().__init__(request.generation(), service, timeout_s)
        self._asked = request
        choice = request.tool_choice
        only = choice.name if isinstance(choice, FunctionChoice) else None
        any_of = None if isinstance(choice, FunctionChoice) else choice
        self._offer = Offer(request.functions(), any_of, only, request.parallel_tool_calls)

    def prompts(self) -> int:
        return 1

    def encode(self, prompt: Prompt) -> list[list[int]]:
        return [prompt.encode(self._asked.messages(), self._offer.tools)]

    def answer_schema(self, prompt: Prompt) -> AnswerSchema | None:
        format = self._asked.text.format.schema_wanted() if self._asked.text else None
        return self._offer.answer_schema(format, "text.format", prompt.arguments_key)

    def token_limit(self) -> int | None:
        return self._asked.max_output_tokens

    def logprobs_wanted(self) -> int | None:
        return None

    def frames(self, head: dict[str, Any], answers: int) -> ResponseFrames:
        parser = CallParser(self._offer.names, self._offer.parallel) if self._offer.tools else None
        return ResponseFrames(self._body(), parser)

    def whole(self, head: dict[str, Any], answers: Sequence[Answer], usage: Usage) -> ResponseBody:
        """What a stream of it ends with."""
        frames = self.frames(head, 1)
        frames.first(answers[0].text)
        frames.finish(answers[0].finish_reason)
        frames.end(usage)
        return ResponseBody(**frames.response)

    def _body(self) -> ResponseBody:
        asked = self._asked
        return ResponseBody(
            id=self.id,
            created_at=self.created,
            status="in_progress",
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            metadata=asked.metadata or {},
            model=asked.model,
            output=[],
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            temperature=asked.temperature,
            text=asked.text or TextSettings(),
            tool_choice=asked.tool_choice or "auto",
            tools=asked.tools or [],
            top_p=asked.top_p,
            user=asked.user,
        )
