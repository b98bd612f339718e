"""Who comes in: the key, the sizes, the number at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_admin_app
from api.http import access
from api.ledger.key_file import create_key
from api.ledger.keys import Limits
from api.operations import health
from tests.support import PATIENCE_S
from tests.support.api import KEY, MODEL, URL, FakeEngine, House, ask, assert_openai_error

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY.upper()}"},
        {"x-api-key": f"{KEY}x"},
        {"x-api-key": KEY, "authorization": "Bearer x"},
        {"x-api-key": KEY.upper(), "authorization": f"Basic {KEY}"},
        {"host": "x/health/live?", "x-forwarded-path": "/health/live"},
    ],
    ids=str,
)
async def test_without_the_right_key_only_health_is_open(
    make_house: MakeHouse, headers: dict[str, str]
) -> None:
    house = make_house(key=KEY)
    await house.load()
    async with house.client(headers=headers) as client:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere", "//health/live"):
            assert_openai_error(await client.get(path), 401, "invalid_api_key")
        for path in ("/health/live/", "/health%2Flive%2F..", "/health/live/../../v1/models"):
            assert (await client.get(path)).status_code == 401
        assert_openai_error(await client.post(URL, json=ask()), 401, "invalid_api_key")
        for path in health.OPEN_PATHS:
            assert (await client.get(path)).status_code == 200
    assert house.engine.calls == []


async def test_health_is_what_a_load_balancer_asks(make_house: MakeHouse) -> None:
    """Without a key, and it says what /health/ready says."""
    house = make_house(key=KEY)
    async with house.client() as client:
        assert health.OPEN_PATHS == {"/health", "/health/live", "/health/ready"}
        starting = await client.get("/health")
        assert (starting.status_code, starting.headers["retry-after"]) == (503, "5")
        await house.load()
        assert (await client.get("/health")).json() == (await client.get("/health/ready")).json()
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/health", "/health/live", "/v1/models", f"/v1/models/{MODEL}", "/v1/models/other", "/metrics"]
)
async def test_head_is_answered_as_get_without_the_body(make_house: MakeHouse, path: str) -> None:
    async with make_house(key=KEY).serving() as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.head("/v1/models")).status_code == 401
        found, head = await client.get(path, headers=BEARER), await client.head(path, headers=BEARER)
        assert head.status_code == found.status_code and head.content == b""
        for name in ("content-type", "content-length"):
            assert head.headers[name] == found.headers[name] or path == "/metrics"


async def test_a_connection_serves_on_after_a_head(make_house: MakeHouse) -> None:
    """A body that HEAD must not have would be read as the next answer."""
    get = b" HTTP/1.1\r\nhost: x\r\n\r\n"
    async with make_house().serving() as url, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        for line in (b"HEAD /health", b"HEAD /nowhere", f"HEAD {URL}".encode(), b"GET /health/live"):
            writer.write(line + get)
        heads = [await reader.readuntil(b"\r\n\r\n") for _ in range(4)]
        assert [head[9:12] for head in heads] == [b"200", b"404", b"405", b"200"]
        assert await reader.readuntil(b"}")
        writer.close()


async def test_the_methods_that_a_path_has_are_named(make_house: MakeHouse) -> None:
    async with make_house().client() as client:
        assert (await client.delete("/v1/models")).headers["allow"] == "GET, HEAD"
        assert (await client.head(URL)).headers["allow"] == "POST"


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}, {"x-api-key": f" {KEY}", "authorization": ""}],
)
async def test_right_key_opens_everything(make_house: MakeHouse, headers: dict[str, str]) -> None:
    house = make_house(key=KEY)
    await house.load()
    async with house.client(headers=headers) as client:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        assert (await client.post(URL, json=ask())).status_code == 200


async def test_metrics_name_every_key_so_only_the_operator_reads_them(
    make_house: MakeHouse, tmp_path: Path
) -> None:
    keys, operator = tmp_path / "keys.json", "operators-key-0123456789"
    secret = create_key(keys, "ann", Limits())

    async def statuses(**settings: Any) -> list[int]:
        house = make_house(**settings)
        credentials = ("", KEY, secret, operator)
        async with house.client() as client:
            headers = [{"authorization": f"Bearer {credential}"} for credential in credentials]
            return [(await client.get("/metrics", headers=one)).status_code for one in headers]

    assert await statuses(key=KEY, keys_file=keys, admin_key=operator) == [401, 404, 404, 200]
    assert await statuses(keys_file=keys, admin_key=operator) == [401, 401, 404, 200]
    assert await statuses(key=KEY, admin_key=operator) == [401, 404, 401, 200]
    assert await statuses(key=KEY, keys_file=keys) == [401, 404, 404, 401]
    assert await statuses(key=KEY) == [401, 200, 401, 401], "it is the only key"
    assert await statuses() == [200] * 4, "nobody needs a key"
    house = make_house(key=KEY, admin_key=operator)
    async with house.client(headers={"authorization": f"Bearer {operator}"}) as client:
        assert (await client.get("/v1/models")).status_code == 401, "it opens nothing else"
    app = create_admin_app(house.service, operator)
    for key, status in ((operator, 200), (KEY, 401)):
        transport = httpx.ASGITransport(app)
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://admin", headers=headers) as admin:
            assert (await admin.get("/metrics")).status_code == status


async def test_unknown_path_and_wrong_method_answer_in_openais_body(make_house: MakeHouse) -> None:
    async with make_house().client() as client:
        assert_openai_error(await client.get("/docs"), 404, "not_found")
        assert_openai_error(await client.get("/v1/models/"), 404, "not_found")
        assert_openai_error(await client.post("/invocations", json={}), 404, "not_found")
        assert_openai_error(await client.post("/nowhere"), 404, "not_found")
        assert_openai_error(await client.delete(URL), 405, "method_not_allowed")
        wrong = await client.get(URL)
        assert_openai_error(wrong, 405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_body_that_is_not_declared_json_is_refused(make_house: MakeHouse, media_type: str) -> None:
    async with make_house().client() as client:
        answer = await client.post(URL, content=b"{}", headers={"content-type": media_type})
    assert_openai_error(answer, 415, "unsupported_media_type")


async def test_large_body_is_refused_declared_or_not(make_house: MakeHouse) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 2**15
        pytest.fail("read on after the limit")

    headers = {"content-type": "application/json"}
    async with make_house().client(headers=headers) as client:
        declared = await client.post(URL, content=b" " * (access.MAX_BODY_BYTES + 1))
        assert_openai_error(declared, 413, "request_too_large")
        assert_openai_error(await client.post(URL, content=endless()), 413, "request_too_large")


async def test_slow_body_is_given_up(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "BODY_TIMEOUT_S", 0.05)
    house = make_house(FakeEngine())

    async def stalling() -> AsyncIterator[bytes]:
        yield b"{"
        await house.engine.release.wait()

    headers = {"content-type": "application/json"}
    async with house.client(headers=headers) as client:
        assert_openai_error(await client.post(URL, content=stalling()), 408, "request_timeout")


@pytest.mark.parametrize("size", [20_000, 200_000, 2_000_000])
async def test_huge_header_is_refused(make_house: MakeHouse, size: int) -> None:
    async with make_house().serving() as url, httpx.AsyncClient() as client:
        try:
            answer = await client.get(f"{url}/health/live", headers={"x-big": "x" * size})
        except httpx.TransportError:
            return  # the connection was cut while the client still sent
        assert answer.status_code in (400, 431)


async def test_full_house_refuses_with_retry_after(make_house: MakeHouse) -> None:
    house = make_house(FakeEngine(hold_before=1), max_queue=1)
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", URL, json=ask(stream=True)) as running:
            refused = await client.post(URL, json=ask())
            assert_openai_error(refused, 503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            house.engine.release.set()
            assert b"[DONE]" in await running.aread()
        assert (await client.post(URL, json=ask())).status_code == 200


def browser(method: str = "GET") -> dict[str, str]:
    """Return the headers that a browser sends for a page of https://chat.example.org."""
    return {
        "origin": "https://chat.example.org",
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }


async def test_every_answer_has_the_security_headers_once(make_house: MakeHouse) -> None:
    house = make_house(key=KEY, max_model_len=64)
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        answers = [
            await client.get("/health/live"),
            await client.get("/nowhere"),
            await client.delete(URL, headers=BEARER),
            await client.post(URL, json=ask(), headers=BEARER),
            await client.post(URL, json=ask(stream=True), headers=BEARER),
            await client.post(URL, json=ask(n=0), headers=BEARER),
        ]
    assert [answer.status_code for answer in answers] == [200, 401, 405, 200, 200, 400]
    for answer in answers:
        for name, value in access.SECURITY_HEADERS.items():
            assert answer.headers.get_list(name) == [value]


async def test_pages_of_other_origins_learn_nothing(make_house: MakeHouse) -> None:
    house = make_house()
    await house.load()
    async with house.client() as client:
        preflight = await client.options(URL, headers=browser("POST"))
        answers = [preflight, await client.post(URL, json=ask(), headers=browser())]
    assert_openai_error(preflight, 405, "method_not_allowed")
    for answer in answers:
        assert not any(name.startswith("access-control-") for name in answer.headers)


async def test_pages_of_an_origin_that_is_named_may_ask_with_a_key(make_house: MakeHouse) -> None:
    house = make_house(key=KEY, cors_origins=["https://chat.example.org"])
    await house.load()
    async with house.client() as client:
        leave = await client.options(URL, headers=browser("POST"))
        assert leave.status_code == 200 and "POST" in leave.headers["access-control-allow-methods"]
        assert "x-stainless-os" in leave.headers["access-control-allow-headers"]
        assert (await client.post(URL, json=ask(), headers=browser())).status_code == 401
        answer = await client.post(URL, json=ask(), headers=browser() | BEARER)
        assert answer.status_code == 200
        for found in (leave, answer):
            assert found.headers["access-control-allow-origin"] == "https://chat.example.org"
            assert "access-control-allow-credentials" not in found.headers
        assert "x-ratelimit-remaining-tokens" in answer.headers["access-control-expose-headers"]
        other = browser("POST") | {"origin": "https://evil.example.org"}
        assert (await client.options(URL, headers=other)).status_code == 400
        answer = await client.post(URL, json=ask(), headers=other | BEARER)
        assert "access-control-allow-origin" not in answer.headers
