from typing import Any

import gradio as gr
import pytest

import layout
import texts
from client import Model
from conversations import Conversation, ask, cut, new_chat, reply
from layout import Components
from offer import offer_of
from settings import Example, Settings
from updates import offer_update, restored_chat_update

pytestmark = pytest.mark.anyio
SETTINGS = Settings(api_url="http://127.0.0.1:8000")
MORE = [Example(title="More", prompt="Tell me more.")]
QUESTION = ask([], "Tell me.")


@pytest.fixture(scope="module")
async def ui() -> Components:
    with gr.Blocks():
        return layout.lay_out(SETTINGS)


@pytest.mark.parametrize(
    ("entries", "text", "names"),
    [
        (QUESTION, texts.NO_ANSWER_YET, ["retry"]),
        (cut(reply(QUESTION, "On"), texts.CUT_OFF), texts.CUT_OFF, ["continue", "retry"]),
        (reply(QUESTION, "Once."), "Once.", ["ask Tell me more."]),
    ],
    ids=["without an answer", "an unfinished answer", "a whole answer"],
)
async def test_a_reloaded_chat_says_what_was_lost_and_what_can_be_done(
    ui: Components, entries: Conversation, text: str, names: list[str]
) -> None:
    shown = restored_chat_update(ui, new_chat(entries), MORE)[ui.chatbot]
    assert text in shown[-1]["content"][0]["text"]
    assert [option["value"] for option in shown[-1]["options"]] == names


@pytest.mark.parametrize(("chosen", "value"), [(512, None), (2048, None), (4096, 2048)])
async def test_the_answer_length_ends_at_the_context_and_a_longer_one_is_lowered_and_said_to_be(
    ui: Components, chosen: int, value: int | None
) -> None:
    slider: dict[str, Any] = offer_update(ui, offer_of(Model("m", 2048), SETTINGS), chosen)[ui.max_tokens]
    assert (slider["maximum"], slider.get("value")) == (2048, value)
    assert slider["info"].startswith("Lowered from 4,096. ") == (value is not None)
