"""A visitor's address is the connection's, unless a proxy that is configured names another."""

import logging
import re
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

import app
from errors import SettingsError
from server import server_config
from settings import Settings, load_settings
from tests.support import ROOT

pytestmark = pytest.mark.anyio
SPACE_PROXY = "10.16.3.80"  # such are a Space's, as their owners' logs show


def settings(proxies: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FRONTEND_API_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("FRONTEND_TRUSTED_PROXIES", proxies)
    return load_settings()


async def visitor(settings: Settings, peer: str, forwarded: str) -> str:
    """The address that the page sees of a request from `peer`."""
    seen: list[str] = []

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["client"][0])

    async def nothing(*_: Any) -> Any: ...

    config = server_config(settings, page)
    config.load()
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "client": (peer, 40000),
        "headers": [(b"x-forwarded-for", forwarded.encode())],
    }  # fmt: skip
    await config.loaded_app(scope, nothing, nothing)
    return seen[0]


@pytest.mark.parametrize("peer", ["127.0.0.1", SPACE_PROXY, "172.18.0.1", "203.0.113.7"])
async def test_nobody_says_who_a_visitor_is_by_default(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own variable
    assert await visitor(settings("", monkeypatch), peer, "198.51.100.1") == peer


async def test_a_proxy_that_is_configured_does_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    trusting = settings("172.18.0.1, 10.16.0.0/16", monkeypatch)
    assert await visitor(trusting, "172.18.0.1", "198.51.100.1") == "198.51.100.1"
    assert await visitor(trusting, SPACE_PROXY, "198.51.100.1") == "198.51.100.1"
    assert await visitor(trusting, "10.17.0.1", "198.51.100.1") == "10.17.0.1"
    chain = f"192.0.2.66, 198.51.100.1, {SPACE_PROXY}"
    assert await visitor(trusting, "172.18.0.1", chain) == "198.51.100.1", "what the visitor wrote is skipped"


@pytest.mark.parametrize("proxies", ["*", "0.0.0.0/0", "::/0", "nginx", "10.0.0.1/8", "10.0.0.0/8,*"])
def test_trusting_everybody_or_a_name_is_refused(proxies: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="FRONTEND_TRUSTED_PROXIES"):
        settings(proxies, monkeypatch)


def test_the_image_trusts_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in re.findall(r"(FRONTEND_\w+)=(\S+)", (ROOT / "frontend" / "Dockerfile").read_text()):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FRONTEND_API_URL", "http://127.0.0.1:8000")
    assert load_settings().host == "0.0.0.0"
    assert load_settings().trusted_proxies == ""


@pytest.mark.parametrize(
    ("space", "proxies", "warnings"), [("a/b", "", 1), ("a/b", "10.0.0.0/8", 0), ("", "", 0)]
)
def test_a_space_that_cannot_distinguish_visitors_logs_what_to_set(
    space: str, proxies: str, warnings: int,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("SPACE_ID", space)
    monkeypatch.setenv("FRONTEND_API_URL", "https://api.example.org")
    monkeypatch.setenv("FRONTEND_TRUSTED_PROXIES", proxies)
    app.warn_of_a_space_without_proxies(load_settings())
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warnings
    assert all("FRONTEND_TRUSTED_PROXIES" in record.message for record in caplog.records)
