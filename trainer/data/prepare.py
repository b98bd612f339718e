"""Stage `prepare`: turn the data source into tokenised rows on disk, and report what was dropped.

The result is `artifacts/data/<hash>/`: an Arrow file each for `train`, `validation`, `test`, `general` and
`followup`, with the columns of `row_file`, and `report.json` and `report.html`. `general` holds the base's
own answers to prompts asked alone, and `followup` the same answers after a held-out conversation.
`chat_template.jinja` is what the rows were rendered with; the artifact ships it. `identity` names the
directory, so a finished data set is never made again. The rows are held in memory as text, never as tokens.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from trainer.base_model import BaseModel, load_tokenizer
from trainer.config import RunConfig
from trainer.config_data import DataConfig
from trainer.data.adapt import adapt
from trainer.data.chats import join_for_training, join_held_out
from trainer.data.contamination import check_files
from trainer.data.conversation import Conversation
from trainer.data.fill import Batch, Fill
from trainer.data.general import OwnAnswer, aim, answer_prompts, same_as_text
from trainer.data.report import Example, build_report, few_rows, told
from trainer.data.row_file import RowFile
from trainer.data.select import divide, select
from trainer.data.shapes import RowError
from trainer.data.split import Split
from trainer.data.tokenize import ChatTokenizer, Rendered, TokenRow
from trainer.data.tool_template import with_tools
from trainer.device import choose_device
from trainer.errors import DataError
from trainer.files import only_writer, read_json, whole_directory, write_json
from trainer.identity import Older, data_key, older_directory, older_line, own_directory, write_record
from trainer.progress import say

SPLITS = ("train", "validation", "test", "general", "followup")
EXAMPLES = 10  # rows of each shape that the page shows
TEMPLATE = "chat_template.jinja"
PAGE = "report.html"
# Tokenises and labels a batch for the objective.
RowsOf = Callable[[ChatTokenizer, Batch], list[Rendered]]
# Writes a page next to report.json, from its content.
WritePage = Callable[[Path, Mapping[str, Any], Sequence[Example]], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Prepared data. directory: holds the splits. report: the content of report.json."""

    directory: Path
    report: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.report["fingerprint"])

    @property
    def chat_template(self) -> str | None:
        """Return the template that the rows were rendered with; None for rows made before it was kept."""
        file = self.directory / TEMPLATE
        return file.read_bytes().decode() if file.is_file() else None

    def dataset(self, split_name: str) -> Dataset:
        """Return a split, memory-mapped."""
        return Dataset.from_file(str(self.directory / f"{split_name}.arrow"))

    def rows(self, split_name: str) -> list[TokenRow]:
        """Return a held-out side, whole in memory. Read `train` through `dataset`."""
        return [TokenRow(**row) for row in self.dataset(split_name)]


def prepare(
    config: RunConfig,
    base: BaseModel,
    artifacts: Path,
    write_page: WritePage | None = None,
    keep_older: bool = False,
    rows_of: RowsOf = ChatTokenizer.rows,
    describe: bool = False,
) -> Prepared:
    """Return the prepared data. Make it unless it exists.

    write_page: writes `report.html` next to new data. keep_older: prefer the newest data that other code or
    packages made. rows_of: the objective's. describe: print the counts of data that exists, too.
    Raises: DataError.
    """
    check_files(config.data.contamination)
    directory, key, older = _place(config, base, artifacts, keep_older)
    report = _whole_report(directory)
    if report is None:
        if older:
            say(older_line("this data was", older.differs, kept=False))
        with only_writer(directory):
            report = _whole_report(directory) or _make(config, base, directory, key, write_page, rows_of)
    elif describe:
        _describe(directory, report)
    return Prepared(directory, report)


def find_prepared(config: RunConfig, base: BaseModel, artifacts: Path, keep_older: bool) -> Prepared | None:
    """Return the prepared data if it exists. Raises: MissingError if the source does not."""
    directory, _, _ = _place(config, base, artifacts, keep_older)
    report = _whole_report(directory)
    return Prepared(directory, report) if report else None


def _place(
    config: RunConfig, base: BaseModel, artifacts: Path, keep_older: bool
) -> tuple[Path, str, Older | None]:
    """Return the directory of the data, its key, and the data that other code or packages made of it."""
    folder, key = artifacts / "data", data_key(config, base.sha256)
    older = older_directory(folder, "", key)
    return older.directory if older and keep_older else own_directory(folder, "", key), key, older


def _describe(directory: Path, report: Mapping[str, Any]) -> None:
    """Print what was printed when the data was made."""
    for line in report.get("told", [f"{count:,} {name} rows" for name, count in report["rows"].items()]):
        say(f"  {line}")
    if (directory / PAGE).is_file():
        say(f"  data report: {directory / PAGE}")


def _whole_report(directory: Path) -> dict[str, Any] | None:
    """Return the report of prepared data, or None if there is none or a split's file was cut off."""
    report = read_json(directory / "report.json")
    if report is None:
        return None
    sizes = {file.stem: file.stat().st_size for file in directory.glob("*.arrow")}
    return report if all(sizes.get(name) == size for name, size in report.get("bytes", {}).items()) else None


def _make(
    config: RunConfig,
    base: BaseModel,
    directory: Path,
    key: str,
    write_page: WritePage | None,
    rows_of: RowsOf,
) -> dict[str, Any]:
    data = config.data
    selected = select(data, config.seed)
    chat, remarks = _chat(base, data, selected.all_rows())
    remarks += adapt(selected, data, chat.template.traits)
    cleaned, parts = selected.cleaned, divide(selected, data, config.seed)
    extra, measured = _own_answers(config, base, chat)
    extra = _usable(extra, chat) if data.chats else extra
    with whole_directory(directory) as scratch:
        top = bool(data.general and data.general.top_tokens)
        files = {
            name: RowFile(scratch / f"{name}.arrow", top and name == "train", name == "test")
            for name in SPLITS
        }
        fill = Fill(chat, partial(_aimed, rows_of, extra, chat), data.max_length, cleaned)
        for name, conversations, limit in _sides(config, parts, extra):
            fill.side(name, files[name], conversations, limit)
        if not data.chats:
            files["train"].add([answer.row(chat) for answer in extra])
        files["general"].add([answer.row(chat) for answer in measured])
        if data.chats:
            files["followup"].add(_followups(measured, parts.test, chat, data.max_length))
        for file in files.values():
            file.close()
        remarks += [*fill.remarks(), *few_rows(files)]
        examples = _examples(parts.train, chat, data.max_length)
        write_record(scratch, key)
        report = build_report(data, files, selected, parts)
        report |= fill.report() | {"remarks": remarks, "told": [*told(files, selected), *remarks]}
        (scratch / TEMPLATE).write_bytes(chat.tokenizer.get_chat_template().encode())
        write_json(scratch / "report.json", report)
        if write_page:
            write_page(scratch, report, examples)
    _describe(directory, report)
    return report


def _chat(base: BaseModel, data: DataConfig, rows: Sequence[Conversation]) -> tuple[ChatTokenizer, list[str]]:
    """Return the tokenizer, and remarks on its template.

    If rows have tools, the template writes them and their calls as the API reads them.
    """
    tokenizer, last = load_tokenizer(base.directory, data.chat_template), data.thinking == "last"
    chat = ChatTokenizer(tokenizer, own_thinking_only=last)
    remarks: list[str] = []
    if not any(row.tools for row in rows):
        return chat, remarks
    if not chat.template.tool_form:
        tokenizer.chat_template = with_tools(tokenizer.get_chat_template(), not chat.template.traits.system)
        chat = ChatTokenizer(tokenizer, own_thinking_only=last)
        remarks.append(
            "this chat template does not write tools and calls as the API reads them: rows and artifact have "
            "one that does"
        )
    form = chat.template.tool_form
    beside = [row for row in rows if any(m.calls and m.content.strip() for m in row.messages)]
    if beside and form and not form.keeps_text:
        remarks.append(f"{len(beside):,} rows have text beside a call, which this chat template leaves out")
    return chat, remarks


def _sides(
    config: RunConfig, parts: Split, answers: Sequence[OwnAnswer]
) -> Iterator[tuple[str, Iterable[Conversation], int | None]]:
    """Yield the name, the conversations and the most rows of train, validation and test."""
    data = config.data
    train: Iterable[Conversation] = parts.train
    validation: Iterable[Conversation] = parts.validation
    test: Iterable[Conversation] = parts.test
    if data.chats:
        train = join_for_training(parts.train, answers, data.chats, config.seed)
        validation, test = (join_held_out(side, data.chats) for side in (parts.validation, parts.test))
    yield "train", train, data.train_rows
    yield "validation", validation, data.validation_rows
    yield "test", test, data.test_rows


def _usable(answers: Sequence[OwnAnswer], chat: ChatTokenizer) -> list[OwnAnswer]:
    """Return the answers that can stand in a conversation, and print how many cannot."""
    usable = same_as_text(answers, chat)
    if left_out := len(answers) - len(usable):
        say(f"  {left_out} of the base's {len(answers)} own answers stay out: their text has other tokens")
    return usable


def _own_answers(
    config: RunConfig, base: BaseModel, chat: ChatTokenizer
) -> tuple[list[OwnAnswer], list[OwnAnswer]]:
    """Return the base's own answers to train on and to measure on; none without `data.general`."""
    if not config.data.general:
        return [], []
    device = choose_device(config.train.device)
    return answer_prompts(config.data.general, base, chat, config.train.dtype, device, config.seed)


def _aimed(
    rows_of: RowsOf, answers: Sequence[OwnAnswer], chat: ChatTokenizer, batch: Batch
) -> list[Rendered]:
    """Return the objective's rows; those with the base's own answers follow its probabilities there."""
    return [
        replace(made, rows=[aim(row, conversation.own, answers) for row in made.rows])
        if conversation.own
        else made
        for conversation, made in zip(batch, rows_of(chat, batch), strict=True)
    ]


def _followups(
    answers: Sequence[OwnAnswer], held_out: Batch, chat: ChatTokenizer, max_length: int
) -> list[TokenRow]:
    """Return each answer after a held-out conversation, the first of those that leave room for it.

    Raises: DataError if there is none.
    """
    before = itertools.cycle(held_out)
    rows = []
    for answer in answers:
        for conversation in itertools.islice(before, len(held_out)):
            with contextlib.suppress(RowError):  # a template may refuse what comes after a conversation
                row = answer.row(chat, conversation.messages)
                if len(row.input_ids) <= max_length:
                    rows.append(row)
                    break
        else:
            raise DataError(f"no general question fits data.max_length {max_length} after a row: raise it")
    return rows


def _examples(conversations: Iterable[Conversation], chat: ChatTokenizer, max_length: int) -> list[Example]:
    """Return the first rows of each shape in train. Rows come by their hashes, so this is a random choice."""
    found: dict[str, list[Example]] = {}
    for conversation in conversations:
        examples = found.setdefault(conversation.shape, [])
        if len(examples) < EXAMPLES and chat.may_fit(conversation, max_length):
            (made,) = chat.rows([conversation])
            fitting = (row for row in made.rows if len(row.input_ids) <= max_length)
            examples += [Example(row.source, chat.runs(row), conversation.shape) for row in fitting]
    return [example for shape in sorted(found) for example in found[shape][:EXAMPLES]]
