"""Places and turns: what is refused, who is next, and that nothing is lost when clients go away."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from api.engine.delta import Delta
from api.errors import Overloaded
from api.generation import admission as admission_module
from api.generation.admission import Admission
from api.ledger.key_file import create_key
from api.ledger.keys import NORMAL, Limits
from api.telemetry.metrics import Metrics
from tests.support.api import FakeEngine, House, ask, eventually

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"
MakeHouse = Callable[..., House]


def admission(*, running: int = 1, queued_tokens: int = 1000) -> Admission:
    return Admission(100, running, queued_tokens, Metrics())


class Crowd:
    """Requests that note when they begin and run until a test ends them."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.begun: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.ends: dict[str, asyncio.Event] = {}

    async def come(
        self, name: str, key: str, answers: int = 1, tokens: int = 1, priority: int = NORMAL
    ) -> None:
        self.ends[name] = asyncio.Event()

        async def run() -> None:
            async with self.admission.turn(key, answers, tokens, priority):
                self.begun.append(name)
                await self.ends[name].wait()

        self.tasks[name] = asyncio.create_task(run())
        await settle()

    def waiting(self) -> list[Any]:
        return [waiter for waiters in self.admission._waiting.values() for waiter in waiters]

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_keys_burst_does_not_delay_anothers_request() -> None:
    crowd = Crowd(admission(running=2))
    for number in range(10):
        await crowd.come(f"a{number}", "a")
    await crowd.come("b0", "b")
    assert crowd.begun == ["a0", "a1"]
    await crowd.end("a0")
    assert crowd.begun == ["a0", "a1", "b0"]
    await crowd.end("a1")
    assert crowd.begun[-1] == "a2", "within a key, first come, first served"
    for name in list(crowd.ends):
        crowd.ends[name].set()
    await asyncio.gather(*crowd.tasks.values())
    assert len(crowd.begun) == 11


async def test_a_higher_class_is_served_first_and_fairly_in_itself() -> None:
    crowd = Crowd(admission())
    await crowd.come("running", "x")
    await crowd.come("low", "l", priority=1)
    await crowd.come("a0", "a", priority=9)
    await crowd.come("a1", "a", priority=9)
    await crowd.come("b0", "b", priority=9)
    await crowd.come("middle", "m")
    for name in ("running", "a0", "b0", "a1", "middle", "low"):
        assert crowd.begun[-1] == name
        await crowd.end(name)


async def test_nobody_starves_however_much_of_a_higher_class_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "AGE_S", 1e6)  # nothing ages by itself
    crowd = Crowd(admission())
    await crowd.come("h0", "h", priority=9)
    await crowd.come("low", "l", priority=0)
    for number in range(1, 100):
        await crowd.come(f"h{number}", "h", priority=9)
        await crowd.end(crowd.begun[-1])
        if "low" in crowd.begun:
            break
        for waiter in crowd.waiting():
            waiter.begun -= admission_module.AGE_S / 2
    assert crowd.begun.index("low") in range(18, 21), "it climbs a class in two turns, and it was nine below"
    for name in list(crowd.ends):
        crowd.ends[name].set()
    await asyncio.gather(*crowd.tasks.values())


async def test_many_answers_wait_for_room_and_are_not_overtaken_by_their_own_key() -> None:
    crowd = Crowd(admission(running=4))
    await crowd.come("a", "k", answers=3)
    await crowd.come("b", "k", answers=4)
    await crowd.come("c", "k", answers=1)
    assert crowd.begun == ["a"]
    await crowd.end("a")
    assert crowd.begun == ["a", "b"]
    await crowd.end("b")
    await crowd.end("c")


async def test_more_answers_than_the_engine_holds_run_when_it_is_empty() -> None:
    crowd = Crowd(admission(running=2))
    await crowd.come("a", "k", answers=8)
    assert crowd.begun == ["a"]
    await crowd.end("a")


async def test_waiting_tokens_are_bounded_but_one_may_always_wait() -> None:
    crowd = Crowd(admission(queued_tokens=10))
    await crowd.come("a", "k", tokens=5000)
    await crowd.come("b", "k", tokens=5000)
    with pytest.raises(Overloaded):
        async with crowd.admission.turn("k", 1, 1):
            pytest.fail("had a turn")
    crowd.tasks["b"].cancel()
    await settle()
    await crowd.come("c", "k", tokens=10)
    await crowd.end("a")
    await crowd.end("c")
    assert crowd.begun == ["a", "c"]


async def test_who_leaves_the_queue_does_not_hold_up_the_others() -> None:
    crowd = Crowd(admission(running=2))
    await crowd.come("a", "k")
    await crowd.come("wide", "k", answers=2)
    await crowd.come("b", "k")
    assert crowd.begun == ["a"]
    crowd.tasks["wide"].cancel()
    await settle()
    assert crowd.begun == ["a", "b"]
    await crowd.end("a")
    await crowd.end("b")


@pytest.mark.parametrize("seed", range(20))
async def test_a_thousand_comings_and_goings_leave_nothing_behind(seed: int) -> None:
    rng = random.Random(seed)
    house = admission(running=5, queued_tokens=500)
    running = 0

    async def visit() -> None:
        nonlocal running
        answers = rng.randint(1, 3)
        with suppress(Overloaded):
            async with house.turn(rng.choice("abc"), answers, rng.randint(1, 50)):
                running += answers
                assert running <= 5
                try:
                    await asyncio.sleep(rng.random() / 500)
                finally:
                    running -= answers

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(visit()))
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [error for error in done if isinstance(error, AssertionError)]
    assert (house._waiting, house._waiting_tokens, house._running.total()) == ({}, 0, 0)


async def test_a_request_is_refused_before_the_engine_hears_of_it(
    make_house: MakeHouse,
) -> None:
    house = make_house(FakeEngine(hold_before=0), max_num_seqs=1, max_queue_tokens=1)
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        first = [asyncio.create_task(client.post(URL, json=ask())) for _ in range(2)]
        while house.service.metrics.in_progress._value.get() < 2 or not house.service.admission._waiting:
            await asyncio.sleep(0.01)
        refused = await client.post(URL, json=ask())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert len(house.engine.calls) == 1
        house.engine.release.set()
        assert [answer.status_code for answer in await asyncio.gather(*first)] == [200, 200]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_takes_longer_than_it_may_is_ended(make_house: MakeHouse, stream: bool) -> None:
    house = make_house(FakeEngine(hold_before=1))
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        headers = {"x-request-timeout": "0.2"}
        answer = await client.post(URL, json=ask(stream=stream), headers=headers)
        assert '"code":"deadline_exceeded"' in answer.text
        assert answer.status_code == (200 if stream else 408)
        assert house.engine.aborted == 1


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x", "1e9"])
async def test_a_time_that_is_none_is_refused(make_house: MakeHouse, value: str) -> None:
    house = make_house()
    await house.load()
    async with house.client(headers={"x-request-timeout": value}) as client:
        answer = await client.post(URL, json=ask())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-timeout")


async def test_the_operators_limit_holds_without_the_header(make_house: MakeHouse) -> None:
    house = make_house(FakeEngine(hold_before=0), request_timeout_s=0.1)
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        for headers in ({}, {"x-request-timeout": "60"}):
            assert (await client.post(URL, json=ask(), headers=headers)).status_code == 408


@pytest.mark.parametrize(("priority_of_bob", "turn_of_bob"), [(NORMAL, 1), (9, 1), (0, 4)])
async def test_keys_share_the_engine_fairly_and_by_priority(
    make_house: MakeHouse, tmp_path: Any, priority_of_bob: int, turn_of_bob: int
) -> None:
    keys = tmp_path / "keys.json"
    ann, bob = create_key(keys, "ann", Limits()), create_key(keys, "bob", Limits(), priority_of_bob)
    engine = FakeEngine(deltas=[Delta("x", 1, "stop")], hold_before=0)
    house = make_house(engine, keys_file=keys, max_num_seqs=1)
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:

        def post(secret: str, text: str) -> asyncio.Task[httpx.Response]:
            body = ask(messages=[{"role": "user", "content": text}])
            headers = {"authorization": f"Bearer {secret}"}
            return asyncio.create_task(client.post(URL, json=body, headers=headers))

        def queued() -> int:
            admission = house.service.admission
            return int(admission.running + sum(map(len, admission._waiting.values())))

        tasks: list[asyncio.Task[httpx.Response]] = []
        for secret, text in [(ann, "a")] * 4 + [(bob, "bbbb")]:
            tasks.append(post(secret, text))
            await eventually(lambda: queued() == len(tasks))
        engine.hold_before = None
        engine.release.set()
        await asyncio.gather(*tasks)
    lengths = [len(call["prompt_ids"]) for call in engine.calls]
    assert lengths.index(max(lengths)) == turn_of_bob
