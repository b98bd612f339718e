import asyncio
import logging

import pytest

from client import Answer, Api, Model, Sampling
from conversations import Message
from errors import ApiError, CutShort, Malformed, Refused, Unreachable
from tests.support import PATIENCE_S
from tests.support.fake_api import DONE, FakeApi, delta, event, running

pytestmark = pytest.mark.anyio
QUESTION = [Message(role="user", content="my secret question")]
SAMPLING = Sampling(temperature=0.3, max_tokens=64)


async def whole(api: Api) -> Answer:
    answer = Answer()
    await api.fill(answer, "small-model", QUESTION, SAMPLING)
    return answer


async def test_answer_is_the_joined_pieces_with_usage_and_times() -> None:
    usage = event({"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 2}})
    async with running(FakeApi([delta("Hel"), delta("lo", "stop"), usage, DONE])) as fake:
        answer = await whole(fake.api())
    assert (answer.text, answer.tokens, answer.finish_reason) == ("Hello", 2, "stop")
    assert (answer.prompt_tokens, answer.all_tokens) == (30, 32)
    assert answer.first_token_s is not None
    assert 0 < answer.first_token_s <= answer.last_token_s


async def test_request_carries_the_key_an_id_and_only_standard_fields() -> None:
    async with running(FakeApi([delta("x", "stop"), DONE])) as fake:
        await whole(fake.api("/v1/", "sk-1"))
    (request,) = fake.requests
    headers = request.pop("headers")
    assert headers["authorization"] == "bearer sk-1"
    assert len(headers["x-request-id"]) == 32
    assert request == {
        "model": "small-model",
        "messages": QUESTION,
        "temperature": 0.3,
        "max_tokens": 64,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_all_turns_of_a_conversation_share_one_session_id_that_reveals_nothing() -> None:
    system, first = Message(role="system", content="Be brief."), QUESTION[0]
    answer, second = Message(role="assistant", content="Yes."), Message(role="user", content="Why?")
    talks = [[first], [first, answer, second], [system, first], [system, first, answer, second], [second]]
    async with running(FakeApi([delta("x", "stop"), DONE])) as fake:
        api, other = fake.api(), fake.api()
        for api_of_a_page, talk in [*((api, talk) for talk in talks), (other, [first])]:
            await api_of_a_page.fill(Answer(), "small-model", talk, SAMPLING)
    ids = [request["headers"]["x-session-id"] for request in fake.requests]
    assert ids[0] == ids[1] and ids[2] == ids[3]
    assert len(set(ids)) == 4, "by conversation, and by a key of this process"


async def test_settings_are_sent_under_openais_names_and_unset_ones_are_omitted() -> None:
    sampling = Sampling(0, 8, top_p=0.5, seed=0, stop=("END",))
    assert sampling.body() == {"temperature": 0, "max_tokens": 8, "top_p": 0.5, "seed": 0, "stop": ("END",)}
    assert Sampling(1, 8).body() == {"temperature": 1, "max_tokens": 8}
    assert Sampling(1, None).body() == {"temperature": 1}


@pytest.mark.parametrize("at", [1, 30, 60, 61])
async def test_events_survive_any_split_and_unicode_line_separators(at: int) -> None:
    stream = delta("a\u2028b\u0085c") + delta("", "stop") + DONE
    async with running(FakeApi([stream[:at], stream[at:]])) as fake:
        assert (await whole(fake.api())).text == "a\u2028b\u0085c"


async def test_cancelling_before_the_first_token_closes_the_request() -> None:
    async with running(FakeApi(hang=True)) as fake:
        task = asyncio.create_task(whole(fake.api()))
        while not fake.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait_for(fake.client_left.wait(), PATIENCE_S)


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([delta("begun")], CutShort),
        ([delta("begun"), event({"error": {"message": "engine died"}})], CutShort),
        ([b"data: <html>\n\n"], Malformed),
    ],
)
async def test_a_stream_that_breaks_off_raises_an_error(events: list[bytes], error: type[ApiError]) -> None:
    async with running(FakeApi(events)) as fake:
        with pytest.raises(error):
            await whole(fake.api())


async def test_refusal_carries_status_code_message_and_wait() -> None:
    body = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
    fake = FakeApi(status=429, body=body, headers={"retry-after": "7"})
    async with running(fake):
        with pytest.raises(Refused) as caught:
            await whole(fake.api())
    refused = caught.value
    assert (refused.status, refused.code, refused.message, refused.retry_after_s) == (
        429,
        "rate_limit_exceeded",
        "slow down",
        7,
    )


async def test_api_that_is_down_is_unreachable() -> None:
    api = Api("http://127.0.0.1:9")
    assert isinstance((await api.status()).failure, Unreachable)
    with pytest.raises(Unreachable):
        await whole(api)
    await api.close()


async def test_status_names_the_model_of_any_openai_server() -> None:
    async with running(FakeApi(ready=(404, {}))) as fake:
        status = await fake.api().status()
    assert (status.models, status.failure) == ((Model("small-model"),), None)


async def test_status_has_what_the_api_reports_of_a_model() -> None:
    found = {"id": "b", "max_model_len": 2048, "licence": "llama3.2", "description": "Chats.",
             "examples": ["Hi", 7, " "]}  # fmt: skip
    async with running(FakeApi(models=(200, {"data": [{"id": "a"}, found]}))) as fake:
        status = await fake.api().status()
    assert status.models == (Model("a"), Model("b", 2048, "llama3.2", "Chats.", ("Hi",)))
    assert [status.model(name) for name in ("b", "gone")] == [status.models[1], status.models[0]]


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "loading weights", "code": "starting"}},
        {"status": "starting", "detail": "loading weights"},
    ],
    ids=["a gateway", "finechat's API"],
)
async def test_status_says_why_the_api_is_not_ready(body: dict[str, object]) -> None:
    async with running(FakeApi(ready=(503, body))) as fake:
        failure = (await fake.api().status()).failure
    assert isinstance(failure, Refused)
    assert failure.message == "loading weights"


@pytest.mark.parametrize("body", [{}, {"data": []}, {"data": None}])
async def test_status_of_another_kind_of_server_is_malformed(body: dict[str, object]) -> None:
    async with running(FakeApi(models=(200, body))) as fake:
        assert isinstance((await fake.api().status()).failure, Malformed)


async def test_many_pages_share_one_status_request() -> None:
    async with running(FakeApi()) as fake:
        api = fake.api()
        await asyncio.gather(*(api.status() for _ in range(50)))
    assert fake.seen == ["/v1/models", "/health/ready"]


async def test_log_holds_the_outcome_and_no_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(FakeApi([delta("my secret answer", "stop"), DONE])) as fake:
        await whole(fake.api(key="sk-secret"))
    assert "outcome=stop" in caplog.text
    assert "secret" not in caplog.text
