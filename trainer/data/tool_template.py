"""Find how a chat template writes functions and their calls, and extend a template that leaves them out.

The API finds it in the same way (api/engine/tool_prompt.py) and gives the artifact's template the same tools
and calls. So what is trained is what it will show and read. tests/support/tool_form.py has the cases of both.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN = Path(__file__).with_name("tools.jinja")
Render = Callable[[list[dict[str, Any]], list[dict[str, Any]], bool], str]


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How a template writes a call. key: the name of the arguments. as_text: it takes them as JSON text.

    keeps_text: it also writes the text of an answer that has calls.
    """

    key: str
    as_text: bool
    keeps_text: bool

    def arguments(self, text: str) -> Any:
        """Return a call's arguments, which are JSON text, as the template takes them."""
        return text if self.as_text else json.loads(text)


def tool_form(render: Render) -> ToolForm | None:
    """Return how a chat template writes calls; None if it leaves any out, or writes calls otherwise.

    render: takes messages, tools, and whether an answer begins. It is tried with names that nobody can guess.
    """
    return _form_of(render, as_text=False) or _form_of(render, as_text=True)


def with_tools(template: str, takes_system: bool) -> str:
    """Return a chat template that writes tools as text before it continues with `template`.

    takes_system: `template` has a place for a system message. Otherwise tools stand in the first question.
    """
    place = "{%- set tools_in_question = " + ("false" if takes_system else "true") + " -%}\n"
    return f"{place}{OWN.read_text(encoding='utf-8')}{template}"


def _form_of(render: Render, *, as_text: bool) -> ToolForm | None:
    name, value, result, said = (f"{letter}{secrets.token_hex(8)}" for letter in "nvrt")
    arguments = {"x": value}
    parameters = {"type": "object", "properties": {"x": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": name, "description": "y", "parameters": parameters}}
    called = {"name": name, "arguments": json.dumps(arguments) if as_text else arguments}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "z"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": called}]},
        {"role": "tool", "content": result},
    ]
    try:
        asked, whole = render(turns[:1], [tool], True), render(turns, [tool], False)
    except Exception:  # whatever an expression of the template raises
        return None
    if name not in asked or result not in whole:
        return None
    answer = "".join(whole.removeprefix(asked).split())
    for key in ("arguments", "parameters"):
        call = f'{{"name":"{name}","{key}":{{"x":"{value}"}}'
        if f"<tool_call>{call}" in answer or answer.startswith(call):
            return ToolForm(
                key, as_text, _keeps(render, [turns[0], {**turns[1], "content": said}], [tool], said)
            )
    return None


def _keeps(render: Render, turns: list[dict[str, Any]], tools: list[dict[str, Any]], text: str) -> bool:
    try:
        return text in render(turns, tools, False)
    except Exception:  # whatever an expression of the template raises
        return False
