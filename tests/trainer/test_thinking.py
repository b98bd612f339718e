"""Thinking in answers: read, rendered where the template has it, trained where the model must write it."""

import importlib.resources
from collections import Counter
from typing import Any

import pytest

from tests.support import prompts
from trainer.config_data import ColumnsConfig, DataConfig
from trainer.data.adapt import adapt
from trainer.data.clean import Cleaned
from trainer.data.conversation import Conversation, Message
from trainer.data.parse import Reading, parse_row
from trainer.data.select import Selected
from trainer.data.tokenize import ChatTokenizer, answer_runs
from trainer.errors import DataError

# Answers are written without their thinking, and prompts begin it, as DeepSeek's R1 does.
OPENING = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def chat_of(template: str, own_thinking_only: bool = False) -> ChatTokenizer:
    if template.endswith(".jinja"):
        template = (importlib.resources.files("trl") / "chat_templates" / template).read_text()
    made = prompts.tokenizer(template)
    made.add_special_tokens({"bos_token": "<s>"})
    return ChatTokenizer(made, own_thinking_only)


def trained(template: str, row: dict[str, Any], **settings: Any) -> list[str]:
    """What is trained of a row, and before it the sentences that the console would show."""
    data = DataConfig(source="s", max_length=512, validation_rows=1, test_rows=1, **settings)
    chat = chat_of(template, data.thinking == "last")
    selected = Selected(cleaned := Cleaned([parse_row(row, "s")]))
    said = adapt(selected, data, chat.template.traits)
    if unread := cleaned.unread_columns():
        said.append(unread)
    return said + [
        str(chat.tokenizer.decode(made.input_ids[begin:end]))
        for rendered in chat.rows(cleaned.conversations)
        for made in rendered.rows
        for begin, end in answer_runs(made.labels)
    ]


def field(*answers: tuple[str, str], name: str = "reasoning_content") -> dict[str, Any]:
    turns = (
        [{"role": "user", "content": "q"}, {"role": "assistant", name: t, "content": a}] for t, a in answers
    )
    return {"messages": [turn for pair in turns for turn in pair]}


def text(*answers: tuple[str, str]) -> dict[str, Any]:
    return field(*(("", f"<think>\n{t}\n</think>\n\n{a}") for t, a in answers), name="nothing")


PLAIN = prompts.STRICT
WHOLE, OTHER = (f"<think>\n{t}\n</think>\n\n{a}<|im_end|>" for t, a in ("Ta", "Ub"))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_is_trained_where_the_template_writes_it(name: str) -> None:
    assert trained(prompts.THINKING, field(("T", "a"), name=name)) == [WHOLE]
    assert trained(prompts.THINKING, text(("T", "a"))) == [WHOLE]
    assert trained(PLAIN, text(("T", "a"))) == [WHOLE], "a template without thinking leaves texts as they are"


def test_thinking_that_the_template_cannot_write_is_named_as_not_used() -> None:
    assert trained(PLAIN, field(("T", "a"))) == ["messages.reasoning_content (1 rows)", "a<|im_end|>"]
    assert parse_row(field(("T", "a")), "s").messages[1] == Message("assistant", "a", reasoning="T")


def test_what_a_prompt_begins_is_not_trained_and_the_rest_is() -> None:
    for row in (field(("T", "a")), text(("T", "a"))):
        assert trained(OPENING, row) == ["T\n</think>\n\na<|im_end|>"]
    assert trained(OPENING, text(("T", "a"), ("U", "b"))) == [
        "T\n</think>\n\na<|im_end|>", "U\n</think>\n\nb<|im_end|>",
    ]  # fmt: skip
    brackets = OPENING.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")
    assert trained(brackets, text(("T", "a"))) == ["T\n[/THINK]\n\na<|im_end|>"]
    assert trained("qwen3_5_think.jinja", field(("T", "a"))) == ["T\n</think>\n\na<|im_end|>"]
    assert trained("deepseek_r1_distill.jinja", text(("T", "a"))) == ["T\n</think>\n\na<｜end▁of▁sentence｜>"]
    assert trained("nemotron_3_nano.jinja", field(("", "a"), name="nothing")) == ["</think>a<|im_end|>"]


def test_thinking_that_a_prompt_ends_is_left_out_and_said() -> None:
    for row in (field(("T", "a")), text(("T", "a"))):
        said, answer = trained("qwen3_5_nothink.jinja", row)
        assert said == "1 conversation left without thinking (this chat template's prompts end it)"
        assert answer == "a<|im_end|>", "the prompt holds the empty block"
    with pytest.raises(
        DataError, match=r"data\.thinking is keep, but this chat template has no place for thinking"
    ):
        trained("qwen3_5_nothink.jinja", field(("T", "a")), thinking="keep")


@pytest.mark.parametrize("made", [field, text])
def test_thinking_is_stripped_if_asked(made: Any) -> None:
    for template in (PLAIN, prompts.THINKING):
        said, *answers = trained(template, made(("T", "a"), ("U", "b")), thinking="strip")
        assert said == "1 conversation left without thinking (data.thinking: strip)"
        assert [answer.removeprefix("<think>\n\n</think>\n\n") for answer in answers] == [
            "a<|im_end|>",
            "b<|im_end|>",
        ]


@pytest.mark.parametrize("made", [field, text])
def test_all_thinking_is_kept_if_asked_or_the_template_is_named(made: Any) -> None:
    assert trained(PLAIN, made(("T", "a"), ("U", "b")), thinking="keep") == [WHOLE, OTHER]
    with pytest.raises(DataError, match="leaves out the thinking of earlier answers, in serving too"):
        trained(prompts.THINKING, made(("T", "a"), ("U", "b")), thinking="keep")
    assert trained(prompts.THINKING, made(("T", "a")), thinking="keep") == [WHOLE]


@pytest.mark.parametrize("made", [field, text])
def test_only_the_trained_answer_has_its_thinking_if_asked(made: Any) -> None:
    row = made(("T", "a"), ("U", "b"))
    assert trained(PLAIN, row, thinking="last") == [WHOLE, OTHER]
    chat = chat_of(PLAIN, own_thinking_only=True)
    rows = chat.rows([parse_row(text(("T", "a"), ("U", "b")), "s")])[0].rows
    assert [row.turns for row in rows] == [[1], [2]]
    assert chat.tokenizer.decode(rows[1].input_ids) == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\nU\n</think>\n\nb<|im_end|>\n"
    )


def test_other_thinking_is_another_row_and_no_thinking_the_row_it_was() -> None:
    plain, one, other = (parse_row(field((t, "a")), "s") for t in ("", "T", "U"))
    assert len({plain.row_id, one.row_id, other.row_id}) == 3
    bare = Conversation((Message("user", "q"), Message("assistant", "a")), "s")
    assert plain.row_id == bare.row_id and "T" in one.text


def test_thinking_that_is_no_text_is_named_as_not_used() -> None:
    unread: Counter[str] = Counter()
    parse_row(field(({"steps": 1}, "a")), "s", unread=unread)  # type: ignore[arg-type]
    assert unread == {"messages.reasoning_content": 1}


def test_thinking_in_a_column_is_read_by_its_mapping() -> None:
    columns = ColumnsConfig(prompt="Question", response="Response", thinking="Complex_CoT")
    unread: Counter[str] = Counter()
    row = {"Question": "q", "Complex_CoT": "T", "Response": "a"}
    made = parse_row(row, "s", reading=Reading(columns), unread=unread)
    assert made.messages[1] == Message("assistant", "a", reasoning="T") and not unread
    bare = parse_row(row | {"Complex_CoT": None}, "s", reading=Reading(columns))
    assert bare.messages[1] == Message("assistant", "a")
