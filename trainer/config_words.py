"""Describe wrong settings in one sentence each: the setting, what was expected, and the value.

The rules are pydantic's, from `config`; the words are ours, so that a user need not know pydantic.
"""

import difflib
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from trainer.config import RunConfig

CLOSE = 0.7  # of difflib's ratio: `max_step` is close to `max_steps`, `rank` is not close to `roles`
LONGEST_VALUE = 60

# Each constraint kind of pydantic that `config` uses; {} holds what the error's context names, and the
# value.
EXPECTED = {
    "greater_than_equal": "a number of at least {ge}",
    "greater_than": "a number above {gt}",
    "less_than_equal": "a number of at most {le}",
    "less_than": "a number below {lt}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text; put it in quotes",
    "string_unicode": "a text without half surrogate pairs",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "path_type": "a path",
    "literal_error": "{expected}",
    "tuple_type": "a list, such as [{value}]",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "dict_type": "keys with values, such as {{a: b}}",
    "model_type": "a section with settings of its own",
}
Place = tuple[str | int, ...]


def problems(error: ValidationError) -> str:
    """Return a sentence for every wrong value, but not for what only follows from another.

    A list that is too short because of its wrong items is such a consequence.
    """
    found = error.errors(include_url=False)
    places = {e["loc"] for e in found}
    return "; ".join(
        _problem(e)
        for e in found
        if not any(len(other) > len(e["loc"]) and other[: len(e["loc"])] == e["loc"] for other in places)
    )


def short(value: Any) -> str:
    """Return a value as YAML writes it, cut to LONGEST_VALUE, in characters that can be printed."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _problem(error: Mapping[str, Any]) -> str:
    place: Place = tuple(error["loc"])
    name = ".".join(map(str, place))
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{name}: {_unknown(place)}"
    if kind == "missing" and isinstance(place[-1], int):
        return f"{'.'.join(map(str, place[:-1]))}: expected a list of more than {place[-1]}"
    if kind == "missing":
        return f"{name}: expected a value, because it has no default"
    if kind == "value_error":
        reason = str(error["ctx"]["error"])
        return f"{name}: {reason}" if name else reason
    value = short(error["input"])
    expected = (
        EXPECTED[kind].format(value=value, **error.get("ctx", {})) if kind in EXPECTED else error["msg"]
    )
    return f"{name}: expected {expected}, got {value}"


def _unknown(place: Place) -> str:
    """Describe a setting that does not exist: where its name belongs, or which name is meant."""
    *above, key = map(str, place)
    known = list(_settings(RunConfig))
    here = [names[-1] for names in known if _same_section(names[:-1], above)]
    if homes := [names for names in known if names[-1] == key]:
        where = " or ".join(".".join(names[:-1]) or "the top level" for names in homes)
        return f"no such setting here; {key} belongs under {where}"
    if near := difflib.get_close_matches(key, here, 1, CLOSE):
        return f"no such setting; did you mean {near[0]}?"
    if near := difflib.get_close_matches(key, [names[-1] for names in known], 1, CLOSE):
        home = next(names for names in known if names[-1] == near[0])
        return f"no such setting; did you mean {'.'.join(home)}?"
    return f"no such setting; {'.'.join(above) or 'the top level'} has {', '.join(here)}"


def _same_section(names: Sequence[str], above: Sequence[str]) -> bool:
    """Return whether a section is the one that a place lies in; a place in a list has a number more."""
    return list(names) == [name for name in above if not name.isdecimal()]


def _settings(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the names that lead to every setting, sections included."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        for inner in _models(field.annotation):
            yield from _settings(inner, (*above, name))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a type may hold, such as BenchmarkConfig in a tuple of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)
