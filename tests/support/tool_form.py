"""What trainer and API must agree on, held by the tests of both: how templates write functions and calls.

The templates are ChatML in which calls are written in the manners of families.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

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


def _template(call: str, listed: str = _LISTED, around: tuple[str, str] = ("", ""), between: str = "") -> str:
    """Return a template that writes a call `c`, whose id is `id`, like this, and calls with this `around`."""
    between = f"{{% if not loop.last %}}{between}{{% endif %}}" if between else ""
    return (
        f"{listed}{{% for m in messages %}}{{% if m.tool_calls %}}"
        "{{ '<|im_start|>assistant\n' + (m.content or '') }}"
        f"{around[0]}{{% for c in m.tool_calls %}}{{% set id = c.id %}}{{% set c = c.function %}}"
        f"{call}{between}"
        f"{{% endfor %}}{around[1]}"
        f"{{{{ '<|im_end|>\n' }}}}{{% else %}}{_TURN}{{% endif %}}{{% endfor %}}{_ANSWER}"
    )


class Form(NamedTuple):
    """A template with what is found in it: style, begin, tail; as_text and with_ids. controls: its tokens."""

    template: str
    found: tuple[str, str, str] | None = None
    as_text: bool = False
    with_ids: bool = False
    controls: tuple[str, ...] = ()


_JSON = '{"name": "{{ c.name }}", "KEY": {{ c.arguments ARGUMENTS }}}'
_OBJECT = _JSON.replace("ARGUMENTS", "| tojson")
_ARGUMENTS = _OBJECT.replace("KEY", "arguments")
_NEEDS_IDS = "{% if id | length != 9 %}{{ raise_exception('ids of nine characters') }}{% endif %}"
_IN_XML = (
    "<tool_call>\n<function={{ c.name }}>\n{% for k, v in c.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)
_IN_KEYS = (
    "<tool_call>{{ c.name }}\n{% for k, v in c.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>"
)
_IN_PYTHON = (
    "{{ c.name }}({% for k, v in c.arguments.items() %}{{ k }}={% if v is string %}'{{ v }}'"
    "{% else %}{{ v | tojson }}{% endif %}{% if not loop.last %}, {% endif %}{% endfor %})"
)
_ACTION = (
    '{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ c.name }}", '
    '"parameters": {{ c.arguments | tojson }}}'
)
_BREAK = "{{ '\n' }}"  # Jinja drops a line break behind a tag
_TAG = ("<tool_call>\n", "\n</tool_call>")
CHATML = f"{{% for m in messages %}}{_TURN}{{% endfor %}}{_ANSWER}"
FORMS: dict[str, Form] = {
    "without tools": Form(CHATML),
    "Llama's": Form(_template(_OBJECT.replace("KEY", "parameters")), ("json", '{"name": "', "}")),
    "Qwen's": Form(
        _template(_TAG[0] + _ARGUMENTS + _TAG[1]), ("json", '<tool_call>\n{"name": "', "}\n</tool_call>")
    ),
    "arguments as text": Form(
        _template(f"<tool_call>{_JSON}</tool_call>".replace("KEY", "arguments").replace("ARGUMENTS", "")),
        ("json", '<tool_call>{"name": "', "}</tool_call>"),
        as_text=True,
    ),
    "Mistral's": Form(
        _template(
            _NEEDS_IDS + _ARGUMENTS[:-1] + ', "id": "{{ id }}"}',
            around=("[TOOL_CALLS] [", "]"),
            between=", ",
        ),
        ("json", '[TOOL_CALLS] [{"name": "', ', "id": "000000000"}]'),
        with_ids=True,
        controls=("[TOOL_CALLS]",),
    ),
    "Mistral's later": Form(
        _template("[TOOL_CALLS]{{ c.name }}[ARGS]{{ c.arguments | tojson }}"),
        ("json", "[TOOL_CALLS]", ""),
        controls=("[TOOL_CALLS]", "[ARGS]"),
    ),
    "Granite's": Form(
        _template(_ARGUMENTS, around=("<|tool_call|>[", "]"), between=", "),
        ("json", '<|tool_call|>[{"name": "', "}]"),
        controls=("<|tool_call|>",),
    ),
    "Phi's": Form(
        _template(
            '{"type": "function", "function": ' + _ARGUMENTS + "}",
            around=("<|tool_call|>[", "]<|/tool_call|>"),
            between=", ",
        ),
        ("json", '<|tool_call|>[{"type": "function", "function": {"name": "', "}}]<|/tool_call|>"),
        controls=("<|tool_call|>", "<|/tool_call|>"),
    ),
    "Cohere's": Form(
        _template(_ACTION, around=("<|START_ACTION|>[\n", _BREAK + "]<|END_ACTION|>"), between="," + _BREAK),
        ("json", '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "', "}\n]<|END_ACTION|>"),
        controls=("<|START_ACTION|>", "<|END_ACTION|>"),
    ),
    "DeepSeek's": Form(
        _template(
            "<｜call▁begin｜>function<｜sep｜>{{ c.name }}\n"
            "```json\n{{ '' + c.arguments }}\n```<｜call▁end｜>",
            around=("{% if m.content is none %}<｜calls▁begin｜>", "<｜calls▁end｜>{% endif %}"),
            between=_BREAK,
        ),
        ("json", "<｜calls▁begin｜><｜call▁begin｜>function<｜sep｜>", "\n```<｜call▁end｜><｜calls▁end｜>"),
        as_text=True,
        controls=("<｜calls▁begin｜>", "<｜call▁begin｜>", "<｜sep｜>", "<｜call▁end｜>", "<｜calls▁end｜>"),
    ),
    "Qwen Coder's": Form(
        _template(_IN_XML, between=_BREAK),
        ("tags", "<tool_call>\n<function=", "</function>\n</tool_call>"),
    ),
    "GLM's": Form(_template(_IN_KEYS, between=_BREAK), ("tags", "<tool_call>", "</tool_call>")),
    "LFM's": Form(
        _template(_IN_PYTHON, around=("<|tool_call_start|>[", "]<|tool_call_end|>"), between=", "),
        ("python", "<|tool_call_start|>[", ")]<|tool_call_end|>"),
        controls=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "arguments in quotes": Form(_template(_ARGUMENTS.replace("tojson", "tojson | tojson"))),
    "calls but no tools": Form(_template(_ARGUMENTS, listed="")),
    "it raises": Form("{{ raise_exception('no') }}"),
}  # fmt: skip
LAID_OUT = [family for family, form in FORMS.items() if form.found]
# By family: MESSAGES with TOOLS, up to where the next answer begins, and the answer that is calls.
RENDERED: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("tool_renderings.json").read_text())
