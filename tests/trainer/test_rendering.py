"""Templates as people have them: what stands before a trained answer is what the API will render."""

import importlib.resources
from typing import Any

import pytest

from tests.support import prompts
from trainer.config_data import DataConfig
from trainer.data.adapt import adapt
from trainer.data.clean import Cleaned
from trainer.data.conversation import Conversation, Message
from trainer.data.repair import repair
from trainer.data.select import Selected
from trainer.data.shapes import RowError
from trainer.data.tokenize import IGNORED, ChatTokenizer, Rendered, TokenRow, answer_runs

REWRITING = [prompts.THINKING, "qwen3.jinja", "qwen3_5_think.jinja", "phi3_5.jinja", "gptoss.jinja"]
APPENDING = [prompts.STRICT, "qwen2_5.jinja", "llama3_2.jinja", "gemma.jinja", "glm4moe.jinja"]


def chat_of(template: str) -> ChatTokenizer:
    """A chat tokenizer with one of our templates, or one that trl ships, by its file."""
    if template.endswith(".jinja"):
        template = (importlib.resources.files("trl") / "chat_templates" / template).read_text()
    made = prompts.tokenizer(template)
    made.add_special_tokens({"bos_token": "<s>"})
    return ChatTokenizer(made)


def conversation(*turns: tuple[Any, str], untrained: int = -1) -> Conversation:
    return Conversation(tuple(Message(r, t, i != untrained) for i, (r, t) in enumerate(turns)), "s")


def rendered(chat: ChatTokenizer, *conversations: Conversation) -> list[Rendered]:
    return chat.rows(conversations)


def trained(chat: ChatTokenizer, row: TokenRow) -> list[str]:
    return [str(chat.tokenizer.decode(row.input_ids[begin:end])) for begin, end in answer_runs(row.labels)]


def test_a_system_prompt_without_a_place_is_in_the_question_as_the_api_has_it() -> None:
    """tests/api/test_prompt.py holds the other side."""
    chat = chat_of(prompts.STRICT)
    rows = [conversation(("system", prompts.SYSTEM), ("user", "q"), ("assistant", "a"))]
    selected = Selected(Cleaned(conversations=rows))
    settings = DataConfig(source="rows.jsonl", max_length=64, validation_rows=1, test_rows=1)
    adapt(selected, settings, chat.template.traits)
    [adapted] = selected.cleaned.conversations
    ids = chat.prompt_ids(adapted.messages[:-1])
    wanted = [t.replace("\n", "Ċ").replace(" ", "Ġ") for t in prompts.tokens(prompts.SYSTEM_IN_QUESTION)]
    assert chat.tokenizer.convert_ids_to_tokens(ids) == wanted


def test_two_questions_in_a_row_are_the_one_that_the_api_makes_of_them() -> None:
    """tests/api/test_turns.py holds the other side."""
    asked = [Message("user", question) for question in prompts.TWO_QUESTIONS]
    repaired, _ = repair([*asked, Message("assistant", "a")])
    chat = chat_of(prompts.STRICT)
    ids = chat.prompt_ids(repaired[:-1])
    wanted = [t.replace("\n", "Ċ").replace(" ", "Ġ") for t in prompts.tokens(prompts.ONE_QUESTION)]
    assert chat.tokenizer.convert_ids_to_tokens(ids) == wanted


@pytest.mark.parametrize("template", [prompts.THINKING, prompts.STRICT])
def test_the_prompt_of_an_answer_is_that_of_the_api(template: str) -> None:
    chat = chat_of(template)
    (made,) = rendered(chat, conversation(*prompts.HISTORY))
    found = [
        (turn, chat.tokenizer.convert_ids_to_tokens(row.input_ids[:begin]))
        for row in made.rows
        for turn, (begin, _) in zip(row.turns or [], answer_runs(row.labels), strict=True)
    ]
    wanted = [
        [t.replace("\n", "Ċ").replace(" ", "Ġ") for t in prompts.tokens(p)] for p in prompts.PROMPTS[template]
    ]
    assert found == list(enumerate(wanted, 1))


def test_the_prompt_after_an_answer_with_thinking_is_that_of_the_api() -> None:
    chat = chat_of(prompts.KEEPING)
    thought = Message("assistant", "a", reasoning=prompts.THOUGHT)
    turns = (Message("user", "q"), thought, Message("user", "r"), Message("assistant", "b"))
    row = chat.row(Conversation(turns, "s"))
    begin, _ = answer_runs(row.labels)[1]
    wanted = [t.replace("\n", "Ċ").replace(" ", "Ġ") for t in prompts.tokens(prompts.AFTER_THOUGHT)]
    assert chat.tokenizer.convert_ids_to_tokens(row.input_ids[:begin]) == wanted


@pytest.mark.parametrize("template", REWRITING)
def test_a_template_that_rewrites_earlier_turns_gives_a_row_an_answer(template: str) -> None:
    chat = chat_of(template)
    turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"), ("user", "q3")]
    whole = conversation(*turns, ("assistant", "a3"), untrained=3)
    (made,) = rendered(chat, whole)
    assert [row.turns for row in made.rows] == [[1], [3]], "an untrained answer is no row"
    assert [row.question for row in made.rows] == ["q1", "q3"]
    assert [len(row.earlier or []) for row in made.rows] == [0, 4]
    for row, turn, said in zip(made.rows, (0, 2), ("a1", "a3"), strict=True):
        ((begin, _),) = answer_runs(row.labels)
        assert row.input_ids[:begin] == chat.prompt_ids(whole.messages[: 2 * turn + 1])
        assert said in trained(chat, row)[0]


@pytest.mark.parametrize("template", APPENDING)
def test_a_template_that_appends_gives_one_row_and_renders_each_turn_twice(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = chat_of(template)
    render = chat.template.render
    calls = []

    def counted(turns: Any, tools: Any, prompt: bool) -> str:
        calls.append(prompt)
        return render(turns, tools, prompt)

    monkeypatch.setattr(chat.template, "render", counted)
    turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    one, two = rendered(chat, conversation(*turns[:2]), conversation(*turns))
    assert len(one.rows) == len(two.rows) == 1 and two.rows[0].turns == [1, 2]
    assert len(calls) == 2 + 4
    for number, (begin, _) in enumerate(answer_runs(two.rows[0].labels)):
        assert two.rows[0].input_ids[:begin] == chat.prompt_ids(
            conversation(*turns[: 2 * number + 1]).messages
        )


def test_an_answer_whose_first_token_reaches_into_the_prompt_is_encoded_apart() -> None:
    chat = chat_of(prompts.STRICT)
    (made,) = rendered(chat, conversation(("user", "q"), ("assistant", "\nno")))
    assert trained(chat, made.rows[0]) == ["\nno<|im_end|>"]
    assert "ĊĊ" not in chat.tokenizer.convert_ids_to_tokens(made.rows[0].input_ids)


def test_a_template_that_raises_ends_that_row_only_with_what_it_says() -> None:
    chat = chat_of(prompts.STRICT)
    good = conversation(("user", "q"), ("assistant", "a"))
    bad = conversation(("system", "s"), ("user", "q"), ("assistant", "a"))
    before, made, after = rendered(chat, good, bad, good)
    assert made == Rendered(problem="the chat template refuses it: System role not supported")
    assert before == after and before.rows
    with pytest.raises(RowError, match="System role not supported"):
        chat.row(bad)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ raise_exception('word ' * 200) }}", "word word"),
        ("{{ raise_exception('') }}", "TemplateError"),
    ],
)
def test_whatever_a_template_raises_is_a_short_reason(program: str, says: str) -> None:
    made = prompts.tokenizer(
        "{% if messages[0].content == 'bad' %}" + program + "{% endif %}" + prompts.STRICT
    )
    chat = ChatTokenizer(made)
    good, bad = rendered(chat, *(conversation(("user", q), ("assistant", "a")) for q in ("good", "bad")))
    assert good.rows and not bad.rows
    assert says in bad.problem and len(bad.problem) < 160 and "\n" not in bad.problem


def test_answers_are_found_behind_many_control_tokens_in_texts() -> None:
    chat = chat_of(prompts.STRICT)
    asked, said = "<|im_start|>q" * 5, "<|im_end|>a<|im_start|>" * 3
    turns = [("user", asked), ("assistant", said), ("user", asked), ("assistant", f"{said}b")]
    (made,) = rendered(chat, conversation(*turns))
    assert trained(chat, made.rows[0]) == [f"{said}<|im_end|>", f"{said}b<|im_end|>"]
    assert made.rows[0].input_ids.count(chat.tokenizer.eos_token_id) == 4


def test_control_tokens_in_texts_are_named() -> None:
    chat = chat_of(prompts.STRICT)
    (made,) = rendered(chat, conversation(("user", "<|im_start|>q"), ("assistant", "a<|im_end|>")))
    assert made.controls == {"<|im_start|>", "<|im_end|>"}
    assert trained(chat, made.rows[0]) == ["a<|im_end|><|im_end|>"]
    labels = [label for label in made.rows[0].labels if label != IGNORED]
    assert labels.count(chat.tokenizer.eos_token_id) == 1
