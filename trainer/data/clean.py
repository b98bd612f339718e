"""Turn raw rows into conversations. Drop those that are unusable or unwanted, and count them by reason.

Exact duplicates (the same roles and contents) are dropped too, before any split. The row that is kept takes
over their group labels.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from trainer.config import DataFilters
from trainer.data.conversation import AS_IT_IS, BY_QUESTION, Conversation, Reading, parse_row
from trainer.data.filters import check_wanted
from trainer.data.formats import RawRow
from trainer.data.language import check_languages
from trainer.data.shapes import RowError, ShapeError

NO_FILTERS = DataFilters()
COLUMNS_NAMED = 12


@dataclass(slots=True)
class Cleaned:
    """dropped: reason → number of rows. first_places: reason → place of the first such row.

    unread: column → number of kept rows in which it was not used. unshaped: the columns of the first row that
    has none of the known shapes.
    """

    conversations: list[Conversation] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    first_places: dict[str, str] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    unshaped: list[str] = field(default_factory=list)

    def drop(self, reason: str, where: str) -> None:
        self.dropped[reason] += 1
        self.first_places.setdefault(reason, where)

    def repaired(self) -> tuple[Counter[str], dict[str, str]]:
        """Return repair → number of kept rows that it changed, and repair → place of the first such row."""
        counts: Counter[str] = Counter()
        places: dict[str, str] = {}
        for conversation in self.conversations:
            counts.update(conversation.repaired)
            for repair in conversation.repaired:
                places.setdefault(repair, conversation.where)
        return counts, places

    def summary(self) -> str:
        """Return a phrase: `3 dropped: 2 empty turn (first a.jsonl:7), 1 no answer (first a.jsonl:9)`."""
        parts = [f"{n} {why} (first {self.first_places[why]})" for why, n in self.dropped.most_common()]
        return f"{self.dropped.total()} dropped" + (": " + ", ".join(parts) if parts else "")

    def unread_columns(self) -> str:
        """Return `category (24 rows), id (24)`, the columns that were not used; empty if there are none."""
        found = [f"{name} ({count:,} rows)" for name, count in self.unread.most_common(COLUMNS_NAMED)]
        more = len(self.unread) - len(found)
        return ", ".join(found) + (f" and {more} more" if more else "")


def clean(rows: Iterable[RawRow], filters: DataFilters = NO_FILTERS, reading: Reading = AS_IT_IS) -> Cleaned:
    """Parse every row. Keep the usable and wanted ones in their order.

    Rows without a group get that of their first question, so that it stands on one side of the split.

    Raises: DataError if the filters name a language that cannot be identified.
    """
    if filters.languages:
        check_languages(filters.languages)
    cleaned = Cleaned()
    places: dict[str, int] = {}
    for row in rows:
        try:
            if row.problem:
                raise RowError(row.problem)
            source = row.where.rpartition(":")[0]
            conversation = parse_row(row.value, source, row.where, reading, cleaned.unread)
            check_wanted(conversation, filters)
            if not conversation.groups:
                conversation = conversation.with_groups((f"{BY_QUESTION}{conversation.first_question}",))
            place = places.setdefault(conversation.row_id, len(cleaned.conversations))
            if place < len(cleaned.conversations):
                twin = cleaned.conversations[place]
                cleaned.conversations[place] = twin.with_groups(conversation.groups)
                raise RowError("exact duplicate")
        except UnicodeEncodeError:
            cleaned.drop("half a surrogate pair", row.where)
            continue
        except RowError as reason:
            if isinstance(reason, ShapeError) and not cleaned.unshaped:
                cleaned.unshaped = reason.columns
            cleaned.drop(str(reason), row.where)
            continue
        cleaned.conversations.append(conversation)
    return cleaned
