"""Every refusal on a dialect's path is written by that dialect, whichever layer refuses."""

from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest
from fastapi import APIRouter

from api import app as app_module
from api.dialects.fields import Strict
from api.dialects.json_route import JsonRoute
from api.errors import ApiError, Overloaded
from api.http import access
from tests.support.api import KEY, URL, House, ask, assert_openai_error

pytestmark = pytest.mark.anyio
LINES = "/v1/lines"
BEARER = {"authorization": f"Bearer {KEY}"}


class Question(Strict):
    question: str


def lines_dialect() -> SimpleNamespace:
    """Return the route module of another dialect, at a path that app.py does not know."""
    router = APIRouter(route_class=JsonRoute)

    @router.post(LINES)
    async def ask_for_lines(request: Question) -> None:
        raise Overloaded("Busy.") if request.question == "busy" else RuntimeError("a defect")

    def error_body(error: ApiError) -> bytes:
        return f'"{error.reason}"'.encode()

    return SimpleNamespace(router=router, error_body=error_body)


async def test_each_layer_refuses_in_the_dialect_of_the_path(
    make_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "DIALECTS", (*app_module.DIALECTS, lines_dialect()))
    house = make_house(key=KEY)
    too_large = b" " * (access.MAX_BODY_BYTES + 1)

    def refused(answer: httpx.Response, status: int, reason: str) -> None:
        assert (answer.status_code, answer.json()) == (status, reason)

    async with house.client() as client:
        refused(await client.post(LINES, json={}), 401, "invalid_api_key")
        assert_openai_error(await client.post(URL, json=ask()), 401, "invalid_api_key")
    async with house.client(headers=BEARER) as client:
        refused(await client.post(LINES, content=too_large), 413, "request_too_large")
        refused(await client.get(LINES, headers={"x-big": "x" * 20_000}), 431, "headers_too_large")
        refused(await client.get(LINES), 405, "method_not_allowed")
        refused(await client.post(LINES, content=b"{}"), 415, "unsupported_media_type")
        refused(await client.post(LINES, json={"question": 3}), 400, "invalid_request")
        refused(await client.post(LINES, json={"question": "busy"}), 503, "overloaded")
        refused(await client.post(LINES, json={"question": "x"}), 500, "internal_error")
        assert_openai_error(await client.post(URL, content=too_large), 413, "request_too_large")
        assert_openai_error(await client.get(URL), 405, "method_not_allowed")
        assert_openai_error(await client.get(f"{LINES}/"), 404, "not_found")
