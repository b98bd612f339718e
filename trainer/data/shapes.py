"""Recognise the shape of a raw row by its columns, and name the columns that it leaves unread.

ShareGPT has `conversations`, OpenAI `messages`; both may have a `system` column. Alpaca has `instruction`
and `output`, Dolly `instruction` and `response`, TRL `prompt` and `completion`, as texts or as messages. More
pairs of names are in PAIRS, and `unusual` writes rarer shapes in these. Any other pair of columns is read by
`data.columns`. A column that is null counts as absent, because readers of tables give every row the columns
of all.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config_data import ColumnsConfig
from trainer.errors import DataError

CHATS = ("conversations", "messages")  # a list under one of these is one row
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("input", "output"),
    ("query", "response"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("q", "a"),
    ("question", "response"),
    ("question", "output"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("instruction", "answer"),
    ("instruction", "completion"),
    ("problem", "solution"),
    ("inputs", "targets"),
)
SHAPES = (
    ("conversations", "ShareGPT"),
    ("messages", "OpenAI messages"),
    ("instruction", "output", "alpaca"),
    ("instruction", "response", "Dolly"),
    ("prompt", "prompt and completion"),
    ("question", "answer", "question and answer"),
    ("input", "output", "input and output"),
    ("query", "response", "query and response"),
    ("user", "assistant", "user and assistant"),
    ("human", "assistant", "user and assistant"),
    ("q", "a", "question and answer"),
    ("question", "question and answer"),
    ("instruction", "instruction and answer"),
    ("problem", "solution", "problem and solution"),
    ("inputs", "targets", "inputs and targets"),
)
PLAIN = ("text", "content", "document", "raw_content", "body")
MORE = ("input", "context", "article", "passage", "paragraph")  # belong to the question
NO_TEXTS = ("", "nan", "none", "null")  # what programs write where a cell is empty
QUESTIONS = ("question", "prompt", "query", "instruction", "problem", "input", "user", "human", "text")
ANSWERS = (
    "answer",
    "answers",
    "response",
    "output",
    "completion",
    "assistant",
    "solution",
    "target",
    "reply",
    "sql",
    "code",
)


NAME_CHARACTERS, EXAMPLE_CHARACTERS = 60, 200


class RowError(ValueError):
    """State why a row cannot be used. The text is a short reason, which the report counts."""


class ShapeError(RowError):
    """State that no shape fits a row. columns: those that it has. example: the begin of the row."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__("no messages and no known pair of question and answer")
        self.columns = [printable(str(name)) for name in row]
        self.example = printable(str(dict(row)), EXAMPLE_CHARACTERS)


def _present(value: Any) -> bool:
    """Return whether a value says anything."""
    return value not in (None, "", [], {}, False) and not is_nan(value)


@dataclass(frozen=True, slots=True)
class _Meaning:
    """holds: what the column says of the row. if_value: for which values it says that."""

    holds: str
    if_value: Callable[[Any], bool] = _present


_CALLS = _Meaning("calls of functions, and training on the text alone would teach to leave them out")
_CHOICES = _Meaning("the answers to choose from, without which the question is another")
_MEDIA = _Meaning("pictures or sounds, which a model of texts cannot see")
MEANINGS: Mapping[str, _Meaning] = {
    "weight": _Meaning("how much the row counts", lambda value: _present(value) and value != 1),
    "history": _Meaning("earlier turns, which are read only beside `instruction`"),
    "choices": _CHOICES, "options": _CHOICES,
    "tool_calls": _CALLS, "function_call": _CALLS,
    "images": _MEDIA, "image": _MEDIA, "videos": _MEDIA, "video": _MEDIA, "audios": _MEDIA, "audio": _MEDIA,
}  # fmt: skip


def printable(name: str, most: int = NAME_CHARACTERS) -> str:
    """Return a text that any file or console can hold: cut, with half surrogate pairs written out."""
    return name[:most].encode(errors="backslashreplace").decode()


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def given(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row without columns that are null or NaN."""
    return {name: value for name, value in row.items() if value is not None and not is_nan(value)}


def turns_of(row: Mapping[str, Any], columns: ColumnsConfig | None) -> tuple[list[Any], set[str]]:
    """Return the raw turns of a row without nulls, and the columns that hold them.

    Raises: ShapeError if no shape fits, RowError if one does and its content is wrong.
    """
    if columns:
        return _mapped(row, columns)
    for name in CHATS:
        if name in row:
            if not isinstance(row[name], list):
                raise RowError(f"{name} is not a list")
            return [*_system(row), *row[name]], {name, "system"}
    for question, answer in PAIRS:
        if question in row and answer in row:
            return _pair(row, question, answer)
    raise ShapeError(row)


def shape_of(used: Container[str], mapped: bool) -> str:
    """Return the name of the shape whose columns were used."""
    if mapped:
        return "data.columns"
    named = (name for *columns, name in SHAPES if all(column in used for column in columns))
    return next(named, "")


def require_read(
    names: Mapping[str, Any], used: Iterable[str], ignored: Iterable[str], place: str, where: str
) -> list[str]:
    """Return the names of what is there and was not used.

    place: `` for columns, `messages.` for the fields of a message.
    Raises: DataError if leaving one out would change what the row means.
    """
    left = []
    for name, value in names.items():
        if name in used or value is None or is_nan(value):
            continue
        meaning = MEANINGS.get(name)
        if meaning and name not in ignored and meaning.if_value(value):
            raise DataError(_refusal(name, where))
        left.append(f"{place}{name}")
    return left


def mapping_for(columns: Iterable[str]) -> str:
    """Return the `data.columns` that would probably read rows of these columns."""
    names = list(columns)
    lower = {name.lower(): name for name in names}
    question = next((lower[name] for name in QUESTIONS if name in lower), None)
    answer = next((lower[name] for name in ANSWERS if name in lower and lower[name] != question), None)
    context = f", context: {lower['context']}" if "context" in lower else ""
    return f"data.columns={{prompt: {question or 'COLUMN'}, response: {answer or 'COLUMN'}{context}}}"


def advice_for(columns: Iterable[str]) -> str | None:
    """Return what to do with rows that no mapping could read, or None if one probably can."""
    names = {name.lower() for name in columns}
    if "input_ids" in names:
        return "They are tokens of another tokenizer: give the texts that they were made of"
    if "segments" in names:
        return "`segments` are pieces of a formatted text: give `messages` with roles"
    plain = next((name for name in PLAIN if name in names), None)
    if plain is None or names & {*ANSWERS}:
        return None
    return (
        f"`{plain}` holds plain text, and answers to questions are trained here. If the texts are chats, "
        "split them into `messages`, because their markers are not known (docs/training.md lists those that "
        "are). To train on texts as they are (continued pretraining), use another program, such as TRL's "
        "SFTTrainer, and give its model as base.path"
    )


def _refusal(name: str, where: str) -> str:
    return (
        f"{where}: {name!r} holds {MEANINGS[name].holds}. Take such rows out, or leave the column out with "
        f"data.ignore_columns=[{name}]"
    )


def _mapped(row: Mapping[str, Any], columns: ColumnsConfig) -> tuple[list[Any], set[str]]:
    for name in (columns.prompt, columns.response):
        if name not in row:
            raise RowError(f"no column {name}")
    asked = [row.get(name) for name in (columns.prompt, columns.context) if name]
    thinking = row.get(columns.thinking) if columns.thinking else None
    turns = [
        *_system(row, columns.system),
        {"role": "user", "content": joined(asked)},
        {
            "role": "assistant",
            "content": _one_text(row[columns.response], columns.response),
            "reasoning_content": thinking,
        },
    ]
    return turns, {name for name in columns.model_dump().values() if name}


def _pair(row: Mapping[str, Any], question: str, answer: str) -> tuple[list[Any], set[str]]:
    used = {question, answer, "system"}
    if isinstance(row[question], list):
        answers = row[answer]
        last = answers if isinstance(answers, list) else [{"role": "assistant", "content": answers}]
        return [*_system(row), *row[question], *last], used
    turns = _system(row)
    used |= {*MORE} - {answer}
    if question == "instruction":
        used.add("history")
        history = row.get("history") or ()
        if not isinstance(history, list | tuple):
            raise RowError("history is not a list of pairs")
        for earlier in history:
            if not (isinstance(earlier, list | tuple) and len(earlier) == 2):
                raise RowError("history is not a list of pairs")
            turns += [{"role": "user", "content": earlier[0]}, {"role": "assistant", "content": earlier[1]}]
    asked = joined([row[question], *(row.get(name) for name in MORE if name != question)])
    said = _one_text(row[answer], answer)
    return [*turns, {"role": "user", "content": asked}, {"role": "assistant", "content": said}], used


def _one_text(value: Any, name: str) -> Any:
    """Return the answer of a pair, out of a list of one. Raises: RowError if there are several."""
    if not (isinstance(value, list) and value and all(isinstance(text, str) for text in value)):
        return value
    if len(value) > 1:
        raise RowError(f"{name} is a list of several texts, and which of them is the answer is not known")
    return value[0]


def joined(texts: Sequence[Any]) -> str:
    """Return the first text and those after it that say something, with a blank line between them."""
    more = [str(text) for text in texts[1:] if str(text).strip().lower() not in NO_TEXTS]
    return "\n\n".join([str(texts[0]), *more] if str(texts[0]).strip() else more)


def _system(row: Mapping[str, Any], column: str | None = "system") -> list[Any]:
    text = row.get(column) if column else None
    return [{"role": "system", "content": text}] if _present(text) else []
