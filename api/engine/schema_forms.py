"""Read one JSON Schema: older spellings in today's, and what tells the members of a union apart.

Deliberately without references and limits: json_schema.py follows and counts.
"""

from collections.abc import Sequence
from typing import Any

_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_OF_OBJECTS = frozenset({"properties", "patternProperties", "additionalProperties"})
_SAY_NOTHING_OF_NAMES = frozenset({"type", "title", "description", "default", "examples", "$comment"})
_TYPES = ("object", "array", "string", "number", "boolean", "null")
_TYPE_OF = {str: "string", int: "number", bool: "boolean", type(None): "null"}


def current_spelling(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with today's keywords in place of those of draft 7, draft 4 and OpenAPI 3.0."""
    found = dict(schema)
    if isinstance(found.get("items"), list):  # a tuple; prefixItems since 2020-12
        found["prefixItems"] = found.pop("items")
        if "additionalItems" in found:
            found["items"] = found.pop("additionalItems")
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(found.get(exclusive), bool) and found.pop(exclusive) and bound in found:
            found[exclusive] = found.pop(bound)
    if found.get("unevaluatedProperties") is False and not _COMBINING & found.keys():
        del found["unevaluatedProperties"]
        found.setdefault("additionalProperties", False)
    return _named_properties(found)


def _named_properties(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace propertyNames that list the names, or have a pattern, by properties."""
    names = schema.get("propertyNames")
    if not isinstance(names, dict) or {"properties", "patternProperties"} & schema.keys():
        return schema
    limits = {name: value for name, value in names.items() if name not in _SAY_NOTHING_OF_NAMES}
    values, found = schema.get("additionalProperties", True), schema
    match limits:
        case {"enum": [*known], **rest} if not rest and all(isinstance(name, str) for name in known):
            found = {**schema, "properties": dict.fromkeys(known, values), "additionalProperties": False}
        case {"pattern": str(pattern), **rest} if not rest:
            found = {**schema, "patternProperties": {pattern: values}, "additionalProperties": False}
        case {**rest} if rest:
            return schema
    return {keyword: value for keyword, value in found.items() if keyword != "propertyNames"}


def combines(schema: dict[str, Any]) -> bool:
    """Return whether a schema adds up the properties of objects from several parts anywhere.

    Such parts must not be closed each for itself, or no object would fit them all.
    """
    pending: list[Any] = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            several = isinstance(part.get("allOf"), list) and len(part["allOf"]) > 1
            if several or (_COMBINING & part.keys() and _OF_OBJECTS & part.keys()):
                return True
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return False


def discriminating(parts: Sequence[dict[str, Any]]) -> str | None:
    """Return the property whose constants tell objects of these schemas apart, if they must have it.

    Returns "" if types or constants alone tell values apart, and None if one value may fit two schemas.
    """
    by_type: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        for type in _types(part):
            by_type.setdefault(type, []).append(part)
    found = ""
    for type, group in by_type.items():
        if len(group) == 1 or _differ([_constants(part) for part in group]):
            continue
        names = as_dict(group[0].get("properties")) if type == "object" else {}
        name = next((name for name in names if _differ([_constants_of(part, name) for part in group])), None)
        if name is None:
            return None
        found = name
    return found


def as_dict(value: Any) -> dict[str, Any]:
    """Return a JSON object, or an empty one in place of any other value."""
    return value if isinstance(value, dict) else {}


def _types(part: dict[str, Any]) -> set[str]:
    declared = part.get("type")
    if declared is None:
        constants = _constants(part)
        found = {type for type, _ in constants} if constants else set(_TYPES)
        found = {"object"} if "properties" in part else found
    else:
        names = declared if isinstance(declared, list) else [declared]
        found = {"number" if name == "integer" else str(name) for name in names}
    return found | ({"null"} if part.get("nullable") is True else set())


def _constants(part: dict[str, Any]) -> set[tuple[str, Any]] | None:
    """Return the values that a schema allows, with their types, or None if they are not a list of scalars."""
    values = [part["const"]] if "const" in part else part.get("enum")
    if not isinstance(values, list) or part.get("nullable") is True:
        return None
    if not all(type(value) in _TYPE_OF for value in values):
        return None
    return {(_TYPE_OF[type(value)], value) for value in values}


def _constants_of(part: dict[str, Any], name: str) -> set[tuple[str, Any]] | None:
    return _constants(as_dict(as_dict(part.get("properties")).get(name)))


def _differ(sets: Sequence[set[tuple[str, Any]] | None]) -> bool:
    """Return whether no value is in two of the sets. None: a set that is not known."""
    known = [values for values in sets if values is not None]
    return len(known) == len(sets) and len(set().union(*known)) == sum(map(len, known))
