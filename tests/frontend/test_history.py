import history
from conversations import Chat, ask, new_chat
from history import put, restore_history, take, titles


def chat(id_: str, at: float, text: str = "hi") -> Chat:
    return Chat(id=id_, entries=ask([], text), rival=[], start=0, at=at)


def ids(chats: list[Chat]) -> list[str]:
    return [each["id"] for each in chats]


def test_chats_are_listed_newest_first() -> None:
    stored = put(put([], chat("new", 2)), chat("old", 1))
    assert ids(stored) == ["new", "old"]
    assert [id_ for _, id_ in titles(chat("middle", 1.5), stored)] == ["new", "middle", "old"]


def test_a_chat_that_is_stored_again_replaces_itself() -> None:
    assert ids(put([chat("a", 1)], chat("a", 2))) == ["a"]


def test_a_chat_without_a_question_is_neither_stored_nor_listed() -> None:
    assert put([], new_chat()) == []
    assert titles(new_chat(), []) == []


def test_a_chat_that_is_opened_leaves_the_history() -> None:
    stored = [chat("a", 1), chat("b", 2)]
    assert take(stored, "a") == (stored[0], stored[1:])
    assert take(stored, "gone") == (None, stored)


def test_the_oldest_chats_are_dropped_when_there_is_no_room() -> None:
    big = "x" * (history.MAX_CHARACTERS // 2)
    stored: list[Chat] = []
    for at in range(4):
        stored = put(stored, chat(str(at), at, big))
    assert ids(stored) == ["3"]


def test_junk_from_the_browser_is_no_chat() -> None:
    assert restore_history([None, {}, "x", {"id": "a", "entries": []}]) == []
    assert restore_history({"a": 1}) == []
    assert restore_history([chat("a", 1)]) == [chat("a", 1)]
