"""Extend a chat template that has no place for functions and their calls."""

from pathlib import Path

OWN = Path(__file__).with_name("tools.jinja")


def with_tools(template: str, takes_system: bool) -> str:
    """Return a chat template that writes tools as text before it continues with `template`.

    They are the words that the API writes for such a template (api/engine/tool_prompt.py).
    takes_system: `template` has a place for a system message. Otherwise tools stand in the first question.
    """
    place = "{%- set tools_in_question = " + ("false" if takes_system else "true") + " -%}\n"
    return f"{place}{OWN.read_text(encoding='utf-8')}{template}"
