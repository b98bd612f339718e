"""Check clients' JSON Schemas: their size, and that the grammar library enforces everything in them.

In: a schema as pydantic, zod, OpenAPI or an MCP tool writes it. Out: the same schema as llguidance reads it:
annotations and unknown keywords are dropped, older spellings are replaced, and a target of a reference is
copied once. The library refuses the keywords that it does not know, without saying where; this module names
the place. It does not compile anything: engine/grammars.py does that.
"""

import re
from typing import Any, NamedTuple
from urllib.parse import unquote

import orjson

from api.engine.schema_forms import as_dict, combines, current_spelling, discriminating
from api.errors import InvalidRequest

MAX_BYTES = 32 * 2**10
MAX_DEPTH = 24  # levels of JSON, which allow about half as many nested schemas
MAX_SCHEMAS = 2048  # with those that references repeat
MAX_PROPERTIES = 512
MAX_ENUM_VALUES = 1024
MAX_PATTERN_CHARS = 1024

_ONE_SCHEMA = frozenset({"items", "additionalProperties"})
_SCHEMAS = frozenset({"anyOf", "allOf", "prefixItems"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties"})
_VALUES = frozenset(
    "type const enum required minItems maxItems minLength maxLength minProperties maxProperties "
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()
)
_UNENFORCEABLE = frozenset(
    "uniqueItems not if then else contains minContains maxContains dependentRequired dependentSchemas "
    "dependencies propertyNames unevaluatedItems unevaluatedProperties $dynamicRef $recursiveRef".split()
)
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "propertyNames": (True, {}),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
}
# Formats that the library knows. JSON Schema calls every other format an annotation.
_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
_TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
# Automata cannot look around or back. Neither can the library's regular expressions.
_LOOKS_AROUND = re.compile(r"\(\?<?[=!]|\\[1-9]|\\k<")


class Enforceable(NamedTuple):
    """schema: for the grammar library. whole: it says all that the client's schema says."""

    schema: dict[str, Any]
    whole: bool


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


def enforceable(schema: dict[str, Any], param: str, root: str = "#", *, strict: bool = True) -> Enforceable:
    """Return the schema as the grammar library should read it, with its references relative to `root`.

    strict: refuse what the library cannot enforce, instead of leaving it out.
    Raises: InvalidRequest naming the place and the keyword that cannot be enforced.
    """
    require_bounded(schema, param)
    return _Walk(schema, param, root, strict).whole()


class _Walk:
    """A pass over a schema that makes the copy and counts what is limited."""

    def __init__(self, schema: dict[str, Any], param: str, root: str, strict: bool) -> None:
        self._schema = schema
        self._param = param
        self._root = root
        self._strict = strict
        self._closes = not combines(schema)
        self._left_out = False
        self._targets: dict[int, str] = {}  # the name of each schema that a reference names, by its identity
        self._pending: list[tuple[str, Any, str]] = []
        self._schemas = self._properties = self._values = 0

    def whole(self) -> Enforceable:
        copy = self._copy(self._schema, "#")
        definitions = {}
        while self._pending:
            name, target, at = self._pending.pop()
            definitions[name] = self._copy(target, at)
        return Enforceable({**copy, "$defs": definitions} if definitions else copy, not self._left_out)

    def _copy(self, schema: Any, at: str) -> Any:
        self._schemas += 1
        if self._schemas > MAX_SCHEMAS:
            raise self._error(at, f"there are more than {MAX_SCHEMAS} schemas")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise self._error(at, "a schema must be an object")
        if isinstance(schema.get("propertyNames"), dict):
            schema = {**schema, "propertyNames": self._resolved(schema["propertyNames"], at)}
        schema = current_spelling(schema)
        self._require_type(schema, at)
        copy: dict[str, Any] = {}
        for keyword, value in schema.items():
            self._keyword(copy, keyword, value, schema, f"{at}/{keyword}")
        self._close(copy)
        if schema.get("nullable") is True:  # OpenAPI 3.0
            return {"anyOf": [copy, {"type": "null"}]}
        return copy

    def _keyword(
        self, copy: dict[str, Any], keyword: str, value: Any, schema: dict[str, Any], at: str
    ) -> None:
        """Add a keyword of `schema` to its copy, unless it is an annotation."""
        if keyword in _ONE_SCHEMA:
            copy[keyword] = self._copy(value, at)
        elif keyword in _SCHEMAS:
            copy[keyword] = [self._copy(part, f"{at}/{i}") for i, part in enumerate(self._list(value, at))]
        elif keyword in _NAMED_SCHEMAS:
            copy[keyword] = self._named(value, at)
        elif keyword == "$ref":
            copy[keyword] = self._reference(value, at)
        elif keyword == "oneOf" and "anyOf" not in schema:
            copy["anyOf"] = self._one_of(self._list(value, at), at)
        elif keyword == "oneOf":
            self._cannot(at, "'oneOf' together with 'anyOf'")
        elif keyword in ("pattern", "format"):
            if keyword == self._enforced_text(schema, at):
                copy[keyword] = value
        elif keyword in _VALUES:
            copy[keyword] = self._counted(keyword, value, at)
        elif keyword in _UNENFORCEABLE and value not in _WITHOUT_EFFECT.get(keyword, ()):
            self._cannot(at, f"{keyword!r}")

    def _require_type(self, schema: dict[str, Any], at: str) -> None:
        types = schema.get("type", [])
        types = types if isinstance(types, list) else [types]
        if ("type" in schema and not types) or not all(isinstance(t, str) and t in _TYPES for t in types):
            raise self._error(at, f"'type' must be of {', '.join(sorted(_TYPES))}")

    def _close(self, copy: dict[str, Any]) -> None:
        """Allow an object only the properties that it names: small models invent others without end."""
        properties = copy.get("properties")
        if properties is None:
            return
        copy.setdefault("type", "object")
        if self._closes and all(name in properties for name in copy.get("required", ())):
            copy.setdefault("additionalProperties", False)

    def _reference(self, value: Any, at: str) -> str:
        target = self._target(value, at)
        if id(target) not in self._targets:
            name = self._targets[id(target)] = str(len(self._targets))
            self._pending.append((name, target, value))
        return f"{self._root}/$defs/{self._targets[id(target)]}"

    def _target(self, pointer: Any, at: str) -> Any:
        """Return the part of the client's schema that a reference names."""
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise self._error(at, "a reference must be within the schema: '#' or '#/$defs/NAME'")
        target: Any = self._schema
        for part in pointer.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and name.isdecimal() and int(name[:4]) < len(target):
                target = target[int(name[:4])]
            elif isinstance(target, dict) and name in target:
                target = target[name]
            else:
                raise self._error(at, f"there is no {pointer[:100]!r}")
        return target

    def _one_of(self, members: list[Any], at: str) -> list[Any]:
        """Return the members of oneOf for anyOf, which is the same if no value can fit two of them."""
        parts = [self._resolved(member, at) for member in members]
        name = discriminating(parts)
        if name is None:
            self._cannot(at, "'oneOf' whose members do not differ in their type or in a constant")
        found = [self._copy(member, f"{at}/{index}") for index, member in enumerate(members)]
        for part, member in zip(parts, found, strict=True):
            required = part.get("required")
            if name in as_dict(part.get("properties")) and not (
                isinstance(required, list) and name in required
            ):
                member["required"] = [*member.get("required", ()), name]
        return found

    def _resolved(self, schema: Any, at: str) -> dict[str, Any]:
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            schema = self._target(schema["$ref"], at)
        return as_dict(schema)

    def _enforced_text(self, schema: dict[str, Any], at: str) -> str:
        """Return which of pattern and format is enforced: the pattern, unless an automaton cannot read it."""
        pattern, format = schema.get("pattern", ""), schema.get("format")
        if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARS:
            raise self._error(at, f"a pattern is a string of at most {MAX_PATTERN_CHARS} characters")
        if pattern and not _LOOKS_AROUND.search(pattern):
            return "pattern"
        if isinstance(format, str) and format in _FORMATS:
            return "format"
        if pattern:
            self._cannot(at, "a pattern that looks around or back")
        return ""

    def _named(self, value: Any, at: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(at, "must be an object of schemas")
        self._properties += len(value)
        if self._properties > MAX_PROPERTIES:
            raise self._error(at, f"there are more than {MAX_PROPERTIES} properties")
        return {name: self._copy(part, f"{at}/{name}") for name, part in value.items()}

    def _list(self, value: Any, at: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._error(at, "must be a list that is not empty")
        return value

    def _counted(self, keyword: str, value: Any, at: str) -> Any:
        if keyword == "enum":
            self._values += len(self._list(value, at))
            if self._values > MAX_ENUM_VALUES:
                raise self._error(at, f"there are more than {MAX_ENUM_VALUES} values")
        elif keyword == "required":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise self._error(at, "must be a list of names")
        return value

    def _cannot(self, at: str, what: str) -> None:
        """Leave out something that cannot be enforced. Raises: InvalidRequest if the schema is strict."""
        self._left_out = True
        if self._strict:
            way_out = (
                "With 'strict': false it is left out, the complete answer is checked, and 'schema_error' "
                "says what is wrong with it."
            )
            raise self._error(at, f"{what} cannot be enforced", way_out)

    def _error(self, at: str, message: str, way_out: str = "") -> InvalidRequest:
        text = f"{self._param}: {message} (at {at[:200]}). {way_out}"
        return InvalidRequest(text.rstrip(), param=self._param)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
