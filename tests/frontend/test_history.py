import history
from conversations import Chat, ask, new_chat
from history import put, restore_history, take, titles


def chat(id_: str, at: float, text: str = "hi") -> Chat:
    return Chat(id=id_, entries=ask([], text), rival=[], start=0, at=at)


def ids(chats: list[Chat]) -> list[str]:
    return [each["id"] for each in chats]


def test_chats_stand_newest_first_wherever_they_came_from() -> None:
    shelved = put(put([], chat("new", 2)), chat("old", 1))
    assert ids(shelved) == ["new", "old"]
    assert [id_ for _, id_ in titles(chat("middle", 1.5), shelved)] == ["new", "middle", "old"]


def test_a_chat_that_is_put_away_again_takes_its_own_place() -> None:
    assert ids(put([chat("a", 1)], chat("a", 2))) == ["a"]


def test_a_chat_in_which_nothing_was_asked_is_neither_kept_nor_listed() -> None:
    assert put([], new_chat()) == []
    assert titles(new_chat(), []) == []


def test_a_chat_that_is_taken_out_is_gone_from_the_shelf() -> None:
    shelved = [chat("a", 1), chat("b", 2)]
    assert take(shelved, "a") == (shelved[0], shelved[1:])
    assert take(shelved, "gone") == (None, shelved)


def test_the_oldest_give_way_when_there_is_no_room() -> None:
    big = "x" * (history.MAX_CHARACTERS // 2)
    shelved: list[Chat] = []
    for at in range(4):
        shelved = put(shelved, chat(str(at), at, big))
    assert ids(shelved) == ["3"]


def test_junk_from_the_browser_is_no_chat() -> None:
    assert restore_history([None, {}, "x", {"id": "a", "entries": []}]) == []
    assert restore_history({"a": 1}) == []
    assert restore_history([chat("a", 1)]) == [chat("a", 1)]
