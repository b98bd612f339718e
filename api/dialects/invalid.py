"""Turn pydantic's errors into one error, which names the field, the rule and the size of the value."""

import re
from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from api.errors import InvalidRequest

MAX_SHOWN_CHARS = 40  # of a value; longer ones are described
# Pydantic adds these names to a location, after a field that may have several types.
_UNION_TAG = re.compile(r"(constrained-)?(str|float|int|bool)|(list|dict|literal)\[.*\]|[A-Z][A-Za-z]+")
# The type that a value should have, by the name of pydantic's error.
_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
# The rule by the error that says it is broken; the context has the rule's numbers.
_RULES = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "may have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "may have at most {max_length} entries",
}


class FieldError(ValueError):
    """A rule between fields is broken. field: its path inside the object that is being validated."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def invalid_request(error: RequestValidationError) -> InvalidRequest:
    """Return the error of the type that fits best, where a field may have several, in a sentence of ours."""
    errors = [each for each in error.errors() if each["type"] != "none_required"]  # null means no field
    first = errors[0] if len(errors) == 1 else max(errors, key=_fit)
    path = _path(first)
    if first["type"] == "extra_forbidden":
        message = f"{path!r} is not a field of this API."
    else:
        same = [each for each in errors if _is_type(each) and _path(each) == path] if _is_type(first) else []
        message = f"{path or 'The body'}: {_sentence(first, [_expected(each) for each in same])}."
    return InvalidRequest(message[:500], param=path[:200] or None)


def _fit(error: dict[str, Any]) -> tuple[bool, int, Sequence[int]]:
    """Rank an error: a broken rule before a wrong type, then the deepest, then that of the last entry."""
    location = error["loc"]
    return not _is_type(error), len(location), [part for part in location if isinstance(part, int)]


def _is_type(error: dict[str, Any]) -> bool:
    """Return whether the value is of another type, also where one of several words is wanted."""
    return error["type"] in _TYPES or (
        error["type"] == "literal_error" and not isinstance(error["input"], str)
    )


def _expected(error: dict[str, Any]) -> str:
    return _TYPES.get(error["type"]) or str(error["ctx"]["expected"])


def _path(error: dict[str, Any]) -> str:
    names = [str(part) for part in error["loc"][1:] if not _UNION_TAG.fullmatch(str(part))]
    broken = error.get("ctx", {}).get("error")
    return ".".join([*names, broken.field] if isinstance(broken, FieldError) else names)


def _sentence(error: dict[str, Any], types: Sequence[str]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if _is_type(error):
        return f"must be {' or '.join(dict.fromkeys(types))}, not {_shown(value)}"
    if kind in _RULES:
        limits = {name: _whole(limit) for name, limit in context.items()}
        rule = _RULES[kind].format_map(limits)
        rule = rule.replace(" 1 entries", " 1 entry").replace(" 1 characters", " 1 character")
        return f"is empty and {rule}" if value == [] else f"{rule}, not {_size(value) or _shown(value)}"
    return str(context.get("error") or error["msg"])


def _whole(limit: Any) -> Any:
    """Return 2.0 as 2."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _size(value: Any) -> str:
    """Return how long a list or an object is, or a string that is not shown."""
    if isinstance(value, list | dict):
        return str(len(value))
    return f"{len(value)} characters" if isinstance(value, str) and len(value) > MAX_SHOWN_CHARS else ""


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _size(value) or repr(value)[:MAX_SHOWN_CHARS]
