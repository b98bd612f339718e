"""The history: the chats other than the open one, as the browser stores them."""

import json

from conversations import Chat, restore, title_of

MAX_CHARACTERS = 600_000  # of JSON; encrypted it is well within the five megabytes of a browser


def restore_history(kept: object) -> list[Chat]:
    """Return the well-formed chats among what a browser sends back, which may be anything."""
    chats = [restore(chat) for chat in kept] if isinstance(kept, list) else []
    return [chat for chat in chats if chat["entries"]]


def put(others: list[Chat], chat: Chat) -> list[Chat]:
    """Add `chat` to the others, newest first. Drop the oldest when they exceed `MAX_CHARACTERS`.

    A chat without a question is not kept.
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
    """Return (the chat with that id or None, the others without it)."""
    found = next((chat for chat in others if chat["id"] == chat_id), None)
    return found, [chat for chat in others if chat["id"] != chat_id]


def titles(chat: Chat, others: list[Chat]) -> list[tuple[str, str]]:
    """Return (title, id) of all chats including the open one, newest first."""
    chats = [*others, chat] if chat["entries"] else others
    return [(title_of(each), each["id"]) for each in sorted(chats, key=lambda c: -c["at"])]
