"""A template that insists on turns gets them, and any other gets the conversation as it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.engine.messages import Call, Message
from api.engine.prompt import Prompt
from api.engine.turns import in_turns
from api.errors import InvalidRequest
from api.generation.request import Conversation
from tests.support import prompts
from tests.support.api import MODEL, FakeEngine, House, assert_openai_error, example_manifest

pytestmark = pytest.mark.anyio
# As Mistral's: a system prompt has a place before the first question, and nowhere else.
WITH_SYSTEM = prompts.STRICT.replace(
    "{{ raise_exception('System role not supported') }}",
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% set messages = messages[1:] %}",
)
NAMES = (
    "{{ '<|im_start|>' + m.role + '\n'",
    "{{ '<|im_start|>' + m.role + (' ' + m.name if m.name else '') + '\n'",
)
ANY_ORDER = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
Serve = Callable[[str], House]


@pytest.fixture
def serve(artifacts: Path, make_house: Callable[..., House]) -> Serve:
    def make(template: str) -> House:
        directory = (artifacts / "models" / "current").resolve()
        (directory / "chat_template.jinja").write_text(template)
        (directory / "manifest.json").write_text(json.dumps(example_manifest(directory)))
        return make_house(FakeEngine(max_model_len=4096))

    return make


async def post(house: House, path: str, **body: Any) -> httpx.Response:
    await house.load()
    async with house.client() as client:
        answer: httpx.Response = await client.post(path, json={"model": MODEL} | body)
        return answer


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def text_of(prompt: Prompt, *turns: Message) -> str:
    return prompt.text(Conversation(turns).encode(prompt, ())[0])


TWICE = messages(("user", "One."), ("user", "Two?"))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": TWICE}),
        (RESPONSES, {"input": TWICE}),
        (MESSAGES, {"messages": messages(("assistant", "Hello."), ("user", "Two?")), "max_tokens": 9}),
        (f"{MESSAGES}/count_tokens", {"messages": messages(("assistant", "Hello."), ("user", "Two?"))}),
    ],
)
async def test_an_order_that_the_template_refuses_is_changed_and_named(
    serve: Serve, path: str, fields: dict[str, Any]
) -> None:
    refusing = await post(serve(prompts.STRICT), path, **fields)
    taking = await post(serve(ANY_ORDER), path, **fields)
    assert refusing.status_code == taking.status_code == 200, refusing.text
    field = "input" if path == RESPONSES else "messages"
    assert refusing.headers["x-ignored-fields"] == f"{field}.role"
    assert "x-ignored-fields" not in taking.headers, "a template that takes it gets it as it is"


def test_two_questions_are_the_one_of_the_training() -> None:
    """tests/trainer/test_rendering.py holds the other side."""
    made = prompts.tokenizer(prompts.STRICT)
    asked = [Message("user", question) for question in prompts.TWO_QUESTIONS]
    ids, ordered = Conversation(asked).encode(Prompt(made), ())
    wanted = [t.replace("\n", "Ċ").replace(" ", "Ġ") for t in prompts.tokens(prompts.ONE_QUESTION)]
    assert ordered and made.convert_ids_to_tokens(ids) == wanted


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


BEGUN = "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("given", "template", "wanted"),
    [
        (
            [("assistant", "Hello."), ("user", "Hi")],
            prompts.STRICT,
            turn("user", "") + turn("assistant", "Hello.") + turn("user", "Hi"),
        ),
        (
            [("system", "S"), ("assistant", "Hello."), ("user", "Hi")],
            prompts.STRICT,
            turn("user", "S") + turn("assistant", "Hello.") + turn("user", "Hi"),
        ),
        (
            [("system", "S"), ("assistant", "Hello."), ("user", "Hi")],
            WITH_SYSTEM,
            turn("system", "S") + turn("user", "") + turn("assistant", "Hello.") + turn("user", "Hi"),
        ),
        (
            [
                ("system", "S"),
                ("system", "T"),
                ("user", "a"),
                ("assistant", "b"),
                ("system", "U"),
                ("user", "c"),
            ],
            WITH_SYSTEM,
            turn("system", "S\n\nT") + turn("user", "a") + turn("assistant", "b") + turn("user", "U\n\nc"),
        ),
        (
            [("user", "a"), ("assistant", "b"), ("assistant", ""), ("user", "c"), ("system", "Be brief.")],
            prompts.STRICT,
            turn("user", "a") + turn("assistant", "b") + turn("user", "c\n\nBe brief."),
        ),
    ],
)
def test_nothing_that_was_said_is_left_out(given: Any, template: str, wanted: str) -> None:
    prompt = Prompt(prompts.tokenizer(template))
    assert text_of(prompt, *(Message(role, text) for role, text in given)) == wanted + BEGUN


def test_a_result_written_as_a_question_is_joined_to_the_question_after_it() -> None:
    prompt = Prompt(prompts.tokenizer(prompts.STRICT))
    called = Message("assistant", "", (Call("c", "f", "{}"),))
    asked = text_of(
        prompt, Message("user", "a"), called, Message("tool", "11 C", call_id="c"), Message("user", "So?")
    )
    assert asked.endswith(turn("user", "<tool_response>\n11 C\n</tool_response>\n\nSo?") + BEGUN), asked


def test_calls_and_thinking_of_joined_answers_stay() -> None:
    called = [{"role": "assistant", "content": text, "tool_calls": [text], "thinking": text} for text in "ab"]
    asked = {"role": "user", "content": "q"}
    joined = {
        "role": "assistant", "content": "a\n\nb", "tool_calls": ["a", "b"], "thinking": "a\n\nb",
    }  # fmt: skip
    assert in_turns([asked, *called], takes_system=False) == [asked, joined]


def test_joined_questions_have_a_name_if_one_person_asks_both() -> None:
    prompt = Prompt(prompts.tokenizer(prompts.STRICT.replace(*NAMES)))
    both = text_of(prompt, Message("user", "a", name="ann"), Message("user", "b", name="ann"))
    assert both == "<|im_start|>user ann\na\n\nb<|im_end|>\n" + BEGUN
    two = text_of(prompt, Message("user", "a", name="ann"), Message("user", "b", name="bob"))
    assert two == turn("user", "a\n\nb") + BEGUN


def test_a_template_that_refuses_in_any_order_says_why() -> None:
    never = "{% if messages | length > 1 %}{{ raise_exception('One question only') }}{% endif %}"
    prompt = Prompt(prompts.tokenizer(never + prompts.STRICT))
    turns = [Message("user", "a"), Message("assistant", "b"), Message("assistant", "c")]
    with pytest.raises(InvalidRequest, match="One question only"):
        text_of(prompt, *turns)


async def test_a_result_without_a_call_is_refused_as_openai_does(serve: Serve) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "x", "tool_call_id": "c"}]
    error = assert_openai_error(await post(serve(prompts.STRICT), CHAT, messages=turns), 400, None)
    assert error["param"] == "messages.1" and "a call that is not before it (c)" in error["message"]
