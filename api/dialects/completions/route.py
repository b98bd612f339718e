"""POST /v1/completions: a text goes on, or several do; no template is in the way."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.dialects.chat.frames import CompletionFrames
from api.dialects.completions.schema import Completion, CompletionChoice, CompletionRequest
from api.dialects.strict import StrictRoute, answers_with
from api.engine.prompt import Prompt
from api.errors import InvalidRequest
from api.generation.exchange import Answer, Exchange, Timeout
from api.generation.logprobs import completion_logprobs
from api.generation.schema import Usage
from api.service import Service, ServiceOfApp

DEFAULT_MAX_TOKENS = 16  # OpenAI's

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/completions", response_class=JSONResponse, responses=answers_with(Completion))
async def create_completion(
    request: CompletionRequest, service: ServiceOfApp, timeout: Timeout = None
) -> Response:
    service.lifecycle.require_ready()
    service.require_model(request.model)
    return _Completion(request, service, timeout)


class _Completion(Exchange):
    id_prefix = "cmpl-"
    prompt_field = "prompt"

    def __init__(self, request: CompletionRequest, service: Service, timeout_s: float | None) -> None:
        super().__init__(request, service, timeout_s)
        self._completion = request

    def prompts(self) -> int:
        return len(self._completion.prompts())

    def encode(self, prompt: Prompt) -> list[list[int]]:
        given = self._completion.prompts()
        found = [prompt.encode_text(text) if isinstance(text, str) else text for text in given]
        if not all(found):
            raise InvalidRequest("A prompt must have at least one token.", param="prompt")
        return found

    def token_limit(self) -> int | None:
        return self._completion.max_tokens or DEFAULT_MAX_TOKENS

    def logprobs_wanted(self) -> int | None:
        return self._completion.logprobs

    def frames(self, head: dict[str, Any], answers: int) -> CompletionFrames:
        return CompletionFrames(head, answers, include_usage=self._completion.wants_usage())

    def whole(self, head: dict[str, Any], answers: Sequence[Answer], usage: Usage) -> Completion:
        wanted = self._completion.logprobs is not None
        choices = [
            CompletionChoice(
                index=index,
                text=answer.text,
                logprobs=completion_logprobs(answer.logprobs, 0) if wanted else None,
                finish_reason=answer.finish_reason,
            )
            for index, answer in enumerate(answers)
        ]
        return Completion(**head, choices=choices, usage=usage)
