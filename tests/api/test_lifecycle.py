"""From start to stop HTTP reports the true state, and every stream ends with a result or an error."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from api.engine import lifecycle, served
from api.engine.delta import Delta
from api.engine.lifecycle import State
from api.errors import EngineFailed, EngineStartError, StartError
from api.http.server import listen
from tests.support import PATIENCE_S
from tests.support.api import (
    URL,
    FakeEngine,
    House,
    another_artifact,
    ask,
    assert_openai_error,
    events,
    eventually,
)

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]


async def test_until_the_model_is_loaded_the_service_lives_and_says_starting(
    make_house: MakeHouse,
) -> None:
    async with make_house().client() as client:
        assert (await client.get("/health/live")).status_code == 200
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "starting")
        refused = await client.post(URL, json=ask())
        assert_openai_error(refused, 503, "not_ready")
        assert refused.headers["retry-after"]


async def test_altered_artifact_fails_the_start(make_house: MakeHouse) -> None:
    house = make_house()
    (house.settings.artifacts_dir / "models/tiny-r8/README.md").write_text("# Evil\n")
    await house.load()
    assert "README.md has SHA-256" in str(house.service.lifecycle.failure)


@pytest.mark.parametrize("error", [EngineStartError("no"), RuntimeError("no")])
async def test_engine_that_does_not_start_ends_the_server(make_house: MakeHouse, error: Exception) -> None:
    house = make_house(FakeEngine(start_error=error))
    server = house.server()
    await server.serve([listen("127.0.0.1", 0)])
    assert isinstance(house.service.lifecycle.failure, StartError)
    assert house.engine.stopped


async def test_dead_engine_is_reported_and_restarted(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "RESTART_DELAYS_S", (0.3,))
    engine = FakeEngine(hold_before=1, fail_before=(1, EngineFailed("dead")))
    house = make_house(engine)
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", URL, json=ask(stream=True)) as running:
            engine.is_dead = True
            assert_openai_error(await client.post(URL, json=ask()), 503, "engine_failed")
            assert (await client.get("/health/live")).json()["status"] == "restarting"
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "restarting")
            engine.release.set()
            assert b'"code":"engine_failed"' in await running.aread()
        engine.fail_before = None
        await eventually(lambda: house.service.lifecycle.state is State.READY)
        assert engine.starts == 2 and engine.stopped
        assert (await client.post(URL, json=ask())).status_code == 200
        assert "finechat_engine_restarts_total 1.0" in (await client.get("/metrics")).text


async def test_an_engine_that_stays_dead_ends_the_server(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "RESTART_DELAYS_S", (0.0, 0.05, 0.1))
    house = make_house()
    server = house.server()
    running = asyncio.create_task(server.serve([listen("127.0.0.1", 0)]))
    await eventually(lambda: house.service.lifecycle.state is State.READY)
    house.engine.start_error = EngineStartError("no memory")
    house.engine.is_dead = True
    async with asyncio.timeout(PATIENCE_S):
        await running
    assert "no memory" in str(house.service.lifecycle.failure)
    assert house.engine.starts == 4


async def test_an_engine_that_starts_and_generates_nothing_is_not_ready(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "PROBE", "another")
    engine = FakeEngine(fail_before=(0, EngineFailed("stuck")))
    house = make_house(engine)
    await house.load()
    assert house.service.lifecycle.state is State.FAILED
    assert "generates nothing" in str(house.service.lifecycle.failure)


async def test_sigterm_while_restarting_ends_the_server(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "RESTART_DELAYS_S", (60.0,))
    house = make_house()
    async with house.serving():
        house.engine.is_dead = True
        await eventually(lambda: house.service.lifecycle._state is State.RESTARTING)
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: house.service.lifecycle.state is State.STOPPED)
    assert house.service.lifecycle.failure is None


async def test_sigterm_lets_streams_finish_and_refuses_new_requests(make_house: MakeHouse) -> None:
    house = make_house(FakeEngine(hold_before=1))
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", URL, json=ask(stream=True)) as running:
            os.kill(os.getpid(), signal.SIGTERM)
            await eventually(lambda: house.service.lifecycle.state is State.DRAINING)
            assert (await client.get("/health/live")).status_code == 200
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            refused = await client.post(URL, json=ask())
            assert_openai_error(refused, 503, "not_ready")
            house.engine.release.set()
            assert b"[DONE]" in await running.aread()
    assert house.engine.stopped
    assert house.service.lifecycle.state is State.STOPPED


async def test_stream_that_outlasts_the_drain_ends_with_an_error(make_house: MakeHouse) -> None:
    house = make_house(FakeEngine(hold_before=1), drain_timeout_s=0.2)
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", URL, json=ask(stream=True)) as running:
            os.kill(os.getpid(), signal.SIGINT)
            async with asyncio.timeout(PATIENCE_S):
                await running.aread()
    first, error = events(running)
    assert first["choices"][0]["delta"]["content"] == "Hello"
    assert error["error"]["code"] == "not_ready"
    assert house.engine.aborted == 1


async def test_waiting_request_that_outlasts_the_drain_gets_a_503(make_house: MakeHouse) -> None:
    house = make_house(FakeEngine(hold_before=0), drain_timeout_s=0)
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:

        async def stop_when_running() -> None:
            await eventually(lambda: len(house.engine.calls) == 1)
            os.kill(os.getpid(), signal.SIGTERM)

        stopping = asyncio.create_task(stop_when_running())
        assert_openai_error(await client.post(URL, json=ask()), 503, "not_ready")
        await stopping


async def test_port_in_use_is_said_in_one_line() -> None:
    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(EngineStartError, match=r"cannot listen on 127.0.0.1:.* in use"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


async def test_new_weights_take_over_and_the_old_finish_what_they_began(
    swappable: Callable[..., House], artifacts: Path
) -> None:
    old = FakeEngine(hold_before=1)
    new = FakeEngine(deltas=[Delta("New", 1, "stop")])
    house = swappable(old, new)
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", URL, json=ask(stream=True)) as running:
            another_artifact(artifacts, "tiny-r16")
            await eventually(lambda: house.service.lifecycle.artifact.manifest.id == "tiny-r16")
            answer = (await client.post(URL, json=ask())).json()
            assert answer["choices"][0]["message"]["content"] == "New"
            assert answer["system_fingerprint"] == "tiny-r16"
            assert not old.stopped, "a stream still runs on it"
            old.release.set()
            body = (await running.aread()).decode()
        assert "Hello" in body and " world" in body and '"system_fingerprint":"tiny-r8"' in body
        assert "tiny-r16" not in body
        await eventually(lambda: old.stopped)
        assert not new.stopped
        assert 'finechat_swaps_total{outcome="done"} 1.0' in (await client.get("/metrics")).text
    assert new.stopped


@pytest.mark.parametrize("broken", ["artifact", "start", "probe"])
async def test_weights_that_do_not_work_are_refused_and_the_old_still_serve(
    swappable: Callable[..., House], artifacts: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    old, new = FakeEngine(), FakeEngine()
    house = swappable(old, new)
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        if broken == "start":
            new.start_error = EngineStartError("no memory")
        if broken == "probe":
            monkeypatch.setattr(served, "PROBE", "another")
            new.fail_before = (0, EngineFailed("stuck"))
        another_artifact(artifacts, "tiny-r16", whole=broken != "artifact")
        refused = house.service.metrics.swaps.labels("refused")
        await eventually(lambda: refused._value.get() == 1)
        assert (await client.post(URL, json=ask())).json()["system_fingerprint"] == "tiny-r8"
        assert new.stopped and not old.stopped
        await asyncio.sleep(3 * lifecycle.CHECK_INTERVAL_S)
        assert refused._value.get() == 1, "it is not tried again and again"


async def test_a_current_that_points_nowhere_is_refused(
    swappable: Callable[..., House], artifacts: Path
) -> None:
    house = swappable(FakeEngine())
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        link = artifacts / "models" / "current"
        link.unlink()
        link.symlink_to("gone")
        await eventually(lambda: house.service.metrics.swaps.labels("refused")._value.get() == 1)
        assert (await client.post(URL, json=ask())).status_code == 200
