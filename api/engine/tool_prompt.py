"""Prepare messages and tools for a chat template, or as text for a template that knows no tools.

A template that lays out tools, calls and results, and writes calls as `generation.tool_calls` reads them,
gets them as they are. For other templates this module writes them in Hermes' form, which most open models
that call functions know: a part of the system message, and tags around calls and results. The trainer decides
in the same way, and gives an artifact that was trained on calls a template that lays them out.
"""

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from api.engine.json_schema import is_deep
from api.engine.messages import Call, Message, Tool

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]], bool], str]

_INTRODUCTION = """\
You can call functions. These are known, one a line, with their parameters as JSON Schema:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as a JSON object within tags, and with nothing else:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How a template writes a call. key: the name of the arguments. as_text: it takes them as JSON text."""

    key: str
    as_text: bool


def tool_form(render: Render) -> ToolForm | None:
    """Return how a chat template writes calls; None if it leaves any out, or writes calls otherwise.

    render: takes messages, tools, and whether an answer begins. It is tried with names that nobody can guess.
    """
    return _form_of(render, as_text=False) or _form_of(render, as_text=True)


def _form_of(render: Render, *, as_text: bool) -> ToolForm | None:
    name, value, result = (f"{letter}{secrets.token_hex(8)}" for letter in "nvr")
    arguments = {"x": value}
    tools = [_offered(Tool(name, "y", {"type": "object", "properties": {"x": {"type": "string"}}}))]
    called = {"name": name, "arguments": json.dumps(arguments) if as_text else arguments}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "z"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": called}]},
        {"role": "tool", "content": result},
    ]
    try:
        asked, whole = render(turns[:1], tools, True), render(turns, tools, False)
    except Exception:  # whatever an expression of the template raises
        return None
    if name not in asked or result not in whole:
        return None
    answer = "".join(whole.removeprefix(asked).split())
    for key in ("arguments", "parameters"):
        call = f'{{"name":"{name}","{key}":{{"x":"{value}"}}'
        if f"<tool_call>{call}" in answer or answer.startswith(call):
            return ToolForm(key, as_text)
    return None


def template_input(
    messages: Sequence[Message], tools: Sequence[Tool], form: ToolForm | None, thinking_key: str | None
) -> dict[str, Any]:
    """Return `messages` and `tools` for the template. form: how it writes calls, if it does.

    thinking_key: its name for a message's thinking, if it has one.

    A message has its name if it has one, whether the template reads it or not.
    """
    offered = [_offered(tool) for tool in tools]
    if form:
        native = [_native(message, form, thinking_key) for message in messages]
        return {"messages": native, "tools": offered or None}
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


def _native(message: Message, form: ToolForm, thinking_key: str | None) -> dict[str, Any]:
    turn = _turn(message, message.text, thinking_key)
    if message.calls:
        called = [
            {"name": call.name, "arguments": call.arguments} if form.as_text else _called(call)
            for call in message.calls
        ]
        turn["tool_calls"] = [{"type": "function", "function": function} for function in called]
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
