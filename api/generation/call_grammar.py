"""Write the rules of the grammar library for a call in the form of the model's own template.

Arguments that are a JSON object obey all of their schema. In tags and in Python's notation only plain schemas
can be said: properties of one type, without patterns. Calls with other schemas are in Hermes' form, which is
read from any model.
"""

import json
import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from api.engine.template_form import Written
from api.engine.tool_prompt import HERMES

# The white space of JSON in chat templates.
_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY_TEXT = r"/(?s:.{%s,%s})/ & ~/(?s:.*)%s(?s:.*)/"
_IN_QUOTES = r"/'([^'\\\n]|\\['\\nrt])*'/"
_PLAIN = frozenset({"type", "properties", "required", "additionalProperties", "$defs"})
_TYPES = frozenset({"integer", "number", "boolean", "array", "object", "null"})

Literal = Callable[[str], str]  # the rule of a text of the template's


def call_rules(rule: str, name: str, schema: dict[str, Any], written: Written, literal: Literal) -> list[str]:
    """Return the rule of a call of the function `name`, and those that it needs.

    schema: of its arguments, as the grammar library reads it. rule: the name of the rule to make.
    """
    plain = written.style != "json" and _is_plain(schema, written)
    if written.style != "json" and not plain:
        written = HERMES
    begin, tail = literal(written.begin + name + written.middle), literal(written.tail)
    if written.style == "json":
        return [f"{rule}: {begin} {rule}_arguments {tail}", f"{rule}_arguments: {_json(schema)}"]
    rules, said = [], []
    for number, (key, property) in enumerate(schema.get("properties", {}).items()):
        value, part = f"{rule}_{number}", json.dumps(key, ensure_ascii=False)
        if written.style == "tags":
            rules += _tagged(value, property, written)
            parts = [literal(written.key), part, literal(written.value), value, literal(written.after)]
        else:
            rules.append(f"{value}: {_in_python(property)}")
            parts = [json.dumps(f"{key}="), value]
        rules.append(f"{rule}_argument_{number}: {' '.join(filter(None, parts))}")
        said.append((f"{rule}_argument_{number}", key in schema.get("required", ())))
    separator = "" if written.style == "tags" else '", "'
    return [f"{rule}: {begin} {_in_order(said, separator)} {tail}", *rules]


def _is_plain(schema: dict[str, Any], written: Written) -> bool:
    """Return whether the parser reads what obeys the schema back as it was meant."""
    properties = schema.get("properties", {})
    if not schema.keys() <= _PLAIN or schema.get("additionalProperties"):
        return False
    if written.style == "python" and not all(
        k.isidentifier() and not keyword.iskeyword(k) for k in properties
    ):
        return False
    if not all(key.strip() == key and key and not re.search(r"[<>\n]", key) for key in properties):
        return False
    return all(_is_plain_value(value, written) for value in properties.values())


def _is_plain_value(schema: Any, written: Written) -> bool:
    if not isinstance(schema, dict) or "$ref" in orjson.dumps(schema).decode():
        return False
    if options := _options(schema):
        return all(isinstance(each, str) and _fits(each, written) for each in options)
    if schema.get("type") == "string":
        sizes = {"minLength", "maxLength"} if written.style == "tags" else set()
        return schema.keys() <= {"type", *sizes}
    return schema.get("type") in _TYPES


def _fits(option: str, written: Written) -> bool:
    """Return whether a constant text is read back as it is."""
    if written.style == "python":
        return bool(option)
    return bool(option) and option.strip() == option and written.after.strip() not in option


def _options(schema: dict[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def _tagged(rule: str, schema: dict[str, Any], written: Written) -> list[str]:
    if options := _options(schema):
        return [f"{rule}: {' | '.join(json.dumps(each, ensure_ascii=False) for each in options)}"]
    if schema["type"] != "string":
        return [f"{rule}: {_json(schema)}"]
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    closing = re.escape(written.after.strip()).replace("/", r"\/")
    # Names of terminals are in upper case.
    return [f"{rule}: {rule.upper()}", f"{rule.upper()}: {_ANY_TEXT % (least, most, closing)}"]


def _in_python(schema: dict[str, Any]) -> str:
    if options := _options(schema):
        return " | ".join(json.dumps(_quoted(each), ensure_ascii=False) for each in options)
    match schema["type"]:
        case "string":
            return _IN_QUOTES
        case "boolean":
            return '"True" | "False"'
        case "null":
            return '"None"'
    return _json(schema)


def _quoted(text: str) -> str:
    """Return a text in Python's quotes."""
    escaped = text.replace("\\", r"\\").replace("'", r"\'").replace("\n", r"\n").replace("\r", r"\r")
    return f"'{escaped}'"


def _in_order(said: Sequence[tuple[str, bool]], separator: str) -> str:
    """Return the rule of arguments, the required ones first, those that may be left out behind them."""
    required = [argument for argument, is_required in said if is_required]
    optional = [argument for argument, is_required in said if not is_required]
    between = f" {separator} "

    def following(arguments: Sequence[str]) -> str:
        return " ".join(f"({separator} {argument})?" for argument in arguments)

    if required:
        return f"{between.join(required)} {following(optional)}"
    starts = [f"{each} {following(optional[number + 1 :])}" for number, each in enumerate(optional)]
    return f"({' | '.join(starts)})?" if starts else ""


def _json(schema: dict[str, Any]) -> str:
    return f"%json {orjson.dumps(schema | {'x-guidance': _SPACED}).decode()}"
