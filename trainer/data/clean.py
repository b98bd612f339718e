"""Turn raw rows into conversations. Drop those that are unusable or unwanted, and count them by reason.

Exact duplicates (the same roles and contents) are dropped too, before any split. The row that is kept takes
over their group labels.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from trainer.config import DataFilters
from trainer.data.conversation import Conversation, RowError, parse_row
from trainer.data.filters import check_wanted
from trainer.data.formats import RawRow
from trainer.data.language import check_languages

NO_FILTERS = DataFilters()


@dataclass(slots=True)
class Cleaned:
    """dropped: reason → number of rows. first_places: reason → place of the first such row."""

    conversations: list[Conversation] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    first_places: dict[str, str] = field(default_factory=dict)

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


def clean(rows: Iterable[RawRow], filters: DataFilters = NO_FILTERS) -> Cleaned:
    """Parse every row. Keep the usable and wanted ones in their order.

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
            conversation = parse_row(row.value, row.where.rpartition(":")[0], row.where)
            check_wanted(conversation, filters)
            place = places.setdefault(conversation.row_id, len(cleaned.conversations))
            if place < len(cleaned.conversations):
                twin = cleaned.conversations[place]
                cleaned.conversations[place] = twin.with_groups(conversation.groups)
                raise RowError("exact duplicate")
        except RowError as reason:
            cleaned.drop(str(reason), row.where)
            continue
        cleaned.conversations.append(conversation)
    return cleaned
