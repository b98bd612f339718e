"""The operator's port: a key of its own, the loopback only, three endpoints, and nothing of it in public."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_admin_app
from api.engine import lifecycle
from api.engine.lifecycle import State
from api.errors import EngineStartError, SettingsError
from api.http.idle import IdleConnections
from api.http.server import AdminServer, listen
from api.ledger.key_file import create_key
from api.ledger.keys import Limits
from api.ledger.usage import Usage, today
from api.settings import read_settings
from tests.support import PATIENCE_S
from tests.support.api import (
    KEY,
    URL,
    FakeEngine,
    House,
    another_artifact,
    ask,
    assert_openai_error,
    eventually,
)

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
ADMIN_KEY = "admin-key-0123456789abcdef"
PATHS = [("GET", "/admin/status"), ("GET", "/admin/usage"), ("POST", "/admin/reload")]


def admin_of(house: House, key: str | None = ADMIN_KEY) -> httpx.AsyncClient:
    app = create_admin_app(house.service, ADMIN_KEY)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://admin", headers=headers)


@pytest.mark.parametrize(("method", "path"), [*PATHS, ("GET", "/health/live"), ("GET", "/nowhere")])
@pytest.mark.parametrize("key", [None, KEY])
async def test_only_the_admin_key_opens_the_admin_port(
    make_house: MakeHouse, method: str, path: str, key: str | None
) -> None:
    async with admin_of(make_house(key=KEY), key) as admin:
        assert_openai_error(await admin.request(method, path), 401, "invalid_api_key")


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_the_public_port_has_no_admin_paths_and_refuses_the_admin_key(
    make_house: MakeHouse, method: str, path: str
) -> None:
    house = make_house(key=KEY, admin_port=9140, admin_key=ADMIN_KEY)
    async with house.client() as client:
        for key, status in ((KEY, 404), (ADMIN_KEY, 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.request(method, path, headers=headers)).status_code == status


async def test_the_admin_port_has_nothing_else(make_house: MakeHouse) -> None:
    house = make_house()
    await house.load()
    async with admin_of(house) as admin:
        for path in ("/v1/models", "/openapi.json", "/docs", "/health/ready"):
            assert_openai_error(await admin.get(path), 404, "not_found")
        assert_openai_error(await admin.post(URL, json=ask()), 404, "not_found")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"API_ADMIN_KEY": ""}, "API_ADMIN_PORT=9140 needs API_ADMIN_KEY"),
        ({"API_ADMIN_KEY": "short"}, "at least 16 characters"),
        ({"API_ADMIN_KEY": KEY, "API_KEY": KEY}, "must differ from API_KEY"),
        ({"API_ADMIN_KEY": ADMIN_KEY, "API_PORT": "9140"}, "must differ from API_PORT"),
        ({"API_ADMIN_KEY": "schlüssel" * 3}, "API_ADMIN_KEY: must be printable"),
    ],
    ids=str,
)
def test_an_unsafe_admin_port_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("API_ADMIN_PORT", "9140")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said) as refusal:
        read_settings()
    assert "schlüssel" not in str(refusal.value) and KEY not in str(refusal.value)


async def test_both_ports_are_served_and_end_together(make_house: MakeHouse) -> None:
    house = make_house()
    listeners = [listen("127.0.0.1", 0), listen("127.0.0.1", 0)]
    public, operator = (f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in listeners)
    admin_app = create_admin_app(house.service, ADMIN_KEY)
    server = house.server(AdminServer(admin_app, listeners[1], IdleConnections(75, 10)))
    running = asyncio.create_task(server.serve([listeners[0]]))
    await eventually(lambda: house.service.lifecycle.state is State.READY)
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    async with httpx.AsyncClient(headers=headers) as client:
        assert (await client.get(f"{public}/health/ready")).status_code == 200
        assert (await client.get(f"{public}/admin/status")).status_code == 404
        assert (await client.get(f"{operator}/admin/status")).json()["state"] == "ready"
    server.should_exit = True
    async with asyncio.timeout(PATIENCE_S):
        await running
    for listener in listeners:
        with pytest.raises(OSError), socket.create_connection(listener.getsockname()):
            pass


async def test_status_reports_what_runs_and_what_waits(make_house: MakeHouse) -> None:
    engine = FakeEngine(hold_before=1)
    house = make_house(engine, max_num_seqs=1)
    await house.load()
    async with admin_of(house) as admin, house.client() as client:
        asked = [asyncio.create_task(client.post(URL, json=ask())) for _ in range(3)]
        await eventually(lambda: house.service.admission.waiting == 2)
        assert (await admin.get("/admin/status")).json() == {
            "state": "ready",
            "detail": "Ready.",
            "artifact": "tiny-r8",
            "running": 1,
            "waiting": 2,
            "engine_restarts": 0,
        }
        engine.release.set()
        await asyncio.gather(*asked)
        engine.is_dead = True
        await eventually(lambda: engine.starts == 2 and house.service.lifecycle.state is State.READY)
        status = (await admin.get("/admin/status")).json()
        assert (status["running"], status["waiting"], status["engine_restarts"]) == (0, 0, 1)


async def test_usage_by_key_and_day(make_house: MakeHouse, tmp_path: Path) -> None:
    usage = tmp_path / "usage.db"
    house = make_house(usage_file=usage)
    own = Usage(usage)
    for name in ("ann", "bob"):
        own.add(name, 10, 5)
    own.close()

    async def found(admin: httpx.AsyncClient, **filters: str) -> Any:
        return (await admin.get("/admin/usage", params=filters)).json()["usage"]

    ann, bob = (
        {"day": today(), "key": name, "requests": 1, "prompt_tokens": 10, "completion_tokens": 5}
        for name in ("ann", "bob")
    )
    async with admin_of(house) as admin:
        assert await found(admin) == [ann, bob]
        assert await found(admin, key="bob") == [bob]
        assert await found(admin, day=today(), key="ann") == [ann]
        assert await found(admin, day="1999-01-01") == []
        assert_openai_error(await admin.get("/admin/usage?day=yesterday"), 400, None)


async def test_usage_that_is_not_kept_is_said(make_house: MakeHouse, tmp_path: Path) -> None:
    create_key(tmp_path / "keys.json", "ann", Limits())
    async with admin_of(make_house(keys_file=tmp_path / "keys.json")) as admin:
        error = assert_openai_error(await admin.get("/admin/usage"), 404, "not_found")
    assert "API_USAGE_FILE" in error["message"]


async def test_reload_answers_when_the_new_weights_serve(
    swappable: Callable[..., House], artifacts: Path
) -> None:
    house = swappable(FakeEngine(), FakeEngine())
    async with house.serving(), admin_of(house) as admin:
        assert (await admin.post("/admin/reload")).json()["artifact"] == "tiny-r8"
        another_artifact(artifacts, "tiny-r16")
        answers = await asyncio.gather(admin.post("/admin/reload"), admin.post("/admin/reload"))
        assert [answer.json()["artifact"] for answer in answers] == ["tiny-r16"] * 2
    assert_openai_error(await admin_of(house).post("/admin/reload"), 503, "not_ready")


async def test_reload_says_why_the_new_weights_are_refused_and_tries_again(
    swappable: Callable[..., House], artifacts: Path
) -> None:
    new = FakeEngine(start_error=EngineStartError("no memory"))
    house = swappable(FakeEngine(), new, new, new)
    async with house.serving(), admin_of(house) as admin:
        another_artifact(artifacts, "tiny-r16")
        refused = assert_openai_error(await admin.post("/admin/reload"), 409, "swap_refused")
        assert refused["message"] == "no memory"
        assert (await admin.get("/admin/status")).json()["artifact"] == "tiny-r8"
        new.start_error = None
        assert (await admin.post("/admin/reload")).json()["artifact"] == "tiny-r16"


async def test_reload_without_a_current_artifact_is_refused_and_the_old_still_serves(
    swappable: Callable[..., House], artifacts: Path
) -> None:
    house = swappable(FakeEngine())
    async with house.serving(), admin_of(house) as admin:
        (artifacts / "models/current").unlink()
        refused = assert_openai_error(await admin.post("/admin/reload"), 409, "swap_refused")
        assert "models/current names no artifact" in refused["message"]
        assert (await admin.get("/admin/status")).json()["state"] == "ready"


async def test_reload_does_not_outlast_the_service(
    swappable: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = swappable(FakeEngine())
    async with admin_of(house) as admin:
        async with house.serving():
            monkeypatch.setattr(lifecycle, "CHECK_INTERVAL_S", 60)
            await asyncio.sleep(0.3)
            asked = asyncio.create_task(admin.post("/admin/reload"))
            await asyncio.sleep(0.1)
        assert_openai_error(await asked, 503, "not_ready")
