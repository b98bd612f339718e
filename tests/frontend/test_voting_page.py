import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import gradio as gr
import httpx
import pytest

import layout
from client import Api
from conversations import Chat, ask, new_chat, reply
from server import build_app
from settings import load_settings
from tests.support.fake_api import DONE, FakeApi, delta, running
from tests.support.votes import SAMPLING, compared, lines
from turn_events import TurnEvents
from updates import Update
from visitors import Visitors

VISITOR = SimpleNamespace(session_hash="s", client=SimpleNamespace(host="192.0.2.7"))


class Page(NamedTuple):
    """The handlers of a page that asks for votes, and the inputs that its browser would send."""

    events: TurnEvents
    ui: layout.Components
    inputs: Update

    async def answer(self, chat: Chat) -> Chat:
        """The chat as the browser keeps it after the answer."""
        inputs = self.inputs | {self.ui.kept: chat}
        kept = chat
        async for update in self.events.answer(inputs, VISITOR):
            kept = update.get(self.ui.kept, kept)
        restored: Chat = json.loads(json.dumps(kept))
        return restored

    async def vote(self, chat: Chat, verdict: str = "left") -> str:
        """What the page says about the vote."""
        update = await self.events.vote(verdict, self.inputs | {self.ui.kept: chat}, VISITOR)
        return str(update[self.ui.vote_text])


@asynccontextmanager
async def comparing_page(path: Path, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Page]:
    async with running(fake):
        monkeypatch.setenv("FRONTEND_API_URL", fake.url)
        monkeypatch.setenv("FRONTEND_VOTES", str(path))
        settings = load_settings()
        api = Api(fake.url)
        with gr.Blocks():
            ui = layout.lay_out(settings)
        controls = dict(zip(ui.controls, ("Be brief.", 1, 1, 64, None, ""), strict=True))
        inputs = {
            ui.comparing: True,
            ui.asked: True,
            ui.model: "",
            ui.rival_model: "",
            **controls,
        }
        yield Page(TurnEvents(api, ui, settings, Visitors(4, 3)), ui, inputs)
        await api.close()


def asked(question: str = "Hi") -> Chat:
    chat = new_chat(ask([], question))
    chat["rival"] = ask([], question)
    return chat


@pytest.mark.anyio
async def test_a_vote_records_the_settings_that_the_answers_were_asked_with(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with comparing_page(path, FakeApi([delta("Hello", "stop"), DONE]), monkeypatch) as page:
        chat = await page.answer(asked())
        page.inputs.update({page.ui.controls[0]: "Be long.", page.ui.controls[1]: 0})
        assert "Thank you" in await page.vote(chat, "right")
        assert "already" in await page.vote(chat, "right")
    [vote] = lines(path)
    assert vote["prompts"][0][0]["content"] == "Be brief."
    assert vote["sampling"] == SAMPLING
    assert (vote["models"], vote["answers"]) == (["small-model"] * 2, ["Hello"] * 2)


@pytest.mark.anyio
async def test_an_answer_that_the_browser_brings_gets_no_ballot(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One side forged as answered, or begun by the browser and only continued by the model."""
    forged, begun = asked(), asked()
    forged["entries"] = reply(forged["entries"], "forged")
    begun["entries"] = reply(begun["entries"], "forged", cut=True)
    async with comparing_page(path, FakeApi([delta("Hello", "stop"), DONE]), monkeypatch) as page:
        for chat in (forged, begun):
            answered = await page.answer(chat)
            assert answered["rival"][-1]["content"] == "Hello"
            assert "ballot" not in answered
            assert "was not stored" in await page.vote(answered)
    assert path.read_bytes() == b""


@pytest.mark.anyio
async def test_a_cut_answer_gets_no_ballot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with comparing_page(path, FakeApi([delta("Hello", "length"), DONE]), monkeypatch) as page:
        assert "ballot" not in await page.answer(asked())


@pytest.mark.anyio
async def test_votes_are_within_the_visitors_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with comparing_page(path, FakeApi([delta("Hello", "stop"), DONE]), monkeypatch) as page:
        for _ in range(3):
            assert "was not stored" in await page.vote(asked())
        chat = await page.answer(asked())
        assert "Try again in " in await page.vote(chat)
    assert path.read_bytes() == b""


@pytest.mark.anyio
@pytest.mark.parametrize(
    "ballot", [None, {"id": "a", "answered_at": "b", "settings": "{}", "signature": "c"}]
)
async def test_votes_that_are_posted_to_the_endpoint_write_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, ballot: object
) -> None:
    monkeypatch.setenv("FRONTEND_API_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("FRONTEND_VOTES", str(path))
    app = build_app(load_settings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page") as client:
        config = (await client.get("/config")).json()
        props = {part["id"]: part["props"] for part in config["components"]}
        [event] = [
            event
            for event in config["dependencies"]
            if any(props.get(target, {}).get("value") == "Left is better" for target, _ in event["targets"])
        ]
        chat = compared() | {"ballot": ballot}
        values = [
            chat if props[id_].get("storage_key") == "chat" else props[id_].get("value")
            for id_ in event["inputs"]
        ]
        body = {"fn_index": event["id"], "data": values, "session_hash": "x"}
        answer = await client.post("/gradio_api/run/predict", json=body)
    assert answer.status_code == 200
    assert "was not stored" in answer.text
    assert path.read_bytes() == b""
