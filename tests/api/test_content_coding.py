"""Compressed bodies: what may come out of them, and what is refused."""

import gzip
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import orjson
import pytest
from backports import zstd

from api.http.access import MAX_BODY_BYTES
from tests.support.api import KEY, URL, FakeEngine, House, ask, assert_openai_error, post
from tests.support.pace import CpuMeter

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}


def headers(coding: str) -> dict[str, str]:
    return {"content-type": "application/json", "content-encoding": coding}


@pytest.fixture(params=COMPRESS)
def coding(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("written", [str.lower, str.upper])
async def test_a_compressed_body_is_answered_like_a_plain_one(
    make_house: MakeHouse, coding: str, written: Callable[[str], str]
) -> None:
    house = make_house()
    body = COMPRESS[coding](orjson.dumps(ask(max_tokens=7)))
    answer = await post(house, content=body, headers=headers(written(coding)))
    assert answer.status_code == 200, answer.text
    [call] = house.engine.calls
    assert call["max_tokens"] == 7 and len(call["prompt_ids"]) == 22


async def test_a_compressed_body_may_come_in_pieces(make_house: MakeHouse, coding: str) -> None:
    compressed = COMPRESS[coding](orjson.dumps(ask()))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(compressed), 10):
            yield compressed[start : start + 10]

    async with make_house().serving() as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(2):  # on one connection
            answer = await client.post(URL, content=pieces(), headers=headers(coding))
            assert answer.status_code == 200, answer.text


async def test_a_body_that_says_it_is_not_compressed_is_read(make_house: MakeHouse) -> None:
    body = orjson.dumps(ask())
    assert (await post(make_house(), content=body, headers=headers("identity"))).status_code == 200


async def test_as_much_comes_out_as_a_plain_body_may_have(make_house: MakeHouse, coding: str) -> None:
    body = orjson.dumps(ask())
    house = make_house()
    for spaces, status in ((0, 200), (1, 413)):
        filled = body + b" " * (MAX_BODY_BYTES - len(body) + spaces)
        answer = await post(house, content=COMPRESS[coding](filled), headers=headers(coding))
        assert answer.status_code == status, answer.text


async def test_a_bomb_is_refused_before_it_has_gone_off(make_house: MakeHouse, coding: str) -> None:
    house = make_house()
    bomb = COMPRESS[coding](b" " * 2**26)
    assert len(bomb) < MAX_BODY_BYTES / 10
    await house.load()
    async with house.client() as client:
        tracemalloc.start()
        try:
            with CpuMeter() as meter:
                answer = await client.post(URL, content=bomb, headers=headers(coding))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    error = assert_openai_error(answer, 413, "request_too_large")
    assert "once it is decompressed" in error["message"]
    assert peak < 8 * MAX_BODY_BYTES and meter.units < 100
    assert house.engine.calls == []


async def test_a_bomb_from_nobody_we_know_is_not_even_opened(
    make_house: MakeHouse, coding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.http.content_coding._decompress", pytest.fail)
    answer = await post(make_house(key=KEY), content=b"x", headers=headers(coding))
    assert_openai_error(answer, 401, "invalid_api_key")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-3],
        lambda body: body + b"x",
        lambda body: body + body,
        lambda body: body[:4] + b"\xff" * 8 + body[12:],
        lambda body: b"{}",
        lambda body: b"",
    ],
    ids=["cut off", "more behind it", "two of them", "damaged", "plain", "nothing"],
)
async def test_a_body_that_is_not_what_it_says_is_the_clients_error(
    make_house: MakeHouse, coding: str, spoil: Callable[[bytes], bytes]
) -> None:
    body = spoil(COMPRESS[coding](orjson.dumps(ask())))
    error = assert_openai_error(await post(make_house(), content=body, headers=headers(coding)), 400, None)
    assert error["message"].startswith(f"The body is not valid {coding}: ")


async def test_a_frame_that_wants_much_memory_is_refused(make_house: MakeHouse) -> None:
    """A few bytes of zstd can ask for a window of 128 MiB."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    body = orjson.dumps(ask())
    frame = compressor.compress(body[:9]) + compressor.compress(body[9:]) + compressor.flush()
    error = assert_openai_error(await post(make_house(), content=frame, headers=headers("zstd")), 400, None)
    assert "memory" in error["message"]


@pytest.mark.parametrize(
    "sent",
    [{"content-encoding": "br"}, {"content-encoding": "deflate"}, {"content-encoding": "gzip, zstd"},
     [("content-encoding", "gzip"), ("content-encoding", "gzip")]],
    ids=["brotli", "deflate", "a chain", "a chain in two lines"],
)  # fmt: skip
async def test_another_coding_is_refused_with_those_that_are_read(make_house: MakeHouse, sent: Any) -> None:
    house = make_house(FakeEngine())
    known = [("content-type", "application/json"), *(sent.items() if isinstance(sent, dict) else sent)]
    answer = await post(house, content=gzip.compress(b"{}"), headers=known)
    error = assert_openai_error(answer, 415, "unsupported_content_encoding")
    assert answer.headers["accept-encoding"] == "gzip, zstd"
    assert "gzip and zstd" in error["message"]
