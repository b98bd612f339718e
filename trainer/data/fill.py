"""Tokenise the conversations of a side and write the rows that fit, up to a limit.

Train gets every row. A held-out side gets one row of each conversation, so that its rows are independent:
where each answer is a row of its own, the first conversation gives its first answer, the next its second.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from trainer.data.clean import Cleaned
from trainer.data.conversation import Conversation
from trainer.data.row_file import RowFile
from trainer.data.tokenize import ChatTokenizer, Rendered, TokenRow
from trainer.errors import DataError

BATCH = 256  # rows a call of the tokenizer
Batch = Sequence[Conversation]


class Fill:
    """Fills files with rows. make: tokenises and labels a batch. cleaned: receives what was dropped."""

    def __init__(
        self, chat: ChatTokenizer, make: Callable[[Batch], list[Rendered]], max_length: int, cleaned: Cleaned
    ) -> None:
        self._chat = chat
        self._make = make
        self._max_length = max_length
        self._too_long = f"longer than {max_length} tokens"
        self._cleaned = cleaned
        self._gone: set[str] = set()  # places of dropped rows, which a weight may repeat
        self._with_controls = 0
        self._controls: Counter[str] = Counter()  # control token → conversations that contain it as text
        self._apart: Counter[str] = Counter()  # conversations whose answers are rows of their own, and these

    def side(
        self, name: str, file: RowFile, conversations: Iterable[Conversation], limit: int | None
    ) -> None:
        """Add the rows of a side that fit, up to `limit`. Drop a row that is too long; never cut it.

        Raises: DataError if no row fits.
        """
        held_out = name != "train"
        dropped: Counter[str] = Counter()
        fitting = []
        for conversation in conversations:
            if self._chat.may_fit(conversation, self._max_length):
                fitting.append(conversation)
            else:
                self._drop(self._too_long, conversation, dropped)
        batches = [fitting[start : start + BATCH] for start in range(0, len(fitting), BATCH)]
        read = 0
        for batch, rendered in _ahead(self._make, batches):
            kept: list[TokenRow] = []
            for conversation, made in zip(batch, rendered, strict=True):
                room = None if limit is None else limit - len(file) - len(kept)
                if room == 0:
                    break
                read += 1
                number = len(file) + len(kept) if held_out else None
                rows = self._fitting(conversation, made, number, dropped)[:room]
                self._cleaned.use(conversation, name, rows)
                kept += rows
            file.add(kept)
            if len(file) == limit:
                break
        over = fitting[read:]
        taken = {conversation.where for conversation in fitting[:read]} if over else set()
        for conversation in over:
            if conversation.where not in taken:  # a weight repeats rows
                self._cleaned.leave_out(conversation, f"over data.{name}_rows {limit}")
        if not len(file):
            raise DataError(self._nothing(name, dropped))

    def _fitting(
        self, conversation: Conversation, made: Rendered, number: int | None, dropped: Counter[str]
    ) -> list[TokenRow]:
        """Return the rows that are short enough. number: of the row, if the conversation gives only one."""
        if made.problem:
            self._drop(made.problem, conversation, dropped)
        self._with_controls += bool(made.controls)
        self._controls.update(made.controls)
        short = [row for row in made.rows if len(row.input_ids) <= self._max_length]
        if made.rows and not short:
            self._drop(self._too_long, conversation, dropped)
        elif len(made.rows) > 1:
            self._apart["conversations"] += 1
            self._apart["too long"] += len(made.rows) - len(short)
            short = short if number is None else [short[number % len(short)]]
            self._apart["rows"] += len(short)
        return short

    def report(self) -> dict[str, Any]:
        """Return what `report.json` says of the rows' making."""
        return {
            "control_tokens": {"rows": self._with_controls, "tokens": dict(self._controls.most_common())},
            "one_row_an_answer": {name: self._apart[name] for name in ("conversations", "rows", "too long")},
        }

    def remarks(self) -> Iterator[str]:
        """Yield what people should know of the rows, as sentences."""
        if self._apart["conversations"]:
            yield (
                f"{self._apart['conversations']:,} conversations of several answers became "
                f"{self._apart['rows']:,} rows, because earlier turns are rendered differently "
                "(in train a row an answer; on a held-out side one answer of each conversation)"
            )
        if cut := self._apart["too long"]:
            yield f"{cut:,} answers of these conversations are left out: {self._too_long}"
        if self._with_controls:
            found = ", ".join(f"{token} ({count:,})" for token, count in self._controls.most_common(5))
            yield (
                f"{self._with_controls:,} rows contain control tokens as text: {found}. They are trained as "
                "plain text; if the rows were formatted for a chat template, split them into turns"
            )

    def _drop(self, reason: str, conversation: Conversation, dropped: Counter[str]) -> None:
        dropped[reason] += 1
        for where in (conversation.where, *conversation.joined):
            if where and where not in self._gone:
                self._gone.add(where)
                self._cleaned.drop(reason, where)

    def _nothing(self, name: str, dropped: Counter[str]) -> str:
        if set(dropped) == {self._too_long}:
            return f"no row fits data.max_length {self._max_length}: raise it"
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common(3))
        return f"no row of {name} is left to use: {reasons or 'it has no conversation'}"


def _ahead(
    make: Callable[[Batch], list[Rendered]], batches: Iterable[Batch]
) -> Iterator[tuple[Batch, list[Rendered]]]:
    """Yield each batch with its rows, in order, while two threads work on the next batches.

    The tokenizer runs without the interpreter's lock, so one batch is encoded while another is rendered.
    """
    with ThreadPoolExecutor(2) as threads:
        waiting: deque[tuple[Batch, Future[list[Rendered]]]] = deque()
        for batch in batches:
            waiting.append((batch, threads.submit(make, batch)))
            if len(waiting) > 2:
                done, rows = waiting.popleft()
                yield done, rows.result()
        for done, rows in waiting:
            yield done, rows.result()
