"""Turn pydantic's errors into one error that names the field."""

import re

from fastapi.exceptions import RequestValidationError

from api.errors import InvalidRequest

# Pydantic adds these names to a location, after a field that may have several types.
_UNION_TAG = re.compile(r"(constrained-)?(str|float)|(list|literal)\[.*\]|[A-Z][A-Za-z]+")


def invalid_request(error: RequestValidationError) -> InvalidRequest:
    """Return the deepest error: in a field of several types, that of the type that fits best."""
    first = max(error.errors(), key=lambda wrong: len(wrong["loc"]))
    if first["type"] == "json_invalid":
        return InvalidRequest("The body is not valid JSON.")
    names = (str(part) for part in first["loc"][1:] if not _UNION_TAG.fullmatch(str(part)))
    field = ".".join(names)
    if first["type"] == "extra_forbidden":
        message = f"{field!r} is not a field of this API."
    else:
        message = f"{field or 'The body'}: {first['msg']}."
    return InvalidRequest(message[:500], param=field[:200] or None)
