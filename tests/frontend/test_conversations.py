import pytest

from conversations import (
    Chat,
    Conversation,
    ask,
    before_question,
    cut,
    for_chatbot,
    for_model,
    from_question,
    is_answered,
    is_cut,
    later_start,
    new_chat,
    questions_before,
    reopen,
    reply,
    restore,
    restore_entries,
    title_of,
)

TWO_TURNS: Conversation = [
    {"role": "user", "content": "  def f():\n    pass"},
    {
        "role": "assistant",
        "content": "**A**",
        "note": "3 tokens",
        "model": "m",
        "cut": False,
        "tokens": 9,
    },
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


def test_roles_alternate_for_the_model_even_with_unanswered_questions() -> None:
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
        [],
        {"id": 1, "entries": []},
        {"id": "a", "entries": [None, ["user"], {"role": "user"}, {"role": "system", "content": "x"}]},
    ],
)
def test_restoring_junk_from_the_browser_gives_an_empty_chat(junk: object) -> None:
    chat = restore(junk)
    assert (chat["entries"], chat["rival"], chat["start"]) == ([], [], 0)
    assert chat["id"]


def test_restoring_returns_the_stored_chat() -> None:
    chat = Chat(id="a", entries=TWO_TURNS, rival=TWO_TURNS[:1], start=1, at=5.0)
    assert restore(chat) == chat


def test_retry_removes_only_the_last_answer() -> None:
    assert reopen(TWO_TURNS) == TWO_TURNS
    assert reopen(reply(TWO_TURNS, "answer")) == TWO_TURNS
    assert reopen([]) == []


def test_an_edit_removes_what_followed_the_question() -> None:
    shown = for_chatbot(TWO_TURNS)
    assert [message["role"] for message in shown] == ["user", "assistant", "assistant", "user"], "a note too"
    assert questions_before(shown, index=3) == 1
    assert before_question(TWO_TURNS, 1) == TWO_TURNS[:2]
    assert before_question(TWO_TURNS, 0) == []


def test_leaving_out_the_oldest_messages_still_sends_the_last_question_and_shows_all() -> None:
    chat = new_chat(TWO_TURNS * 3)
    starts = []
    while later_start(chat) > chat["start"]:
        chat["start"] = later_start(chat)
        starts.append(chat["start"])
    assert starts == [3, 5]
    assert from_question(chat["entries"], chat["start"]) == TWO_TURNS[-1:]
    shown = for_chatbot(chat["entries"], start=chat["start"])
    assert [m["content"][0]["text"] for m in shown][-2] == (
        '<div class="divider">The messages above are no longer sent</div>'
    )


def test_an_answer_that_is_still_arriving_is_stored_as_incomplete() -> None:
    kept = cut(reply(TWO_TURNS, "so f"), "Not finished")
    assert is_cut(kept)
    assert restore_entries(kept) == kept
    assert cut(TWO_TURNS, "Not finished") == TWO_TURNS


def test_the_title_is_the_beginning_of_the_first_question() -> None:
    assert title_of(new_chat()) == "New chat"
    assert title_of(new_chat(ask([], "  one\n two "))) == "one two"
    long = title_of(new_chat(ask([], "word " * 50)))
    assert len(long) <= 61 and long.endswith("word…")


def test_half_a_surrogate_pair_is_replaced_wherever_it_comes_from() -> None:
    half, whole = "x\ud83d", "x\ufffd"
    conversation = reply(ask([], half), half)
    kept = restore_entries([{"role": "assistant", "content": half, "note": half, "model": half}])
    assert [entry["content"] for entry in [*conversation, *kept]] == [whole] * 3
    assert (kept[0]["note"], kept[0]["model"]) == (whole, whole)
    assert for_model(ask([], "\ud83d\ude00"), half)[0]["content"] == whole
    assert ask([], "\ud83d\ude00")[0]["content"] == "\U0001f600", "two halves make a whole"


def test_an_empty_answer_is_no_answer() -> None:
    assert not is_answered(reply(TWO_TURNS, ""))


def test_questions_are_shown_verbatim() -> None:
    (shown,) = for_chatbot(ask([], "<b>*x*\n\n    $y$ & z"))
    (part,) = shown["content"]
    assert part["text"] == ('<pre class="question">\n&lt;b&gt;*x*\n\n    &#36;y&#36; &amp; z</pre>')


def test_thoughts_are_verbatim_in_a_box_before_the_answer_open_while_they_come() -> None:
    conversation = reply(ask([], "q"), "Blue.", thinking="A \ud83dkite.\n\n</details>$x$")
    asked, thoughts, _ = for_chatbot(conversation)
    assert thoughts["content"][0]["text"] == (
        '<div class="thoughts"><details><summary>Thoughts</summary>'
        "<pre>A \ufffdkite.&#10;&#10;&lt;/details&gt;&#36;x&#36;</pre></details></div>"
    )
    coming = for_chatbot(conversation[:1], thinking="A")[-1]
    assert "<details open><summary>Thinking</summary><pre>A</pre>" in coming["content"][0]["text"]
    *_, thoughts, notice = for_chatbot(conversation[:1], "Sorry.", [("Try again", "retry")], thinking="A")
    assert "<details><summary>Thoughts" in thoughts["content"][0]["text"] and "options" in notice
    assert for_chatbot(conversation[:1], thinking=" \n") == [asked]
    assert "reasoning_content" not in reply([], "Blue.", thinking=" \n")[0], "an empty block is no thought"


def test_the_browser_keeps_thoughts_and_the_model_is_not_sent_them() -> None:
    conversation = reply(ask([], "q"), "Blue.", thinking="A kite.")
    assert restore_entries(conversation) == conversation
    assert for_model(ask(conversation, "r"))[1] == {"role": "assistant", "content": "Blue."}


def test_markup_in_a_notice_is_escaped() -> None:
    assert "<script>" not in str(for_chatbot([], "<script>alert(1)</script>"))


def test_choices_are_below_the_last_message() -> None:
    shown = for_chatbot(TWO_TURNS, "Sorry.", [("Try again", "retry")])
    assert shown[-1]["options"] == [{"label": "Try again", "value": "retry"}]
