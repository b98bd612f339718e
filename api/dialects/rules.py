"""The rule for the fields of a request: each is honoured, ignored or refused.

A schema's own fields are honoured. Beside them a class of a schema lists the other fields that clients send:

- `Ignored`: leaving it out changes nothing that a client could notice;
- `Refused`: without it the client would get something else than it asked for.

`apply` runs over the parsed JSON before it is validated. It removes what is ignored, and every `null`, which
means the same as no field. A field that is in no list is refused with the nearest known name.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Final, get_args

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from api.errors import InvalidRequest

MAX_VALUES = 2**15  # in a body
NESTED = (dict, list)  # orjson makes no subclasses of them
_PLAIN = frozenset((str, int, float, bool))
MAX_NAME_CHARS = 64  # of an unknown field: longer names are near to none
LIKE = 0.6  # of 1; `max_token` and `max_tokens` have 0.9
_LEFT_OUT: Final = object()
Where = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Ignored:
    """why: what makes leaving it out harmless."""

    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """why: the reason and, where there is one, the way out. unless: values that ask for nothing."""

    why: str
    unless: tuple[Any, ...] = ()

    def allows(self, value: Any) -> bool:
        """Return whether the value asks for nothing, so that the field can be ignored."""
        # Python takes False for 0, and JSON does not.
        return any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.unless
        )


Table = Mapping[str, Ignored | Refused]


class Strict(BaseModel):
    """A part of a request: unknown fields and other types are refused, not converted.

    other_fields: known fields that are not honoured. other_types: the same for whole objects, by their
    `type`; an object that is ignored is left out of its list.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    other_fields: ClassVar[Table] = {}
    other_types: ClassVar[Table] = {}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        found = handler(core)
        if handler.mode == "validation":
            _document(cls, handler.resolve_ref_schema(found))
        return found


def apply(model: type[Strict], body: Any) -> tuple[Any, frozenset[str]]:
    """Return what is left of `body` to validate, and the names of what was ignored.

    A name is dotted and has no index: `messages.cache_control`. All come from the tables, so they are few.
    Raises: InvalidRequest.
    """
    ignored: set[str] = set()
    rest = _object(model, body, (), ignored) if isinstance(body, dict) else body
    return rest, frozenset(ignored)


def _object(model: type[Strict], given: dict[str, Any], where: Where, ignored: set[str]) -> dict[str, Any]:
    honoured, objects = _plan(model)
    if given.keys() <= honoured and _PLAIN.issuperset(map(type, given.values())):  # nearly every message
        return given
    kept = {}
    for name, value in given.items():
        if name not in honoured:
            _judge_other(model, name, value, where, ignored)
            continue
        if name in objects and type(value) in NESTED:
            value = _inside(objects[name], value, (*where, name), ignored)
        if value is not None and value is not _LEFT_OUT:
            kept[name] = value
    return kept


def _judge_other(model: type[Strict], name: str, value: Any, where: Where, ignored: set[str]) -> None:
    """Raises: InvalidRequest for a field that is refused or that nobody knows."""
    rule = model.other_fields.get(name)
    if rule is None:
        raise _unknown(name, where, model)
    if value is not None:
        _require_ignored(rule, value, (*where, name), ignored)


def _inside(models: tuple[type[Strict], ...], value: Any, where: Where, ignored: set[str]) -> Any:
    """Apply the rule to an object, or to those in a list; the schema judges other values."""
    if isinstance(value, dict):
        return _one_of(models, value, where, ignored)
    if len(value) > MAX_VALUES or _all_plain(models, value):
        return value
    judged = [
        _one_of(models, item, (*where, number), ignored) if isinstance(item, dict) else item
        for number, item in enumerate(value)
    ]
    return [item for item in judged if item is not _LEFT_OUT]


def _all_plain(models: tuple[type[Strict], ...], items: list[Any]) -> bool:
    """Return whether a list has objects with nothing to ignore, to refuse or to look into, as most messages.

    No step of it is Python's for each item: a body may have thousands of messages.
    """
    if len(models) > 1 or models[0].other_types or not {dict}.issuperset(map(type, items)):
        return False
    honoured, _ = _plan(models[0])
    values = chain.from_iterable(map(dict.values, items))
    return honoured.issuperset(chain.from_iterable(items)) and _PLAIN.issuperset(map(type, values))


def _one_of(models: tuple[type[Strict], ...], value: dict[str, Any], where: Where, ignored: set[str]) -> Any:
    kind = value.get("type")
    if isinstance(kind, str):
        for model in models:
            if (rule := model.other_types.get(kind)) is not None:
                _require_ignored(rule, value, where, ignored, kind)
                return _LEFT_OUT
    fitting = models[0] if len(models) == 1 else _of_type(models, kind)
    return _object(fitting, value, where, ignored) if fitting else value


def _require_ignored(
    rule: Ignored | Refused, value: Any, where: Where, ignored: set[str], kind: str = ""
) -> None:
    """Note what is ignored. kind: the type of an object that is left out. Raises: InvalidRequest."""
    if isinstance(rule, Refused) and not rule.allows(value):
        shown = ".".join(map(str, where))
        what = f"an object of type {kind!r}. {rule.why}" if kind else rule.why
        raise InvalidRequest(f"{shown}: {what}", param=shown)
    names = [part for part in where if isinstance(part, str)]
    ignored.add(".".join([*names, kind] if kind else names))


def _unknown(name: str, where: Where, model: type[Strict]) -> InvalidRequest:
    shown = ".".join(map(str, (*where, name)))
    near = _nearest(name, model) if len(name) <= MAX_NAME_CHARS else None
    hint = f" Did you mean {near!r}?" if near else ""
    return InvalidRequest(f"{shown[:200]!r} is not a field of this API.{hint}", param=shown[:200])


def _nearest(name: str, model: type[Strict]) -> str | None:
    """Return the known name that shares most pairs of letters (Dice's coefficient), if it shares enough."""
    pairs = _pairs(name)
    likeness, near = max(
        (2 * len(pairs & known) / (len(pairs) + len(known)), each) for each, known in _known_pairs(model)
    )
    return near if likeness > LIKE else None


@functools.cache
def _known_pairs(model: type[Strict]) -> list[tuple[str, frozenset[str]]]:
    return [(name, _pairs(name)) for name in (*parts_of(model), *model.other_fields)]


def _pairs(name: str) -> frozenset[str]:
    return frozenset(map("".join, zip(f"^{name}", f"{name}$", strict=True)))


@functools.cache
def parts_of(model: type[Strict]) -> dict[str, tuple[type[Strict], ...]]:
    """Return the honoured fields by the names that clients use, each with the classes of its objects."""
    return {
        field.alias or name: tuple(dict.fromkeys(_classes(field.annotation)))
        for name, field in model.model_fields.items()
    }


@functools.cache
def _plan(model: type[Strict]) -> tuple[frozenset[str], dict[str, tuple[type[Strict], ...]]]:
    """Return the honoured fields, and those of them that may hold objects with fields of their own."""
    parts = parts_of(model)
    return frozenset(parts), {name: models for name, models in parts.items() if models}


def _classes(annotation: Any) -> Iterator[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)


def _of_type(models: tuple[type[Strict], ...], kind: Any) -> type[Strict] | None:
    for model in models:
        if "type" in model.model_fields and kind in get_args(model.model_fields["type"].annotation):
            return model
    return None


def _document(model: type[Strict], schema: dict[str, Any]) -> None:
    """Say in the JSON Schema of a class what `apply` accepts: null for absent, and the other fields."""
    fields = schema["properties"]
    for name, field in fields.items():
        if name not in schema.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
            fields[name] = {"anyOf": [field, {"type": "null"}]}
        if any(map(_left_out, parts_of(model).get(name, ()))):
            _count_what_is_left(fields[name])
    for name, rule in model.other_fields.items():
        if isinstance(rule, Ignored):
            fields[name] = {"description": f"Ignored: {rule.why}"}
        else:
            fields[name] = {"enum": [None, *rule.unless], "description": f"Refused: {rule.why}"}
    left_out = _left_out(model)
    if left_out:
        own = dict(schema)
        schema.clear()
        kinds = {"type": "object", "properties": {"type": {"enum": left_out}}, "required": ["type"]}
        schema["anyOf"] = [own, {**kinds, "description": "Left out."}]


def _left_out(model: type[Strict]) -> list[str]:
    """Return the types of objects that are taken out of a list before it is validated."""
    return [kind for kind, rule in model.other_types.items() if isinstance(rule, Ignored)]


def _count_what_is_left(field: dict[str, Any]) -> None:
    """Describe the most entries of a list in words: JSON Schema would count those that are left out, too."""
    for each in (field, *field.get("anyOf", ())):
        if most := each.pop("maxItems", None):
            each["description"] = f"At most {most} entries, without those that are left out."
