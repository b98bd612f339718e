"""Split rows into train, validation and test by a hash of their group alone.

A row's side does not depend on the order of the input, and adding rows moves no other row unless it joins two
groups. Rows that share a group label, directly or through other rows, stay on one side. Validation and test
take one row per group, so that their rows are independent for the bootstrap.

The split is stratified by source in expectation only: from a source with g groups a held-out side gets a
share p ± sqrt(p (1 - p) / g), and the limits of `data` cut a side at random among sources. Exact quotas
would move rows between sides whenever rows are added, and rows once trained on would appear in the test.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from trainer.config_data import SourceConfig
from trainer.data.conversation import BY_QUESTION, Conversation
from trainer.data.layout import HELD_OUT
from trainer.errors import DataError

NONE_BARRED: Mapping[str, Collection[str]] = {}


@dataclass(frozen=True, slots=True)
class Split:
    """left_out: the other rows of groups that a held-out side has a row of."""

    train: list[Conversation]
    validation: list[Conversation]
    test: list[Conversation]
    left_out: list[Conversation]


@dataclass(frozen=True, slots=True)
class _Group:
    """place: in [0, 1). barred: the held-out sides that its rows may not go to."""

    place: float
    members: list[Conversation]
    barred: frozenset[str]


def split(
    conversations: Sequence[Conversation],
    held_out_share: float,
    seed: int,
    barred: Mapping[str, Collection[str]] = NONE_BARRED,
) -> Split:
    """Give validation and test `held_out_share` of the groups each, by hash, and the rest to train.

    Each side has one group at least. Its order is that of hashes: a shuffle that added rows do not change.
    barred: file → held-out sides that its rows do not go to. A side that all are barred from stays empty.
    Raises: DataError if there are fewer groups than sides.
    """
    groups = (_group(members, seed, barred) for members in _groups(conversations))
    left = sorted(groups, key=lambda group: group.place)
    made = [side for side in HELD_OUT if not left or any(side not in group.barred for group in left)]
    if len(left) <= len(made):
        raise DataError(_too_few(conversations, len(left), made))
    held: dict[str, list[_Group]] = {side: [] for side in HELD_OUT}
    for side in made:
        sides = HELD_OUT[: HELD_OUT.index(side) + 1]
        may = [group for group in left if side not in group.barred]
        below = [
            group for group in may if group.place < held_out_share * sum(s not in group.barred for s in sides)
        ]
        others = 1 + len(made[made.index(side) + 1 :])  # each needs a group, too
        held[side] = (below or may[:1])[: len(left) - others]
        taken = set(map(id, held[side]))
        left = [group for group in left if id(group) not in taken]
    members = {side: [shuffled(group.members, seed) for group in groups] for side, groups in held.items()}
    return Split(
        shuffled([row for group in left for row in group.members], seed),
        shuffled([rows[0] for rows in members["validation"]], seed),
        shuffled([rows[0] for rows in members["test"]], seed),
        [row for side in HELD_OUT for rows in members[side] for row in rows[1:]],
    )


def _group(members: list[Conversation], seed: int, barred: Mapping[str, Collection[str]]) -> _Group:
    sides = frozenset(side for row in members for file in row.files for side in barred.get(file, ()))
    return _Group(_place(members, seed), members, sides)


def _too_few(conversations: Sequence[Conversation], groups: int, made: Sequence[str]) -> str:
    *first, last = ("train", *made)
    sides = f"each of {', '.join(first)} and {last}" if first else last
    return (
        f"{len(conversations)} usable rows make {groups} group{'' if groups == 1 else 's'}, and {sides} "
        f"needs one: {_why_few(conversations)}"
    )


def sample(rows: Sequence[Conversation], share: float, seed: int) -> set[str]:
    """Return the ids of a share of the rows, one at least: those of the smallest hashes."""
    ids = sorted((row.row_id for row in rows), key=lambda row_id: _unit(seed + 2, row_id))
    return set(ids[: max(1, round(share * len(ids)))])


def repeated(rows: list[Conversation], sources: Mapping[str, SourceConfig], seed: int) -> list[Conversation]:
    """Return the rows, with those of sources of a weight over 1 again. 2.5: twice, and half once more.

    sources: file → its source.
    """
    more: list[Conversation] = []
    for source in dict.fromkeys(sources.values()):
        if source.weight > 1:
            theirs = [row for row in rows if sources[row.files[0]] == source]
            whole, share = divmod(source.weight, 1)
            more += theirs * (int(whole) - 1)
            once_more = sample(theirs, share, seed) if share and theirs else set()
            more += [row for row in theirs if row.row_id in once_more]
    return [*rows, *more]


def _place(members: Sequence[Conversation], seed: int) -> float:
    """Return a group's place in [0, 1): the smallest of k uniform numbers, made uniform again."""
    return 1 - (1 - min(_unit(seed, c.row_id) for c in members)) ** len(members)


def shuffled(rows: Sequence[Conversation], seed: int) -> list[Conversation]:
    """Return the rows in the order of their hashes."""
    return sorted(rows, key=lambda c: _unit(seed + 1, c.row_id))


def _why_few(conversations: Sequence[Conversation]) -> str:
    labels = Counter(label for c in conversations for label in c.groups if not label.startswith(BY_QUESTION))
    if not labels:
        return "add rows"
    name, rows = labels.most_common(1)[0]
    return (
        f"{rows} rows have the group {name!r}; set data.ignore_columns=[group], or add rows of other groups"
    )


def _groups(conversations: Sequence[Conversation]) -> list[list[Conversation]]:
    """Return the connected components over shared labels (union by smallest index)."""
    parent = list(range(len(conversations)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[str, int] = {}
    for i, conversation in enumerate(conversations):
        for label in conversation.groups:
            parent[find(i)] = find(first_with.setdefault(label, i))
    members: dict[int, list[Conversation]] = defaultdict(list)
    for i, conversation in enumerate(conversations):
        members[find(i)].append(conversation)
    return list(members.values())


def _unit(seed: int, row_id: str) -> float:
    """Return a number in [0, 1) that the seed and the row determine."""
    digest = hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
