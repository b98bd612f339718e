import pytest

from conversations import (
    Conversation,
    ask,
    for_chatbot,
    for_model,
    is_answered,
    reopen,
    reply,
    restore,
    shown_answer,
)

TWO_TURNS: Conversation = [
    {"role": "user", "content": "  def f():\n    pass"},
    {"role": "assistant", "content": "**A**", "note": "3 tokens"},
    {"role": "user", "content": "more"},
]


def test_model_gets_role_and_content_only_and_the_system_prompt_first() -> None:
    assert for_model(TWO_TURNS, " Be brief. ") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  def f():\n    pass"},
        {"role": "assistant", "content": "**A**"},
        {"role": "user", "content": "more"},
    ]


def test_no_system_message_without_a_system_prompt() -> None:
    assert for_model(ask([], "hi"), "  ") == [{"role": "user", "content": "hi"}]


def test_roles_alternate_for_the_model_whatever_went_unanswered() -> None:
    conversation = ask(ask(reply(ask(ask([], "lost"), "a"), "b"), "lost too"), "c")
    assert [m["content"] for m in for_model(conversation)] == ["a", "b", "c"]
    assert len(conversation) == 5


@pytest.mark.parametrize(
    "junk",
    [
        None,
        "x",
        3,
        {},
        [None],
        [{"role": "system", "content": "x"}],
        [{"role": "user"}],
        [["user"]],
    ],
)
def test_restoring_junk_from_the_browser_gives_an_empty_conversation(junk: object) -> None:
    assert restore(junk) == []


def test_restoring_gives_back_what_was_kept() -> None:
    assert restore(TWO_TURNS) == TWO_TURNS


def test_retry_takes_off_the_last_answer_and_only_that() -> None:
    assert reopen(TWO_TURNS) == TWO_TURNS
    assert reopen(reply(TWO_TURNS, "answer")) == TWO_TURNS
    assert reopen([]) == []


def test_an_empty_answer_is_no_answer() -> None:
    assert not is_answered(reply(TWO_TURNS, ""))


def test_questions_are_shown_word_for_word() -> None:
    (shown,) = for_chatbot(ask([], "<b>*x*\n\n    $y$ & z"))
    (part,) = shown["content"]
    assert part["text"] == ('<pre class="question">&lt;b&gt;*x*\n\n    &#36;y&#36; &amp; z</pre>')


def test_markup_in_a_notice_is_shown_not_run() -> None:
    assert "<script>" not in str(for_chatbot([], "<script>alert(1)</script>"))


def test_stopping_finds_what_the_browser_shows_of_the_answer() -> None:
    shown = for_chatbot(reply(TWO_TURNS, "so far"))
    assert shown_answer(shown, TWO_TURNS) == "so far"
    assert shown_answer(for_chatbot(TWO_TURNS), TWO_TURNS) == ""
