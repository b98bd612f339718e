import asyncio
import dataclasses

import pytest

import texts
from client import Api, Sampling
from conversations import Conversation
from tests.support import PATIENCE_S
from tests.support.fake_api import DONE, FakeApi, delta, event, running
from turn import Question, Turn, answer, together

pytestmark = pytest.mark.anyio
QUESTION: Conversation = [{"role": "user", "content": "hi"}]
HI = Question(QUESTION, "", Sampling(0, 16))


async def last_turn(api: Api, question: Question = HI) -> Turn:
    turns = [turn async for turn in answer(api, "small-model", question)]
    assert [turn.over for turn in turns] == [False] * (len(turns) - 1) + [True]
    return turns[-1]


async def test_a_complete_answer_ends_the_turn_with_a_note_and_no_notice() -> None:
    async with running(FakeApi([delta("Hello", "stop"), DONE])) as fake:
        turn = await last_turn(fake.api())
    assert turn.conversation[-1]["content"] == "Hello"
    assert "first after" in turn.conversation[-1]["note"]
    assert turn.conversation[-1]["model"] == "small-model"
    assert (turn.notice, turn.choices) == ("", ())


async def test_what_arrived_before_the_stream_broke_is_kept() -> None:
    async with running(FakeApi([delta("Half an ans")])) as fake:
        turn = await last_turn(fake.api())
    assert turn.conversation[-1]["content"] == "Half an ans"
    assert turn.conversation[-1]["cut"]
    assert "cut off" in turn.notice
    assert turn.choices == ("continue", "retry")


async def test_continuing_sends_the_incomplete_answer_and_appends_to_it() -> None:
    half = Question(QUESTION, "", Sampling(0, 16), prefix="Half an ans")
    async with running(FakeApi([delta("wer", "stop"), DONE])) as fake:
        turn = await last_turn(fake.api(), half)
    assert [m["content"] for m in fake.requests[0]["messages"]] == [
        "hi",
        "Half an ans",
        texts.CONTINUE_PROMPT,
    ]
    assert [entry["content"] for entry in turn.conversation] == ["hi", "Half an answer"]


async def test_an_answer_that_the_length_limit_ended_can_be_continued() -> None:
    async with running(FakeApi([delta("Hello", "length"), DONE])) as fake:
        turn = await last_turn(fake.api())
    assert turn.conversation[-1]["cut"]
    assert turn.choices == ("continue",)


async def test_a_conversation_that_no_longer_fits_offers_a_choice() -> None:
    refusal = {"error": {"message": "x", "code": "context_length_exceeded"}}
    longer: Conversation = [*QUESTION, {"role": "assistant", "content": "a"}, *QUESTION]
    async with running(FakeApi(status=400, body=refusal)) as fake:
        turn = await last_turn(fake.api(), Question(longer, "", Sampling(0, 16)))
        alone = await last_turn(fake.api(), Question(longer, "", Sampling(0, 16), start=1))
    assert turn.choices == ("shorten", "new_chat")
    assert [len(request["messages"]) for request in fake.requests] == [3, 1]
    assert "Shorten it" in alone.notice
    assert "shorten" not in alone.choices


async def test_the_first_model_replaces_one_that_is_gone() -> None:
    async with running(FakeApi([delta("Hello", "stop"), DONE])) as fake:
        turns = [turn async for turn in answer(fake.api(), "gone", HI)]
    assert turns[-1].conversation[-1]["model"] == "small-model"


async def test_two_models_stream_together_and_are_both_closed() -> None:
    async with running(FakeApi([delta("one")], hang=True)) as one, running(FakeApi(hang=True)) as other:
        turns = together(asyncio.Event(), answer(one.api(), "", HI), answer(other.api(), "", HI))
        assert (await anext(turns))[0] == 0
        while not other.requests:
            await asyncio.sleep(0.01)
        await turns.aclose()
        left = asyncio.gather(one.client_left.wait(), other.client_left.wait())
        await asyncio.wait_for(left, PATIENCE_S)


async def test_a_stop_ends_a_silent_stream_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the next sign of life."""
    monkeypatch.setattr("turn.HEARTBEAT_S", 3600.0)
    stop = asyncio.Event()

    async def stop_once_asked() -> None:
        while not fake.requests:
            await asyncio.sleep(0.01)
        stop.set()

    async with running(FakeApi(hang=True)) as fake:
        stopping = asyncio.create_task(stop_once_asked())
        turns = together(stop, answer(fake.api(), "", HI))
        assert [turn async for _, turn in turns if turn.over] == []
        await asyncio.wait_for(fake.client_left.wait(), PATIENCE_S)
        await stopping


async def test_the_slower_of_two_models_does_not_delay_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turn.HEARTBEAT_S", 3600.0)
    async with running(FakeApi([delta("one", "stop"), DONE])) as one, running(FakeApi(hang=True)) as other:
        turns = together(asyncio.Event(), answer(other.api(), "", HI), answer(one.api(), "", HI))
        while not (arrived := await asyncio.wait_for(anext(turns), PATIENCE_S))[1].over:
            pass
        assert arrived[0] == 1
        await turns.aclose()


async def test_refused_question_is_kept_and_can_be_retried() -> None:
    async with running(FakeApi(status=429, headers={"retry-after": "7"})) as fake:
        turn = await last_turn(fake.api())
    assert turn.conversation == QUESTION
    assert "7 seconds" in turn.notice
    assert turn.choices == ("retry",)


async def test_an_api_that_is_down_gives_a_notice_and_the_question_is_kept() -> None:
    api = Api("http://127.0.0.1:9")
    turn = await last_turn(api)
    await api.close()
    assert turn.conversation == QUESTION
    assert "does not answer" in turn.notice


async def test_updates_continue_in_silence_so_that_a_closed_page_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("turn.HEARTBEAT_S", 0.1)
    async with running(FakeApi(hang=True)) as fake:
        turns = answer(fake.api(), "", HI)
        assert [await anext(turns) for _ in range(3)] == [Turn(QUESTION)] * 3
        await turns.aclose()
        await asyncio.wait_for(fake.client_left.wait(), PATIENCE_S)


async def test_an_empty_answer_gives_a_notice() -> None:
    async with running(FakeApi([delta("", "stop"), DONE])) as fake:
        assert "empty answer" in (await last_turn(fake.api())).notice


def thought(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"reasoning_content": text}, "finish_reason": finish_reason}
    return event({"choices": [choice]})


async def test_thinking_is_shown_as_it_comes_and_kept_with_the_answer_and_never_sent() -> None:
    async with running(FakeApi([thought("A "), thought("kite.")], hang=True)) as fake:
        turns = answer(fake.api(), "", HI)
        while (turn := await anext(turns)).thinking != "A kite.":
            assert not turn.over
        assert turn.conversation == QUESTION, "nothing is an answer yet"
        await turns.aclose()
    async with running(FakeApi([thought("A kite."), delta("Blue.", "stop"), DONE])) as fake:
        turn = await last_turn(fake.api())
        last = turn.conversation[-1]
        assert (last["content"], last["reasoning_content"]) == ("Blue.", "A kite.") and not turn.notice
        assert not turn.thinking, "it is shown once"
        await last_turn(fake.api(), Question([*turn.conversation, *QUESTION], "", Sampling(0, 16)))
    assert "kite" not in str(fake.requests[1])
    assert len(fake.requests[1]["messages"]) == 3


async def test_what_was_thought_before_an_answer_that_is_continued_stays() -> None:
    half = Question(QUESTION, "", Sampling(0, 16), prefix="Bl", thoughts="A kite.")
    async with running(FakeApi([thought("Yes."), delta("ue.", "stop"), DONE])) as fake:
        turn = await last_turn(fake.api(), half)
        without = await last_turn(fake.api(), dataclasses.replace(half, thoughts=""))
    assert turn.conversation[-1]["content"] == "Blue."
    assert turn.conversation[-1]["reasoning_content"] == "A kite.\n\nYes."
    assert without.conversation[-1]["reasoning_content"] == "Yes."


@pytest.mark.parametrize(
    ("pieces", "notice"),
    [([thought("A kite", "length"), DONE], "still thinking"), ([thought("A kite")], "cut off")],
)
async def test_an_answer_that_ended_within_its_thinking_says_so_and_shows_it(
    pieces: list[bytes], notice: str
) -> None:
    async with running(FakeApi(pieces)) as fake:
        turn = await last_turn(fake.api())
    assert notice in turn.notice and "retry" in turn.choices
    assert (turn.conversation, turn.thinking) == (QUESTION, "A kite")
