import asyncio

import pytest

from chat import Turn, answer
from client import Api, Sampling
from conversations import Conversation
from fake_api import DONE, FakeApi, delta, running

pytestmark = pytest.mark.anyio
QUESTION: Conversation = [{"role": "user", "content": "hi"}]


async def last_turn(api: Api) -> Turn:
    return [turn async for turn in answer(api, QUESTION, "", Sampling(0, 16))][-1]


async def test_whole_answer_ends_the_turn_with_a_remark_and_no_notice() -> None:
    async with running(FakeApi([delta("Hello", "stop"), DONE])) as fake:
        turn = await last_turn(fake.api())
    assert turn.conversation[-1]["content"] == "Hello"
    assert "first token" in turn.conversation[-1]["note"]
    assert turn.notice == ""


async def test_what_came_before_the_stream_broke_is_kept() -> None:
    async with running(FakeApi([delta("Half an ans")])) as fake:
        turn = await last_turn(fake.api())
    assert turn.conversation[-1]["content"] == "Half an ans"
    assert "cut off" in turn.notice


async def test_refused_question_is_kept_and_can_be_retried() -> None:
    async with running(FakeApi(status=429, headers={"retry-after": "7"})) as fake:
        turn = await last_turn(fake.api())
    assert turn.conversation == QUESTION
    assert "7 seconds" in turn.notice
    assert "Retry" in turn.notice


async def test_api_that_is_down_is_told_and_the_question_kept() -> None:
    api = Api("http://127.0.0.1:9")
    turn = await last_turn(api)
    await api.close()
    assert turn.conversation == QUESTION
    assert "does not answer" in turn.notice


async def test_silence_gives_turns_so_that_a_closed_page_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chat.HEARTBEAT_S", 0.1)
    async with running(FakeApi(hang=True)) as fake:
        turns = answer(fake.api(), QUESTION, "", Sampling(0, 16))
        assert [await anext(turns) for _ in range(3)] == [Turn(QUESTION)] * 3
        await turns.aclose()
        await asyncio.wait_for(fake.client_left.wait(), 2)


async def test_empty_answer_is_told() -> None:
    async with running(FakeApi([delta("", "stop"), DONE])) as fake:
        assert "empty answer" in (await last_turn(fake.api())).notice
