"""Every refusal on a dialect's path is written by that dialect, whichever layer refuses."""

from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest
from fastapi import APIRouter

from api import app as app_module
from api.dialects.fields import Strict
from api.dialects.json_route import JsonRoute
from api.dialects.messages.errors import error_body
from api.errors import ApiError, EngineFailed, Overloaded, RateLimited
from api.http import access
from tests.support.api import KEY, MODEL, URL, FakeEngine, House, ask, assert_openai_error

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


async def test_each_layer_refuses_in_anthropics_body_on_its_paths(make_house: Callable[..., House]) -> None:
    house = make_house(FakeEngine(hold_before=0), key=KEY)

    def refused(answer: httpx.Response, status: int, type: str) -> None:
        body = answer.json()
        assert (answer.status_code, body["type"], body["error"]["type"]) == (status, "error", type)
        assert set(body) == {"type", "error", "request_id"} and set(body["error"]) == {"type", "message"}
        assert body["request_id"] == answer.headers["x-request-id"]

    for path, good in (("/v1/messages", ask(max_tokens=1)), ("/v1/messages/count_tokens", ask())):
        async with house.client() as client:
            refused(await client.post(path, json=good), 401, "authentication_error")
        async with house.client(headers={"x-api-key": KEY}) as client:
            too_large = b" " * (access.MAX_BODY_BYTES + 1)
            refused(await client.post(path, content=too_large), 413, "request_too_large")
            large = {"x-big": "x" * 20_000}
            refused(await client.post(path, json=good, headers=large), 431, "invalid_request_error")
            refused(await client.get(path), 405, "invalid_request_error")
            refused(await client.post(path, content=b"{}"), 415, "invalid_request_error")
            refused(await client.post(path, json={"model": "x"}), 400, "invalid_request_error")
            if path == "/v1/messages":
                refused(await client.post(path, json=good), 503, "api_error")
                await house.load()
                late = await client.post(path, json=good, headers={"x-request-timeout": "0.05"})
                refused(late, 408, "timeout_error")
            unknown = await client.post(path, json=good | {"model": "claude-x"})
            refused(unknown, 404, "not_found_error")
            assert MODEL in unknown.text, "it says which model there is"


@pytest.mark.parametrize(
    ("error", "type"),
    [
        (RateLimited("Enough.", 1), "rate_limit_error"),
        (Overloaded("Busy."), "overloaded_error"),
        (EngineFailed("Dead."), "api_error"),
    ],
)
def test_anthropics_clients_hear_their_own_name_of_an_error(error: ApiError, type: str) -> None:
    assert f'"type":"{type}"' in error_body(error).decode()
