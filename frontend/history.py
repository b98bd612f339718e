"""The chats beside the open one, as the browser keeps them: put away, taken out, listed."""

import json

from conversations import Chat, restore, title_of

MAX_CHARACTERS = 600_000  # as JSON: well within a browser's five megabytes once it is encrypted


def restore_history(kept: object) -> list[Chat]:
    """The well-formed chats of what a browser sends back."""
    chats = [restore(chat) for chat in kept] if isinstance(kept, list) else []
    return [chat for chat in chats if chat["entries"]]


def put(others: list[Chat], chat: Chat) -> list[Chat]:
    """The other chats with `chat` among them, newest first; the oldest give way when there is no room.

    A chat in which nothing was asked is not kept.
    """
    rest = [other for other in others if other["id"] != chat["id"]]
    chats = sorted([chat, *rest] if chat["entries"] else rest, key=lambda c: -c["at"])
    room, kept = MAX_CHARACTERS, []
    for each in chats:
        room -= len(json.dumps(each))
        if room >= 0:
            kept.append(each)
    return kept


def take(others: list[Chat], chat_id: str) -> tuple[Chat | None, list[Chat]]:
    """(the chat of that id or None, the others without it)."""
    found = next((chat for chat in others if chat["id"] == chat_id), None)
    return found, [chat for chat in others if chat["id"] != chat_id]


def titles(chat: Chat, others: list[Chat]) -> list[tuple[str, str]]:
    """(title, id) of all chats, the open one among them, newest first."""
    chats = [*others, chat] if chat["entries"] else others
    return [(title_of(each), each["id"]) for each in sorted(chats, key=lambda c: -c["at"])]
