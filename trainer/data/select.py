"""Read and clean all sources of a run, and keep held-out rows out of training.

Held-out rows of their own come from `data.validation` and `data.test`, or from the splits that a source has.
They stay as they are. A row of train that stands there too is dropped, by its conversation, its first
question or, where `data.near_duplicates` is set, its near-duplicate. So is a row of validation that stands
in test.
"""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.config_data import DataConfig, SourceConfig
from trainer.data.clean import COLUMNS_NAMED, Cleaned, clean
from trainer.data.contamination import drop_contaminated
from trainer.data.conversation import BY_QUESTION, Conversation
from trainer.data.dedup import drop_near_duplicates
from trainer.data.layout import HELD_OUT
from trainer.data.parse import Reading
from trainer.data.shapes import advice_for, mapping_for
from trainer.data.sources import Rows, names_of, read_sides
from trainer.data.split import Split, repeated, sample, shuffled, split
from trainer.errors import DataError
from trainer.progress import say


@dataclass(slots=True)
class Selected:
    """cleaned: the rows to split, and the accounts of all. own: side → its own rows, which no split makes.

    barred: file → the sides that the split may not make of its rows. sources: file → what it belongs to.
    commits: source → the commit that it had on the Hub.
    """

    cleaned: Cleaned
    own: dict[str, list[Conversation]] = field(default_factory=dict)
    barred: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)

    def weight(self, file: str) -> float:
        """Return the weight of a file's source; held-out rows have none and count once."""
        return self.sources[file].weight if file in self.sources else 1.0

    def all_rows(self) -> list[Conversation]:
        return [*self.cleaned.conversations, *(row for rows in self.own.values() for row in rows)]


def select(data: DataConfig, seed: int) -> Selected:
    """Return the usable rows. Raises: DataError if a source cannot be read or a side has none."""
    names = names_of(source.source for source in (*data.source, *data.validation, *data.test))
    selected = Selected(Cleaned())
    opened = [(source, read_sides(source.source, names, selected.commits)) for source in data.source]
    for side in reversed(HELD_OUT):
        _add_own(data, side, opened, names, selected)
    for source, sides in opened:
        _clean_source(data, source, sides, selected)
    gc.freeze()  # otherwise the collector walks these rows again and again while more are made
    held_out = [row for rows in selected.own.values() for row in rows]
    cleaned = selected.cleaned
    _sample(selected, seed)
    _drop(cleaned, data, held_out)
    if not cleaned.conversations:
        where = ", ".join(source.source for source in data.source)
        raise DataError(f"data.source {where} has no usable row: {cleaned.summary()}")
    _tell_shared_groups(cleaned.conversations, held_out)
    return selected


def divide(selected: Selected, data: DataConfig, seed: int) -> Split:
    """Return the sides: the split's, with the held-out sides' own rows, and train with its weights.

    Rows of a group that a held-out side has a row of are counted as unused. Raises: DataError.
    """
    rows, own = selected.cleaned.conversations, selected.own
    parts = split(rows, data.held_out_share, seed, selected.barred)
    for row in parts.left_out:
        selected.cleaned.leave_out(row, "in the group of a held-out row")
    return replace(
        parts,
        train=repeated(parts.train, selected.sources, seed),
        validation=shuffled([*parts.validation, *own.get("validation", ())], seed),
        test=shuffled([*parts.test, *own.get("test", ())], seed),
    )


def _add_own(
    data: DataConfig,
    side: str,
    opened: Sequence[tuple[SourceConfig, Mapping[str, Rows]]],
    names: Mapping[Path, str],
    selected: Selected,
) -> None:
    """Add a held-out side's own rows, if any: those that the configuration names, or the sources' own."""
    configured: Sequence[SourceConfig] = getattr(data, side)
    theirs = [(source, sides[side]) for source, sides in opened if side in sides]
    if configured:
        for source, _ in theirs:
            say(f"  {source.source}: its own {side} split is not read, because data.{side} is set")
        theirs = [(s, _held_out(s.source, side, names, selected.commits)) for s in configured]
    if not theirs:
        return
    rows, known = selected.cleaned.beside(), set(selected.cleaned.accounts)
    for source, found in theirs:
        clean(found, data.filters, _reading(data, source), rows)
    files = ", ".join(file for file in selected.cleaned.accounts if file not in known)
    if not rows.conversations:
        remedy = f"leave data.{side} out" if configured else "give its training rows alone as data.source"
        raise DataError(
            f"the {side} rows of {', '.join(s.source for s, _ in theirs)}: none is usable: {rows.summary()}; "
            f"correct them, or {remedy}"
        )
    before = [row for own in selected.own.values() for row in own]
    _drop(rows, data, before, only_of_those=True)
    selected.own[side] = rows.conversations
    say(f"  {side} has rows of its own: {len(rows.conversations):,} of {files}")


def _held_out(source: str, side: str, names: Mapping[Path, str], commits: dict[str, str]) -> Rows:
    """Return the rows of a source that the configuration gives to a side: its split of that name, or all."""
    sides = read_sides(source, names, commits)
    if side in sides:
        return sides[side]
    if len(sides) == 1:
        return next(iter(sides.values()))
    raise DataError(
        f"data.{side} {source} has the splits {', '.join(sides)} and none for {side}: name one of them"
    )


def _clean_source(
    data: DataConfig, source: SourceConfig, sides: Mapping[str, Rows], selected: Selected
) -> None:
    """Add the rows of one source that may be trained on, and note what holds for its files."""
    start = len(selected.cleaned.conversations)
    selected.cleaned.unshaped = []  # those of this source
    clean(sides["train"], data.filters, _reading(data, source), selected.cleaned)
    if len(selected.cleaned.conversations) == start and selected.cleaned.unshaped:
        raise DataError(_no_row(source, data, selected.cleaned))
    barred = tuple(side for side in HELD_OUT if getattr(data, side) or side in sides)
    for row in selected.cleaned.conversations[start:]:
        for file in row.files:
            selected.barred[file], selected.sources[file] = barred, source


def _reading(data: DataConfig, source: SourceConfig) -> Reading:
    columns = source.columns or data.columns
    return Reading(columns, data.roles, data.ignore_columns, data.use, data.train_on)


def _sample(selected: Selected, seed: int) -> None:
    """Leave out rows of sources with a weight under 1."""
    cleaned = selected.cleaned
    for weighted in dict.fromkeys(selected.sources.values()):
        if weighted.weight < 1:
            rows = [row for row in cleaned.conversations if selected.sources[row.files[0]] == weighted]
            kept = sample(rows, weighted.weight, seed)
            left_out = {row.row_id for row in rows} - kept
            for row in rows:
                if row.row_id in left_out:
                    cleaned.leave_out(row, f"by weight {weighted.weight:g}")
            cleaned.conversations = [row for row in cleaned.conversations if row.row_id not in left_out]


def _drop(
    cleaned: Cleaned, data: DataConfig, held_out: Sequence[Conversation], only_of_those: bool = False
) -> None:
    """Drop rows that stand in an evaluation file or in a held-out side, and near-duplicates."""
    cleaned.numbers.clear()
    if data.contamination:
        drop_contaminated(cleaned, data.contamination)
    if held_out:
        _drop_held_out(cleaned, held_out)
    if data.near_duplicates is not None and (held_out or not only_of_those):
        drop_near_duplicates(cleaned, data.near_duplicates, held_out, only_of_those)


def _drop_held_out(cleaned: Cleaned, held_out: Iterable[Conversation]) -> None:
    """Drop rows whose conversation or first question stands in a held-out side, counted by which it is."""
    ids = set()
    questions = set()
    for row in held_out:
        ids.add(row.row_id)
        questions.add(row.first_question)
    kept = []
    for row in cleaned.conversations:
        if row.row_id in ids:
            cleaned.drop("the same as a held-out row", row.where)
        elif row.first_question in questions:
            cleaned.drop("first question of a held-out row", row.where)
        else:
            kept.append(row)
    cleaned.conversations = kept


def _tell_shared_groups(rows: Iterable[Conversation], held_out: Iterable[Conversation]) -> None:
    """Print how many rows have a group that held-out rows of the data's own have, too. They stay."""
    labels = {label for row in held_out for label in row.groups if not label.startswith(BY_QUESTION)}
    if count := sum(not labels.isdisjoint(row.groups) for row in rows):
        say(f"  {count:,} rows share a group with held-out rows; they stay, because those sides are given")


def _no_row(source: SourceConfig, data: DataConfig, cleaned: Cleaned) -> str:
    """Describe a source of which no row could be read, and the mapping that would probably read them."""
    mapping = mapping_for(cleaned.unshaped)
    if len(data.source) > 1:
        mapping = f"{mapping.removeprefix('data.').replace('=', ': ', 1)} beside this source"
    advice = advice_for(cleaned.unshaped) or f"To read them, set {mapping}"
    return (
        f"data.source {source.source} has no usable row: {cleaned.summary()}. Rows have the columns "
        f"{', '.join(cleaned.unshaped[:COLUMNS_NAMED])}. {advice}. The first: "
        f"{cleaned.unshaped_row}"
    )
