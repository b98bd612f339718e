"""Turn raw rows into conversations. Drop those that are unusable or unwanted, and count them by reason.

Exact duplicates (the same roles and contents) are dropped too, before any split. The row that is kept takes
over their group labels.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trainer.config_data import DataFilters
from trainer.data.conversation import BY_QUESTION, Conversation, file_of
from trainer.data.filters import check_wanted
from trainer.data.formats import RawRow
from trainer.data.language import check_languages
from trainer.data.parse import AS_IT_IS, Reading, parse_row
from trainer.data.shapes import RowError, ShapeError
from trainer.data.tokenize import IGNORED, TokenRow
from trainer.data.trees import without_trees

NO_FILTERS = DataFilters()
COLUMNS_NAMED = 12
# One row never ends the run; tests/trainer/test_hostile_rows.py finds the values that come here.
UNFORESEEN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(slots=True)
class Account:
    """What became of the rows of one file, or of one split of the Hub.

    dropped: reason → rows. unread: column → kept rows in which it was not used. used: side → rows in it.
    unused: reason → usable rows on no side. target_tokens: side → tokens that are trained or measured.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    target_tokens: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Cleaned:
    """accounts: file → its account. first_places: reason → place of the first row dropped for it.

    unshaped, unshaped_row: columns and begin of the first row that has none of the known shapes. numbers: row
    id → number of the conversation, by which duplicates are found.
    """

    conversations: list[Conversation] = field(default_factory=list)
    accounts: dict[str, Account] = field(default_factory=dict)
    first_places: dict[str, str] = field(default_factory=dict)
    unshaped: list[str] = field(default_factory=list)
    unshaped_row: str = ""
    numbers: dict[str, int] = field(default_factory=dict)

    @property
    def dropped(self) -> Counter[str]:
        """Return reason → number of rows, over all files."""
        return sum((account.dropped for account in self.accounts.values()), Counter())

    @property
    def unread(self) -> Counter[str]:
        """Return column → number of kept rows in which it was not used, over all files."""
        return sum((account.unread for account in self.accounts.values()), Counter())

    @property
    def unused(self) -> Counter[str]:
        """Return reason → number of usable rows that are on no side, over all files."""
        return sum((account.unused for account in self.accounts.values()), Counter())

    def account(self, where: str) -> Account:
        """Return the account of the file of a place."""
        return self.accounts.setdefault(file_of(where), Account())

    def beside(self) -> "Cleaned":
        """Return an empty one with the same accounts, for rows that are kept apart from these."""
        return Cleaned(accounts=self.accounts, first_places=self.first_places)

    def drop(self, reason: str, where: str) -> None:
        self.account(where).dropped[reason] += 1
        self.first_places.setdefault(reason, where)

    def use(self, conversation: Conversation, side: str, rows: Sequence[TokenRow]) -> None:
        """Count a conversation that has rows in a side; its target tokens count for its first file."""
        if not (rows and conversation.where):
            return
        for file in conversation.files:
            self.accounts[file].used[side] += 1
        tokens = sum(len(row.labels) - row.labels.count(IGNORED) for row in rows)
        self.account(conversation.where).target_tokens[side] += tokens

    def leave_out(self, conversation: Conversation, reason: str) -> None:
        """Count the rows of a usable conversation that is on no side."""
        for file in conversation.files:
            self.accounts[file].unused[reason] += 1

    def summary(self) -> str:
        """Return a phrase: `3 dropped: 2 empty turn (first a.jsonl:7), 1 no answer (first a.jsonl:9)`."""
        parts = [f"{n:,} {why} (first {self.first_places[why]})" for why, n in self.dropped.most_common()]
        return f"{self.dropped.total():,} dropped" + (": " + ", ".join(parts) if parts else "")

    def unread_columns(self) -> str:
        """Return `category (24 rows), id (24)`, the columns that were not used; empty if there are none."""
        found = [
            f"{name or 'one without a name'} ({count:,} rows)"
            for name, count in self.unread.most_common(COLUMNS_NAMED)
        ]
        more = len(self.unread) - len(found)
        return ", ".join(found) + (f" and {more} more" if more else "")


def repairs(conversations: Iterable[Conversation]) -> tuple[Counter[str], dict[str, str]]:
    """Return repair → number of rows that it changed, and repair → place of the first such row."""
    counts: Counter[str] = Counter()
    places: dict[str, str] = {}
    for conversation in conversations:
        counts.update(conversation.repaired)
        for repair in conversation.repaired:
            places.setdefault(repair, conversation.where)
    return counts, places


def clean(
    rows: Iterable[RawRow],
    filters: DataFilters = NO_FILTERS,
    reading: Reading = AS_IT_IS,
    before: Cleaned | None = None,
) -> Cleaned:
    """Parse every row. Keep the usable and wanted ones in their order, after those of `before`.

    Rows without a group get that of their first question, so that it stands on one side of the split.
    Raises: DataError if the filters name a language that cannot be identified.
    """
    if filters.languages:
        check_languages(filters.languages)
    cleaned = before or Cleaned()
    for row in without_trees(rows):
        account = cleaned.account(row.where)
        account.read += 1
        try:
            if row.problem:
                raise RowError(row.problem)
            conversation = parse_row(row.value, file_of(row.where), row.where, reading, account.unread)
            check_wanted(conversation, filters)
            if not conversation.groups:
                conversation = conversation.with_groups((f"{BY_QUESTION}{conversation.first_question}",))
            place = cleaned.numbers.setdefault(conversation.row_id, len(cleaned.conversations))
            if place < len(cleaned.conversations):
                twin = cleaned.conversations[place]
                cleaned.conversations[place] = twin.with_groups(conversation.groups)
                raise RowError("exact duplicate")
        except UnicodeEncodeError:
            cleaned.drop("half a surrogate pair", row.where)
            continue
        except RowError as reason:
            if isinstance(reason, ShapeError) and not cleaned.unshaped:
                cleaned.unshaped, cleaned.unshaped_row = reason.columns, reason.example
            cleaned.drop(str(reason), row.where)
            continue
        except UNFORESEEN as error:
            cleaned.drop(f"cannot be read ({type(error).__name__})", row.where)
            continue
        cleaned.conversations.append(conversation)
        account.unread.update(f"an earlier `{name}` of the same object" for name in row.twice)
    return cleaned
