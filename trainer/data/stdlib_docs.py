"""Make the embedded data set `stdlib-docs`: from documentation to a fixed Markdown reference card.

The input is the standard library of the interpreter that runs this. The output is one JSON row per line in
FineTome's shape (`conversations`, `source` = module, `score`) plus `group`, the labels of rows that must stay
on one side of a split. Everything in an answer can be copied from its prompt: the task is extraction and
format, not knowledge of Python. Rows differ between Python versions.

Run it as a program, because importing the whole library has side effects:
`python -m trainer.data.stdlib_docs > rows.jsonl`.
"""

import contextlib
import importlib
import inspect
import io
import json
import re
import string
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

INSTRUCTION = "Make a reference card from this documentation."
MAX_DOC_CHARS = 160
MAX_PARAMETERS = 6
MAX_SIGNATURE_CHARS = 110

# Modules that open windows or browsers, print, test, or describe this one machine.
SKIPPED = {
    "antigravity",
    "idlelib",
    "lib2to3",
    "sysconfig",
    "this",
    "tkinter",
    "turtle",
    "turtledemo",
}
# `os` is a face of these; their functions would appear twice.
ALIASES = {"nt", "posix", "posixpath", "ntpath"}

_NOT_PORTABLE = re.compile(r" at 0x|<[^>]*object|<[^>]*function|<class|/(usr|home|root|opt|tmp)/")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")


def build_rows() -> Iterator[dict[str, Any]]:
    """Yield the rows in module order, each object once."""
    seen: dict[int, Any] = {}  # holds the objects: a bound method is made anew, and its id used again
    for name in sorted(sys.stdlib_module_names - SKIPPED - ALIASES):
        module = None if name.startswith("_") else _import_quietly(name)
        if module is None:
            continue
        for qualified, owner, obj in _public_callables(module):
            if id(obj) in seen:
                continue
            seen[id(obj)] = obj
            row = make_row(qualified, owner, obj)
            if row is not None:
                yield row


def make_row(qualified: str, owner: str, obj: Any) -> dict[str, Any] | None:
    """Return a row for a documented callable, or None if no exact card can be made of it.

    qualified: the dotted name, `module.Class.method`. owner: `module.Class` or `module.function`.
    """
    try:
        signature = inspect.signature(obj)
        doc = inspect.getdoc(obj)
    except Exception:  # C functions raise ValueError, TypeError and, in curses, AttributeError
        return None
    if not isinstance(doc, str):  # some `__doc__` are descriptors
        return None
    parameters = [p for p in signature.parameters.values() if p.name not in {"self", "cls"}]
    shown = qualified + str(
        signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    )
    text = _trim(doc, qualified.rpartition(".")[2])
    if text is None or len(parameters) > MAX_PARAMETERS or len(shown) > MAX_SIGNATURE_CHARS:
        return None
    if not text.startswith(tuple(string.ascii_uppercase)) or first_sentence(text)[-1] not in ".!?":
        return None
    if _NOT_PORTABLE.search(shown) or _NOT_PORTABLE.search(text):
        return None
    if sys.prefix in shown or sys.executable in shown:  # the default of platform.architecture
        return None
    summary = first_sentence(text)
    bare = shown[len(qualified.rpartition(".")[0]) + 1 :]
    return {
        "conversations": [
            {"from": "human", "value": f"{INSTRUCTION}\n\n{shown}\n\n{text}"},
            {"from": "gpt", "value": render_card(qualified, summary, shown, parameters)},
        ],
        "source": qualified.partition(".")[0],
        "score": float(min(5, 1 + len(parameters))),
        # Near twins such as pwd.getpwnam and spwd.getspnam share a summary or a bare signature; a
        # bare `close()` says nothing and would make one group of half the library.
        "group": [f"owner:{owner}", f"summary:{_loosely(summary)}"]
        + ([f"bare:{bare}"] if parameters else []),
    }


def render_card(qualified: str, summary: str, shown: str, parameters: list[inspect.Parameter]) -> str:
    """Return the card: title, first sentence, signature block, and a line for each parameter."""
    lines = [f"### {qualified}", summary, "", "```python", shown, "```", ""]
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            lines.append(f"- `*{p.name}`: any number")
        elif p.kind is p.VAR_KEYWORD:
            lines.append(f"- `**{p.name}`: any number")
        elif p.default is p.empty:
            lines.append(f"- `{p.name}`: required")
        else:
            lines.append(f"- `{p.name}={p.default!r}`: optional")
    return "\n".join(lines if parameters else [*lines, "No parameters."])


def first_sentence(text: str) -> str:
    """Return the first sentence of the first paragraph, on one line."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return _SENTENCE_END.split(paragraph, maxsplit=1)[0]


def _trim(doc: str, bare_name: str) -> str | None:
    """Return whole leading paragraphs within MAX_DOC_CHARS, without a repeated signature line."""
    paragraphs = [p.strip() for p in doc.split("\n\n") if p.strip()]
    if paragraphs and re.match(rf"(\w+\.)*{re.escape(bare_name)}\(", paragraphs[0]):
        paragraphs = paragraphs[1:]
    kept: list[str] = []
    for paragraph in paragraphs:
        if sum(map(len, kept)) + len(paragraph) > MAX_DOC_CHARS:
            break
        kept.append(paragraph)
    text = "\n\n".join(kept)
    return text if len(text) >= 20 and text.isascii() and "```" not in text else None


def _loosely(summary: str) -> str:
    """Return the summary without case, digits and punctuation, so that near-equal ones are one group."""
    return " ".join(re.findall(r"[a-z]+", summary.lower()))


def _import_quietly(name: str) -> ModuleType | None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return importlib.import_module(name)
        except BaseException:  # a module for another platform may raise anything, SystemExit too
            return None


def _public_callables(module: ModuleType) -> Iterator[tuple[str, str, Any]]:
    """Yield (qualified name, owner, object) of the functions, classes and methods defined here."""
    for name, obj in sorted(vars(module).items()):
        if name.startswith("_") or not callable(obj) or getattr(obj, "__module__", None) != module.__name__:
            continue
        owner = f"{module.__name__}.{name}"
        yield owner, owner, obj
        if inspect.isclass(obj):
            for method_name, method in sorted(vars(obj).items()):
                if not method_name.startswith("_") and inspect.isroutine(method):
                    bound = getattr(obj, method_name, None)
                    if bound is not None and getattr(method, "__doc__", None):
                        yield f"{owner}.{method_name}", owner, bound


def main() -> None:
    warnings.simplefilter("ignore")
    for row in build_rows():
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
