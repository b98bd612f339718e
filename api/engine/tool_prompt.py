"""Prepare messages and tools for a chat template, or as text for a template that knows no tools.

Llama 3's template lays out tools, calls and results itself. For other templates this module writes them
in Hermes' form, which most open models that call functions know: a part of the system message, and tags
around calls and results.
"""

import json
from collections.abc import Sequence
from typing import Any

import orjson

from api.engine.json_schema import is_deep
from api.engine.messages import Call, Message, Tool

_LLAMA = '"parameters": '  # Llama's template writes a call with this name

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
    """Return whether a chat template lays out tools itself."""
    return _LLAMA in template and "tools" in template


def template_input(messages: Sequence[Message], tools: Sequence[Tool], known: bool) -> dict[str, Any]:
    """Return `messages` and `tools` for the template. known: the template lays out tools itself.

    A message has its name if it has one, whether the template reads it or not.
    """
    offered = [_offered(tool) for tool in tools]
    if known:
        return {"messages": [_native(message) for message in messages], "tools": offered or None}
    turns = _plain(messages)
    if offered:
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in offered)
        _add_to_system(turns, _INTRODUCTION.format(tools=lines))
    return {"messages": turns, "tools": None}


def _offered(tool: Tool) -> dict[str, Any]:
    """Return the tool in OpenAI's form, which chat templates expect."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    return {"type": "function", "function": function}


def _native(message: Message) -> dict[str, Any]:
    turn = _turn(message, message.text)
    if message.calls:
        turn["tool_calls"] = [{"type": "function", "function": _called(call)} for call in message.calls]
    return turn


def _turn(message: Message, content: str) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": content}
    return turn if message.name is None else {**turn, "name": message.name}


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Write consecutive results as one user turn, because templates may require alternating roles."""
    turns: list[dict[str, Any]] = []
    results: list[str] | None = None
    for message in messages:
        if message.role != "tool":
            results = None
            calls = [
                f"<tool_call>\n{json.dumps(_called(call), ensure_ascii=False)}\n</tool_call>"
                for call in message.calls
            ]
            content = "\n".join([message.text, *calls] if message.text else calls)
            turns.append(_turn(message, content))
            continue
        if results is None:
            results = []
            turns.append({"role": "user", "content": ""})
        results.append(f"<tool_response>\n{message.text}\n</tool_response>")
        turns[-1]["content"] = "\n".join(results)
    return turns


def _add_to_system(turns: list[dict[str, Any]], text: str) -> None:
    if turns[0]["role"] == "system":
        turns[0]["content"] += "\n\n" + text
    else:
        turns.insert(0, {"role": "system", "content": text})


def _called(call: Call) -> dict[str, Any]:
    """Return a call with its arguments as an object, or as plain text if they are not JSON."""
    arguments: Any = call.arguments
    try:
        parsed = orjson.loads(arguments)
        arguments = arguments if is_deep(parsed) else parsed
    except orjson.JSONDecodeError:
        pass
    return {"name": call.name, "arguments": arguments}
