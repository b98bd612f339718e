"""The request fields of other packages, and which of them a schema of ours has in none of its lists."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from typing_extensions import get_type_hints, is_typeddict

from api.dialects.rules import Strict, parts_of


def unlisted(model: type[Strict], shape: Any, where: str = "") -> Iterator[str]:
    """Yield fields and types of a TypedDict, and of those inside it, that `model` neither has nor lists."""
    hints = get_type_hints(shape)
    kinds = list(_literals(hints.get("type")))
    if kinds and all(kind in model.other_types for kind in kinds):
        return
    if "type" in model.model_fields:
        own = get_args(model.model_fields["type"].annotation)
        yield from (f"{where}.type={kind}" for kind in kinds if kind not in own)
    honoured = parts_of(model)
    for name, hint in hints.items():
        if name in model.other_fields:
            continue
        if name not in honoured:
            yield f"{where}.{name}"
            continue
        for inside in _shapes(hint):
            for part in honoured[name]:
                yield from unlisted(part, inside, f"{where}.{name}")


def _shapes(hint: Any) -> Iterator[Any]:
    if is_typeddict(hint):
        yield hint
    for argument in get_args(hint):
        yield from _shapes(argument)


def _literals(hint: Any) -> Iterator[Any]:
    for argument in get_args(hint):
        if isinstance(argument, str):
            yield argument
        yield from _literals(argument)


def fields_of(file: Path, name: str) -> dict[str, Any]:
    """Return the fields of a pydantic class in a source file, with their defaults; ... where there is none.

    The file is read, not imported: importing vLLM takes many seconds.
    """
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            found = [each for each in node.body if isinstance(each, ast.AnnAssign) and not _private(each)]
            return {
                each.target.id: _default(each.value) for each in found if isinstance(each.target, ast.Name)
            }
    raise LookupError(f"{file} has no class {name}")


def _private(field: ast.AnnAssign) -> bool:
    return isinstance(field.target, ast.Name) and field.target.id.startswith("_")


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        given = {each.arg: each.value for each in value.keywords}
        value = value.args[0] if value.args else given.get("default")
    try:
        return ast.literal_eval(value) if value is not None else ...
    except ValueError:
        return ...
