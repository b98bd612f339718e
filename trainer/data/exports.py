"""Write the rows that programs export as the chats they hold: logs of API calls, and ChatGPT's conversations.

A log has the request (`messages`, alone or in `request` or `body`) and the answer (`choices`, alone or in
`response`). ChatGPT's export has a tree in `mapping`, of which `current_node` ends the shown path.
"""

from collections.abc import Mapping
from typing import Any

from trainer.data.shapes import RowError, printable

LOG, CHATGPT = "log of API calls", "ChatGPT's export"
ALONE = "answers without their questions: join them with the requests by custom_id"
HIDDEN = ("is_visually_hidden_from_conversation", "is_user_system_message")


def exported(row: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
    """Return the row as a chat and the name of its form, or None if no such program wrote it.

    Raises: RowError if one did and the chat is not whole.
    """
    if isinstance(row.get("mapping"), dict) and "current_node" in row:
        left = {name: value for name, value in row.items() if name not in ("mapping", "current_node")}
        return {**left, "messages": _shown(row["mapping"], row["current_node"])}, CHATGPT
    request = _object(row, "request") or _object(row, "body") or row
    response = _object(row, "response") or row
    response = _object(response, "body") or response
    choices, asked = response.get("choices"), request.get("messages")
    if not (isinstance(choices, list) and _is_answered(choices)):
        if request is not row and isinstance(asked, list):
            raise RowError("a request of an API without its answer")
        return None
    if not isinstance(asked, list):
        raise RowError(ALONE)
    if len(choices) > 1:
        raise RowError("several choices of an API, and which of them is the answer is not known")
    if choices[0].get("finish_reason") == "length":
        raise RowError("an answer of an API that was cut off")
    chat = {"messages": [*asked, choices[0]["message"]]}
    if request.get("tools"):
        chat["tools"] = request["tools"]
    return {**_left(row, request, response), **chat}, LOG


def _object(row: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    value = row.get(name)
    return value if isinstance(value, dict) else None


def _left(row: Mapping[str, Any], request: Mapping[str, Any], response: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the chat does not hold, by names that say where it stood."""
    left = {name: value for name, value in row.items() if name not in ("request", "body", "response")}
    for place, part in (("request", request), ("response", response)):
        if part is not row:
            left |= {f"{place}.{name}": value for name, value in part.items()}
    read = ("messages", "choices", "tools")
    return {name: value for name, value in left.items() if name.rpartition(".")[2] not in read}


def _is_answered(choices: list[Any]) -> bool:
    with_message = (isinstance(c, dict) and isinstance(c.get("message"), dict) for c in choices)
    return bool(choices) and all(with_message)


def _shown(nodes: Mapping[str, Any], last: Any) -> list[dict[str, Any]]:
    """Return the messages from the root to a node. Raises: RowError if the tree is broken."""
    path: list[dict[str, Any]] = []
    seen = set()
    while last is not None:
        node = nodes.get(last)
        if not isinstance(node, dict) or last in seen:
            raise RowError("a tree of messages that is broken")
        seen.add(last)
        message = node.get("message")
        if isinstance(message, dict) and _is_said(message):
            path.append({"role": message["author"]["role"], "content": message.get("content")})
        last = node.get("parent")
    return path[::-1]


def _is_said(message: Mapping[str, Any]) -> bool:
    """Return whether a person sees the message: the export also holds empty and hidden ones.

    Raises: RowError if it is no text.
    """
    author, content, about = (message.get(name) for name in ("author", "content", "metadata"))
    if not isinstance(author, dict) or not isinstance(content, dict):
        return False
    if isinstance(about, dict) and any(about.get(name) for name in HIDDEN):
        return False
    if (kind := content.get("content_type")) != "text":
        raise RowError(f"a message of type {printable(str(kind))} in {CHATGPT}")
    return any(part != "" for part in content.get("parts") or ())
