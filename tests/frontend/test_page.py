import socket
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from server import build_app
from settings import load_settings

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def app() -> ASGIApp:
    def refuse(*_: Any) -> None:
        raise AssertionError("building the page must not contact any host")

    with pytest.MonkeyPatch.context() as building:
        building.setattr(socket.socket, "connect", refuse)
        building.setenv("FRONTEND_API_URL", "http://127.0.0.1:9")
        building.setenv("FRONTEND_API_KEY", "sk-secret")
        building.setenv("FRONTEND_TITLE", "Reference cards")
        return build_app(load_settings())


@pytest.fixture
def client(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page")


async def test_page_is_served_with_its_title_and_without_the_key(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert "Reference cards" in page.text
    assert "sk-secret" not in page.text


async def test_elements_that_programs_use_keep_their_ids(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    for name in ("banner", "model", "chatbot", "chat-input", "send", "stop", "new-chat", "chats", "rival"):
        assert f'"elem_id":"{name}"' in page


async def test_the_policy_forbids_calls_to_other_hosts(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/")).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    fetching = [part for part in policy.split("; ") if not part.startswith("frame-ancestors")]
    assert "http" not in "; ".join(fetching)


async def test_fonts_are_those_of_the_readers_system(client: httpx.AsyncClient) -> None:
    theme = (await client.get("/theme.css")).text
    assert "system-ui" in theme
    assert "@font-face" not in theme
    assert "@import" not in theme


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://example.com"),
        ("POST", "/gradio_api/run/ask"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/monitoring"),
    ],
)
async def test_routes_the_page_does_not_need_are_closed(
    method: str, path: str, client: httpx.AsyncClient
) -> None:
    assert (await client.request(method, path)).status_code == 404


async def test_oversized_body_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/gradio_api/queue/join", content=b"x" * (2**22 + 1))
    assert answer.status_code == 413
