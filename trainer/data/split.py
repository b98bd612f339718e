"""Split rows into train, validation and test by a hash of their group alone.

A row's side does not depend on the order of the input, and adding rows moves no other row unless it joins two
groups. Rows that share a group label, directly or through other rows, stay on one side. Validation and test
take one row per group, so that their rows are independent for the bootstrap.

The split is stratified by source in expectation only: from a source with g groups a held-out side gets a
share p ± sqrt(p (1 - p) / g), and the limits of `data` cut a side at random among sources. Exact quotas
would move rows between sides whenever rows are added, and rows once trained on would appear in the test.
"""

import hashlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data.conversation import BY_QUESTION, Conversation
from trainer.errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    train: list[Conversation]
    validation: list[Conversation]
    test: list[Conversation]


def split(conversations: Sequence[Conversation], held_out_share: float, seed: int) -> Split:
    """Give validation and test `held_out_share` of the groups each, by hash, and the rest to train.

    Each side has one group at least. Its order is that of hashes: a shuffle that added rows do not change.
    Raises: DataError if there are fewer than three groups.
    """
    groups = ((_place(members, seed), members) for members in _groups(conversations))
    placed = sorted(groups, key=lambda group: group[0])
    if len(placed) < 3:
        noun = "group" if len(placed) == 1 else "groups"
        raise DataError(
            f"{len(conversations)} usable rows make {len(placed)} {noun}, and each of train, validation and "
            f"test needs one: {_why_few(conversations)}"
        )
    places = [place for place, _ in placed]
    validation = max(1, bisect_left(places, held_out_share))
    test = max(validation + 1, bisect_left(places, 2 * held_out_share))
    validation, test = min(validation, len(placed) - 2), min(test, len(placed) - 1)
    ordered = [sorted(members, key=lambda c: _unit(seed + 1, c.row_id)) for _, members in placed]
    return Split(
        _shuffled([row for members in ordered[test:] for row in members], seed),
        _shuffled([members[0] for members in ordered[:validation]], seed),
        _shuffled([members[0] for members in ordered[validation:test]], seed),
    )


def _place(members: Sequence[Conversation], seed: int) -> float:
    """Return a group's place in [0, 1): the smallest of k uniform numbers, made uniform again."""
    return 1 - (1 - min(_unit(seed, c.row_id) for c in members)) ** len(members)


def _shuffled(rows: list[Conversation], seed: int) -> list[Conversation]:
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
