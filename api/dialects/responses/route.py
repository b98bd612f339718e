"""POST /v1/responses: chat with items in and out; a conversation is sent whole each time."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from api.dialects import openai_errors
from api.dialects.json_route import JsonRoute, answers_with
from api.dialects.responses.answer import ItemStatus, ResponseBody
from api.dialects.responses.frames import ResponseFrames, call_item, ended, message_item, reasoning_item
from api.dialects.responses.other_fields import NOT_STORED
from api.dialects.responses.schema import ResponseRequest, TextSettings
from api.errors import NotFound
from api.generation.events import Answer, Identity, Usage
from api.generation.request import FieldNames, GenerationRequest
from api.generation.runner import Timeout
from api.service import ServiceOfApp

_FIELDS = FieldNames("input", "max_output_tokens", "text.format")

router = APIRouter(route_class=JsonRoute)
error_body = openai_errors.error_body


@router.post(
    "/v1/responses",
    response_class=JSONResponse,
    responses=answers_with(ResponseBody, openai_errors.ErrorBody),
)
async def create_response(
    request: ResponseRequest, service: ServiceOfApp, timeout: Timeout = None
) -> Response:
    service.lifecycle.require_ready()
    service.require_model(request.model)
    return service.runner.respond(_generation(request), _Response(request), timeout)


async def find_response(response_id: str) -> None:
    """Answer clients that look up, cancel or delete an earlier response."""
    raise NotFound(f"Response with id {response_id[:64]!r} not found. {NOT_STORED}")


router.add_api_route(
    "/v1/responses/{response_id:path}",
    find_response,
    methods=["GET", "POST", "DELETE"],
    include_in_schema=False,
    route_class_override=APIRoute,
)


def _generation(request: ResponseRequest) -> GenerationRequest:
    return GenerationRequest(
        model=request.model,
        prompts=[request.conversation()],
        sampling=replace(request.sampling(), thinking_tokens=request.thinking_tokens()),
        max_tokens=request.max_output_tokens,
        stream=bool(request.stream),
        fields=_FIELDS,
        logprobs=request.logprobs(),
        unused=request.unused(),
        offer=request.offer(),
        format=request.text.format.wanted() if request.text else None,
        show_thinking=request.shows_thinking(),
    )


class _Response:
    id_prefix = "resp_"

    def __init__(self, request: ResponseRequest) -> None:
        self._request = request

    def frames(self, identity: Identity, answers: int) -> ResponseFrames:
        return ResponseFrames(self._body(identity))

    def body(self, identity: Identity, answers: Sequence[Answer], usage: Usage) -> bytes:
        """Return what a stream of the same answer would end with."""
        [answer] = answers
        last: ItemStatus = "incomplete" if answer.finish_reason == "length" else "completed"
        logprobs = answer.logprobs[: answer.text_tokens]
        said = answer.text or not (answer.calls or answer.thinking)
        items: list[dict[str, Any]] = (
            [reasoning_item(answer.thinking, "completed")] if answer.thinking else []
        )
        items += [message_item(answer.text, "completed", logprobs)] if said else []
        items += [call_item(call, "completed") for call in answer.calls]
        items[-1]["status"] = last
        whole = self._body(identity).model_dump() | {"output": items} | ended(answer.finish_reason, usage)
        whole["schema_error"] = answer.schema_error
        return ResponseBody(**whole).model_dump_json().encode()

    def _body(self, identity: Identity) -> ResponseBody:
        """Return the response as it is before anything was generated."""
        asked = self._request
        return ResponseBody(
            id=identity.id,
            created_at=identity.created,
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
            top_logprobs=asked.top_logprobs,
            top_p=asked.top_p,
            user=asked.user,
        )
