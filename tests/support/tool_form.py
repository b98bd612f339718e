"""What trainer and API must agree on, held by the tests of both: how templates write functions and calls.

The templates are ChatML in the manners of families: without tools, Llama's, Qwen's, Mistral's.
"""

from typing import Any

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Now, in °C.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Rain in Düren?"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {
                "id": "a",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Düren", "days": [1, {"x": null}]}'},
            },
            {"id": "b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "Rain"},
    {"role": "tool", "tool_call_id": "b", "content": "12:00"},
    {"role": "assistant", "content": "It rains."},
    {"role": "user", "content": "And the time?"},
]
# All of it in a ChatML template that knows no tools, up to where the answer begins.
WRITTEN = """\
<|im_start|>system
Be kind.

You can call functions. These are known, one a line, with their parameters as JSON Schema:
<tools>
{"type": "function", "function": {"name": "weather", "description": "Now, in °C.", \
"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
{"type": "function", "function": {"name": "now"}}
</tools>
To call one, answer with its name and arguments as a JSON object within tags, and with nothing else:
<tool_call>
{"name": "...", "arguments": {...}}
</tool_call><|im_end|>
<|im_start|>user
Rain in Düren?<|im_end|>
<|im_start|>assistant
Let me see.
<tool_call>
{"name": "weather", "arguments": {"city": "Düren", "days": [1, {"x": null}]}}
</tool_call>
<tool_call>
{"name": "now", "arguments": {}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
Rain
</tool_response>
<tool_response>
12:00
</tool_response><|im_end|>
<|im_start|>assistant
It rains.<|im_end|>
<|im_start|>user
And the time?<|im_end|>
<|im_start|>assistant
"""

_TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
_ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_LISTED = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"


def _template(call: str, listed: str = _LISTED) -> str:
    """Return a template that writes a call `c` like this."""
    return (
        f"{listed}{{% for m in messages %}}{{% if m.tool_calls %}}"
        "{{ '<|im_start|>assistant\n' + m.content }}"
        f"{{% for c in m.tool_calls %}}{{% set c = c.function %}}{call}{{% endfor %}}"
        f"{{{{ '<|im_end|>\n' }}}}{{% else %}}{_TURN}{{% endif %}}{{% endfor %}}{_ANSWER}"
    )


_JSON = '{"name": "{{ c.name }}", "KEY": {{ c.arguments ARGUMENTS }}}'
_OBJECT = _JSON.replace("ARGUMENTS", "| tojson")
CHATML = f"{{% for m in messages %}}{_TURN}{{% endfor %}}{_ANSWER}"
# Template, name of the arguments, whether it takes them as text. None: calls are written otherwise.
FORMS: dict[str, tuple[str, tuple[str, bool] | None]] = {
    "without tools": (CHATML, None),
    "Llama's": (_template(_OBJECT.replace("KEY", "parameters")), ("parameters", False)),
    "Qwen's": (
        _template(f"<tool_call>\n{_OBJECT}\n</tool_call>".replace("KEY", "arguments")),
        ("arguments", False),
    ),
    "arguments as text": (
        _template(f"<tool_call>{_JSON}</tool_call>".replace("KEY", "arguments").replace("ARGUMENTS", "")),
        ("arguments", True),
    ),
    "Mistral's": (_template(f"[TOOL_CALLS] [{_OBJECT}]".replace("KEY", "arguments")), None),
    "calls but no tools": (_template(_OBJECT.replace("KEY", "arguments"), listed=""), None),
    "it raises": ("{{ raise_exception('no') }}", None),
}  # fmt: skip
