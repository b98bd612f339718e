"""Check clients' JSON Schemas: their size, and that the grammar library enforces everything in them.

Keywords are an allow list. The grammar library ignores some that are not on it (`multipleOf`, `allOf`) and
reads others differently from the standard (`type` next to `anyOf`). Such a schema is refused, because an
answer that silently disobeys it helps nobody. Only compiling a grammar shows its cost; engine/grammars.py
does that.
"""

import re
from typing import Any

import orjson

from api.errors import InvalidRequest

MAX_BYTES = 32 * 2**10
MAX_DEPTH = 24  # levels of JSON, which allow about half as many nested schemas
MAX_PROPERTIES = 512
MAX_ENUM_VALUES = 1024
MAX_PATTERN_CHARS = 256

_ANNOTATIONS = frozenset(
    {
        "title",
        "description",
        "default",
        "examples",
        "$schema",
        "$comment",
        "deprecated",
        "readOnly",
        "writeOnly",
    }
)
_DEFINITIONS = ("$defs", "definitions")
_RANGE = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_LENGTHS = frozenset({"minLength", "maxLength"})
_BY_TYPE = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"pattern", "format"}) | _LENGTHS,
    "integer": _RANGE,
    "number": _RANGE,
    "boolean": frozenset(),
    "null": frozenset(),
}
# A schema with one of these keywords may have no others than annotations and those named here.
_ALLOWED_WITH: dict[str, frozenset[str]] = {
    "$ref": frozenset(),
    "anyOf": frozenset(),
    "enum": frozenset({"type"}),
    "const": frozenset({"type"}),
}
_FORMATS = frozenset(
    "email date time date-time duration ipv4 ipv6 hostname uuid uri uri-reference uri-template json-pointer "
    "relative-json-pointer".split()
)
_REFERENCE = re.compile(r"#(/(\$defs|definitions)/[^/~%]+)?")
# Escapes that the library reads as JSON Schema does. Others let a quote, a backslash or a control character
# into the middle of a string; the library ignores an anchor in the middle and prints the pattern.
# Repetitions are possessive: every part can be read in one way only, and going back over a pattern that fails
# would read `[^a]` in two, so 60 of them in 2^60, with the event loop held.
_ESCAPE = r"\\[dDwsS.^$*+?()\[\]{}|/-]"
_CLASS = rf'\[\^?+(?:[^\[\]\\"\x00-\x1f]|{_ESCAPE})++\]'
_ATOM = rf'(?:[^"\\(\[^$\x00-\x1f]|{_ESCAPE}|{_CLASS}|\((?:\?:|(?!\?)))'
_PATTERN = re.compile(rf"\^?{_ATOM}*+\$?")
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def require_bounded(schema: dict[str, Any], param: str) -> None:
    """Limit the schema's size. Raises: InvalidRequest if it is too large or too deep to be handled at all."""
    if is_deep(schema):
        raise InvalidRequest(f"{param}: a schema is nested deeper than {MAX_DEPTH} levels.", param=param)
    if len(orjson.dumps(schema)) > MAX_BYTES:
        raise InvalidRequest(f"{param}: a schema has more than {MAX_BYTES} bytes.", param=param)


def is_deep(value: Any) -> bool:
    """Return whether a JSON value is nested deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value)]
    return bool(level)


def enforceable(schema: dict[str, Any], param: str, root: str = "#") -> dict[str, Any]:
    """Return the schema as the grammar library should read it, with its references relative to `root`.

    Raises: InvalidRequest naming the place and the keyword that cannot be enforced.
    """
    require_bounded(schema, param)
    return _Walk(param, root).schema(schema, "#")


class _Walk:
    """A pass over a schema that makes the copy and counts what is limited."""

    def __init__(self, param: str, root: str) -> None:
        self._param = param
        self._root = root
        self._properties = 0
        self._values = 0

    def schema(self, schema: Any, at: str) -> dict[str, Any]:
        if not isinstance(schema, dict):
            raise self._error(at, "a schema must be an object")
        kind = next((kind for kind in _ALLOWED_WITH if kind in schema), None)
        allowed = _ALLOWED_WITH[kind] | {kind} if kind else self._by_type(schema, at)
        copy: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in _DEFINITIONS and at == "#":
                copy[keyword] = self._named(value, f"{at}/{keyword}")
            elif keyword in allowed:
                copy[keyword] = self._keyword(keyword, value, schema, f"{at}/{keyword}")
            elif keyword not in _ANNOTATIONS:
                combined = f" together with {kind!r}" if kind else ""
                raise self._error(at, f"{keyword!r} cannot be enforced{combined}")
        return copy

    def _by_type(self, schema: dict[str, Any], at: str) -> frozenset[str]:
        if "type" not in schema:
            return frozenset()
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not types or not all(isinstance(type, str) and type in _BY_TYPE for type in types):
            raise self._error(at, f"'type' must be of {', '.join(_BY_TYPE)}")
        return frozenset({"type"}).union(*(_BY_TYPE[type] for type in types))

    def _keyword(self, keyword: str, value: Any, schema: dict[str, Any], at: str) -> Any:
        match keyword:
            case "$ref":
                if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
                    raise self._error(at, "a reference must be '#' or '#/$defs/NAME'")
                return self._root + value.removeprefix("#")
            case "properties":
                return self._named(value, at)
            case "required":
                known = schema.get("properties")
                known = known if isinstance(known, dict) else {}
                if not isinstance(value, list) or not all(isinstance(v, str) and v in known for v in value):
                    raise self._error(at, "must be names that are in 'properties'")
            case "anyOf" | "prefixItems":
                if not isinstance(value, list) or not value:
                    raise self._error(at, "must be a list of schemas")
                return [self.schema(part, f"{at}/{index}") for index, part in enumerate(value)]
            case "items" | "additionalProperties":
                return value if isinstance(value, bool) else self.schema(value, at)
            case "enum" | "const":
                self._check_values(value if keyword == "enum" else [value], schema, at)
            case "pattern" | "format":
                self._check_text(keyword, value, schema, at)
        return value

    def _named(self, value: Any, at: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(at, "must be an object of schemas")
        self._properties += len(value)
        if self._properties > MAX_PROPERTIES:
            raise self._error(at, f"there are more than {MAX_PROPERTIES} properties")
        return {name: self.schema(part, f"{at}/{name}") for name, part in value.items()}

    def _check_values(self, values: Any, schema: dict[str, Any], at: str) -> None:
        if not isinstance(values, list) or not values or any(isinstance(v, dict | list) for v in values):
            raise self._error(at, "values must be strings, numbers, booleans or null")
        self._values += len(values)
        if self._values > MAX_ENUM_VALUES:
            raise self._error(at, f"there are more than {MAX_ENUM_VALUES} values")
        if "type" in schema:
            self._by_type(schema, at)
            types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            if not all(any(_is_of(value, type) for type in types) for value in values):
                raise self._error(at, f"a value is not of type {types}")

    def _check_text(self, keyword: str, value: Any, schema: dict[str, Any], at: str) -> None:
        if not isinstance(value, str):
            raise self._error(at, "must be a string")
        if _LENGTHS & schema.keys() or schema.keys() >= {"pattern", "format"}:
            raise self._error(at, "only one of 'pattern', 'format' and the two lengths can be enforced")
        if keyword == "format" and value not in _FORMATS:
            raise self._error(at, f"{value!r} cannot be enforced")
        if keyword == "pattern" and (len(value) > MAX_PATTERN_CHARS or not _PATTERN.fullmatch(value)):
            raise self._error(
                at,
                f"a pattern has at most {MAX_PATTERN_CHARS} characters, '^' and '$' at its ends only, no "
                "'\"', no '(?' but '(?:', and after a backslash one of d D w s S or punctuation",
            )

    def _error(self, at: str, message: str) -> InvalidRequest:
        return InvalidRequest(f"{self._param}: {message} (at {at[:200]}).", param=self._param)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _is_of(value: Any, type: str) -> bool:
    """Return whether a JSON value has this type. In Python True is an int, in JSON it is not a number."""
    return isinstance(value, _PYTHON_TYPES[type]) and (type == "boolean" or not isinstance(value, bool))
