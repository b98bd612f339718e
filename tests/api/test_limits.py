"""Limits of a key in the answers of the service, and the file of usage."""

import asyncio
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from api.errors import EngineFailed, SettingsError
from api.ledger.account import RATE_HEADERS, duration
from api.ledger.key_file import create_key
from api.ledger.keys import Limits
from api.ledger.usage import Usage, read_usage, today
from tests.support.api import FakeEngine, House, ask, eventually

URL = "/v1/chat/completions"
MakeHouse = Callable[..., House]
ADMIN_KEY = "operators-key-0123456789"


def test_usage_outlives_the_process_and_is_added_up(tmp_path: Path) -> None:
    file = tmp_path / "state" / "usage.db"
    for _ in range(2):
        usage = Usage(file)
        usage.add("ann", 10, 5)
        usage.add("bob", 1, 1)
        usage.close()
    assert Usage(file).tokens_today("ann") == 30
    assert [tuple(line) for line in read_usage(file)] == [
        (today(), "ann", 2, 20, 10), (today(), "bob", 2, 2, 2)
    ]  # fmt: skip
    assert read_usage(file, "1999-01-01") == []


@pytest.mark.parametrize("damage", ["pages", "table"])
def test_a_usage_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    """SQLite opens a file whose head is whole, and reports the damage at the first read."""
    file = tmp_path / "usage.db"
    if damage == "table":
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE usage (other TEXT)")
    else:
        usage = Usage(file)
        for number in range(1000):
            usage.add(f"key{number}", 1, 1)
        usage.close()
        with sqlite3.connect(file) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = file.read_bytes()
        assert len(content) > 3 * 4096
        file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    database.close()
    with pytest.raises(SettingsError, match=r"usage\.db cannot be used: .*; restore it, or remove it"):
        Usage(file)


def test_usage_that_cannot_be_written_does_not_stop_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "usage.db"
    usage = Usage(file)
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE usage")
    database.close()
    usage.add("ann", 1, 1)
    usage.close()
    assert "event=usage_lost key=ann" in caplog.text and usage.tokens_today("ann") == 2


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "usage.db").write_text("not a database, but long enough to be taken for something" * 9)
    with pytest.raises(SettingsError, match="API_USAGE_FILE"):
        Usage(tmp_path / "usage.db")


async def answer_of(house: House, secret: str, **fields: Any) -> Any:
    async with house.client(headers={"authorization": f"Bearer {secret}"}) as client:
        return await client.post(URL, json=ask(**fields))


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_answers_carry_the_limits_and_usage_is_kept(
    make_house: MakeHouse, tmp_path: Path, stream: bool
) -> None:
    keys, usage = tmp_path / "keys.json", tmp_path / "usage.db"
    secret = create_key(keys, "ann", Limits(requests_per_minute=1, tokens_per_minute=1000))
    house = make_house(keys_file=keys, usage_file=usage, admin_key=ADMIN_KEY)
    await house.load()
    answer = await answer_of(house, secret, stream=stream, max_tokens=20)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    late = await answer_of(house, secret)
    assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(late.headers["retry-after"]) <= 60
    await house.service.ledger.close()
    [line] = read_usage(usage)
    assert (line.key, line.requests, line.prompt_tokens, line.completion_tokens) == ("ann", 1, 22, 3)
    async with house.client(headers={"authorization": f"Bearer {ADMIN_KEY}"}) as client:
        metrics = (await client.get("/metrics")).text
    assert 'finechat_key_tokens_total{key="ann"} 25.0' in metrics and secret not in metrics


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_with_limits_gets_openais_six_headers_and_a_key_without_none(
    make_house: MakeHouse, tmp_path: Path, stream: bool
) -> None:
    keys = tmp_path / "keys.json"
    ann = create_key(keys, "ann", Limits(requests_per_minute=60, tokens_per_minute=6000))
    bob = create_key(keys, "bob", Limits(tokens_per_day=10**6))
    house = make_house(keys_file=keys)
    async with house.serving() as url:
        found = []
        for secret in (ann, bob):
            async with openai.AsyncOpenAI(api_key=secret, base_url=f"{url}/v1") as client:
                raw = await client.chat.completions.with_raw_response.create(
                    **ask(stream=stream, max_tokens=38)
                )
                found.append({name: raw.headers[name] for name in raw.headers if "ratelimit" in name})
                if stream:
                    assert [chunk async for chunk in raw.parse()]
    headers = found[0]
    assert sorted(headers) == sorted(RATE_HEADERS) and found[1] == {}
    assert headers["x-ratelimit-limit-requests"] == "60" and headers["x-ratelimit-limit-tokens"] == "6000"
    assert headers["x-ratelimit-remaining-requests"] == "59"
    assert 6000 - 22 - 38 <= int(headers["x-ratelimit-remaining-tokens"]) < 6000
    assert re.fullmatch(r"1s|\d{1,3}ms", headers["x-ratelimit-reset-requests"])
    assert re.fullmatch(r"\d{1,3}ms", headers["x-ratelimit-reset-tokens"])


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0s"), (0.0001, "1ms"), (0.02, "20ms"), (1, "1s"), (8.64, "8.64s"), (59.9999, "1m0s"), (60, "1m0s"),
     (90.5, "1m30.5s"), (3600, "1h0m0s"), (7325.001, "2h2m5.001s")],
)  # fmt: skip
def test_waits_are_written_as_openai_writes_them(seconds: float, written: str) -> None:
    """That is Go's form of a duration; clients parse it."""
    assert duration(seconds) == written


@pytest.mark.anyio
async def test_openais_client_does_not_repeat_what_its_key_can_never_have(
    make_house: MakeHouse, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    secret = create_key(keys, "ann", Limits(answers_at_once=2))
    house = make_house(keys_file=keys)
    async with house.serving() as url, openai.AsyncOpenAI(api_key=secret, base_url=f"{url}/v1") as client:
        with pytest.raises(openai.RateLimitError, match=r"3 answers.* 2 answers at once \(answers_at_once\)"):
            await client.chat.completions.create(**ask(n=3))
    counted, reason = house.service.metrics.registry, {"reason": "rate_limit_exceeded"}
    assert counted.get_sample_value("finechat_rejections_total", reason) == 1


@pytest.mark.anyio
async def test_a_client_that_leaves_gets_back_what_it_did_not_use(
    make_house: MakeHouse, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    secret = create_key(keys, "ann", Limits(tokens_per_minute=300, answers_at_once=1))
    house = make_house(FakeEngine(hold_before=1), keys_file=keys)
    headers = {"authorization": f"Bearer {secret}"}

    async with house.serving() as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        request = client.build_request("POST", URL, json=ask(stream=True))
        answer = await client.send(request, stream=True)
        assert (await client.post(URL, json=ask())).status_code == 429
        await answer.aclose()
        await eventually(lambda: house.engine.aborted == 1)
        house.engine.hold_before = None
        again = await client.post(URL, json=ask(max_tokens=200))
        assert again.status_code == 200, again.text


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leaves", [False, True])
async def test_an_answer_that_ends_early_costs_what_was_generated_by_then(
    make_house: MakeHouse, tmp_path: Path, stream: bool, leaves: bool
) -> None:
    keys, usage = tmp_path / "keys.json", tmp_path / "usage.db"
    secret = create_key(keys, "ann", Limits())
    house = make_house(FakeEngine(hold_before=2), keys_file=keys, usage_file=usage)
    headers = {"authorization": f"Bearer {secret}", **({} if leaves else {"x-request-timeout": "0.5"})}
    async with house.serving() as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        asked = asyncio.create_task(client.post(URL, json=ask(stream=stream)))
        await eventually(lambda: bool(house.engine.calls))
        await asyncio.sleep(0.1)
        if leaves:
            asked.cancel()
        await eventually(lambda: house.engine.aborted == 1)
        await asyncio.wait([asked])
    [line] = read_usage(usage)
    assert (line.requests, line.prompt_tokens, line.completion_tokens) == (1, 22, 2)


@pytest.mark.anyio
@pytest.mark.parametrize("error", [EngineFailed("dead"), RuntimeError("a defect")])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_fails_on_our_side_costs_no_tokens(
    make_house: MakeHouse, tmp_path: Path, stream: bool, error: Exception
) -> None:
    keys, usage = tmp_path / "keys.json", tmp_path / "usage.db"
    secret = create_key(keys, "ann", Limits(tokens_per_minute=1000))
    house = make_house(FakeEngine(fail_before=(1, error)), keys_file=keys, usage_file=usage)
    await house.load()
    await answer_of(house, secret, stream=stream, max_tokens=20)
    house.engine.fail_before = None
    answer = await answer_of(house, secret, max_tokens=20)
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - 22 - 20)
    await house.service.ledger.close()
    [line] = read_usage(usage)
    assert (line.requests, line.prompt_tokens, line.completion_tokens) == (2, 22, 3)
