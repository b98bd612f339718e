"""Tools, calls and their results as a chat template takes them, or as text for a template that knows none.

Llama 3's template lays them out itself. For any other they are written in Hermes' form, which most open
models that call functions know: a part of the system message, and tags around calls and results.
"""

import json
from collections.abc import Sequence
from typing import Any

import orjson

from api.dialects.chat.schema import ChatMessage
from api.generation.json_schema import is_deep
from api.generation.tools import Tool, ToolCall

_LLAMA = '"parameters": '  # how its template writes a call

_INTRODUCTION = """\
You can call functions. These are known, one a line, with their parameters as JSON Schema:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as a JSON object within tags, and with nothing else:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""


def knows_tools(template: str) -> bool:
    return _LLAMA in template and "tools" in template


def template_input(messages: Sequence[ChatMessage], tools: Sequence[Tool], known: bool) -> dict[str, Any]:
    """`messages` and `tools` for the template. known: it knows what tools are."""
    offered = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]
    if known:
        return {"messages": [_native(message) for message in messages], "tools": offered or None}
    turns = _plain(messages)
    if offered:
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in offered)
        _add_to_system(turns, _INTRODUCTION.format(tools=lines))
    return {"messages": turns, "tools": None}


def _native(message: ChatMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": _role(message), "content": message.text()}
    if message.tool_calls:
        turn["tool_calls"] = [{"type": "function", "function": _called(call)} for call in message.tool_calls]
    return turn


def _plain(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Results that follow each other are one turn of the user: templates may insist on alternation."""
    turns: list[dict[str, Any]] = []
    results: list[str] | None = None
    for message in messages:
        if message.role != "tool":
            results = None
            calls = [
                f"<tool_call>\n{json.dumps(_called(call), ensure_ascii=False)}\n</tool_call>"
                for call in message.tool_calls or ()
            ]
            text = message.text()
            turns.append({"role": _role(message), "content": "\n".join([text, *calls] if text else calls)})
            continue
        if results is None:
            results = []
            turns.append({"role": "user", "content": ""})
        results.append(f"<tool_response>\n{message.text()}\n</tool_response>")
        turns[-1]["content"] = "\n".join(results)
    return turns


def _add_to_system(turns: list[dict[str, Any]], text: str) -> None:
    if turns[0]["role"] == "system":
        turns[0]["content"] += "\n\n" + text
    else:
        turns.insert(0, {"role": "system", "content": text})


def _called(call: ToolCall) -> dict[str, Any]:
    """Arguments as an object, or as the text they are if a model has made them of no JSON."""
    arguments: Any = call.function.arguments
    try:
        parsed = orjson.loads(arguments)
        arguments = arguments if is_deep(parsed) else parsed
    except orjson.JSONDecodeError:
        pass
    return {"name": call.function.name, "arguments": arguments}


def _role(message: ChatMessage) -> str:
    """OpenAI's newer name of the system role is unknown to chat templates."""
    return "system" if message.role == "developer" else message.role
