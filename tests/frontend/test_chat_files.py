import json

import pytest

from chat_files import FileError, from_text, to_json, to_markdown
from conversations import Conversation, new_chat

ENTRIES: Conversation = [
    {
        "role": "user",
        "content": "# Heading\n\n    code\n\n<!-- user -->\n\\<!-- assistant -->\n\n## Not a turn",
    },
    {
        "role": "assistant",
        "content": "**A**\n\n## You\n",
        "note": "3 tokens",
        "model": "m",
        "cut": False,
        "tokens": 9,
        "reasoning_content": "A kite.\n\n## You\n<!-- user -->\n> Blue?",
    },
    {"role": "user", "content": "more\u2028"},
]


def contents(entries: Conversation) -> list[tuple[str, str]]:
    return [(entry["role"], entry["content"]) for entry in entries]


def test_json_round_trip_gives_the_same_chat() -> None:
    chat = new_chat(ENTRIES)
    chat["rival"] = ENTRIES[:2]
    back = from_text(to_json(chat))
    assert (back["entries"], back["rival"]) == (ENTRIES, ENTRIES[:2])
    assert back["id"] != chat["id"], "an import does not replace an existing chat"


def test_markdown_round_trip_keeps_every_word_even_if_it_looks_like_markup() -> None:
    back = from_text(to_markdown(new_chat(ENTRIES)))["entries"]
    assert contents(back) == contents(ENTRIES)
    assert [entry.get("reasoning_content") for entry in back] == [None, ENTRIES[1]["reasoning_content"], None]


def test_markdown_reads_well() -> None:
    chat = new_chat(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes", "model": "m"}]
    )
    assert to_markdown(chat) == "# Hi\n\n## You\n<!-- user -->\nHi\n\n## m\n<!-- assistant -->\nYes\n"
    chat["entries"][-1]["reasoning_content"] = "A greeting.\nAgree."
    assert to_markdown(chat).endswith("## m\n> A greeting.\n> Agree.\n\n<!-- assistant -->\nYes\n")


def test_markdown_without_headings_has_its_turns() -> None:
    entries = from_text("<!-- user -->\nHi\n<!-- assistant -->\nYes\n")["entries"]
    assert contents(entries) == [("user", "Hi\n"), ("assistant", "Yes")]


def test_training_rows_can_be_imported() -> None:
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]}
    assert contents(from_text(json.dumps(row))["entries"]) == [("user", "Hi"), ("assistant", "Yes")]


@pytest.mark.parametrize(
    "text", ["", "hello", "{", "[]", "{}", '{"messages": [1]}', '{"messages": 3}', "[[]]"]
)
def test_a_file_without_a_chat_is_refused_with_a_message(text: str) -> None:
    with pytest.raises(FileError, match=r"file"):
        from_text(text)
