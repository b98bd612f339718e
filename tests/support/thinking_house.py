"""Questions of each dialect to a house whose model thinks."""

from collections.abc import Callable
from typing import Any

import httpx

from tests.support import messages
from tests.support.api import MODEL, House, ask

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
ANSWER = "Green? No.\n</think>\n\nBlue."
CALL = '</think>\n<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
USER = {"role": "user", "content": "Hi"}
PLAIN: dict[str, dict[str, Any]] = {
    CHAT: ask(),
    RESPONSES: {"model": MODEL, "input": "Hi"},
    MESSAGES: messages.wants(thinking={"type": "adaptive"}),
}
Serve = Callable[..., House]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


async def post(house: House, path: str, **fields: Any) -> httpx.Response:
    await house.load()
    async with house.client() as client:
        answer: httpx.Response = await client.post(path, json=PLAIN[path] | fields)
        assert answer.status_code == 200, answer.text
        return answer


def ignored(answer: httpx.Response) -> str:
    return str(answer.headers.get("x-ignored-fields", ""))
