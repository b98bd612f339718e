"""Prepare messages and tools for a chat template, or as text for a template that knows no tools.

A template that lays out tools, calls and results in a form that template_form.py knows gets them as it takes
them. For other templates this module writes them in Hermes' form, which most open models that call functions
know: a part of the system message, and tags around calls and results. The trainer decides in the same way,
and gives an artifact that was trained on calls a template that lays them out.
"""

import json
from collections.abc import Sequence
from typing import Any

import orjson

from api.engine.json_schema import is_deep
from api.engine.messages import Call, Message, Tool
from api.engine.template_form import ToolForm, Written

_INTRODUCTION = """\
You can call functions. These are known, one a line, with their parameters as JSON Schema:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as a JSON object within tags, and with nothing else:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""


# How models that this module shows functions to write a call.
HERMES = Written(
    "json",
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    "}\n</tool_call>",
    '<tool_call>\n{"name": "',
)


def template_input(
    messages: Sequence[Message], tools: Sequence[Tool], form: ToolForm | None, thinking_key: str | None
) -> dict[str, Any]:
    """Return `messages` and `tools` for the template. form: how it writes calls, if it does.

    thinking_key: its name for a message's thinking, if it has one.

    A message has its name if it has one, whether the template reads it or not.
    """
    offered = [_offered(tool) for tool in tools]
    if form:
        turns = form.laid_out([_in_full(message, thinking_key) for message in messages])
        return {"messages": turns, "tools": [form.offered(tool) for tool in offered] or None}
    turns = _plain(messages, thinking_key)
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


def _in_full(message: Message, thinking_key: str | None) -> dict[str, Any]:
    """Return the message in OpenAI's form."""
    turn = _turn(message, message.text, thinking_key)
    if message.calls:
        turn["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    if message.call_id is not None:
        turn["tool_call_id"] = message.call_id
    return turn


def _turn(message: Message, content: str, thinking_key: str | None) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        turn["name"] = message.name
    if message.thinking and thinking_key is not None:
        turn[thinking_key] = message.thinking
    return turn


def _plain(messages: Sequence[Message], thinking_key: str | None) -> list[dict[str, Any]]:
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
            turns.append(_turn(message, content, thinking_key))
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
