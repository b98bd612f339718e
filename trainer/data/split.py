"""Split rows into train, validation and test by a hash of their group alone.

A row's side does not depend on the order of the input, and adding rows moves no other row unless it joins two
groups. Rows that share a group label, directly or through other rows, stay on one side. Validation and test
take one row per group, so that their rows are independent for the bootstrap.

The split is stratified by source in expectation only: from a source with g groups a held-out side gets a
share p ± sqrt(p (1 - p) / g), and the limits of `data` cut a side at random among sources. Exact quotas
would move rows between sides whenever rows are added, and rows once trained on would appear in the test.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data.conversation import Conversation
from trainer.errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    train: list[Conversation]
    validation: list[Conversation]
    test: list[Conversation]


def split(conversations: Sequence[Conversation], held_out_share: float, seed: int) -> Split:
    """Give validation and test `held_out_share` of the groups each, by hash, and the rest to train.

    Each side is in the order of its hashes: a shuffle that added rows do not change.
    Raises: DataError if a side would be empty.
    """
    sides: dict[str, list[tuple[float, Conversation]]] = defaultdict(list)
    for members in _groups(conversations):
        ordered = sorted(((_unit(seed + 1, c.row_id), c) for c in members), key=lambda x: x[0])
        # The smallest of k uniform numbers is not uniform; the power makes it so again.
        place = 1 - (1 - min(_unit(seed, c.row_id) for c in members)) ** len(members)
        if place < held_out_share:
            sides["validation"].append(ordered[0])
        elif place < 2 * held_out_share:
            sides["test"].append(ordered[0])
        else:
            sides["train"].extend(ordered)
    pick = {name: [c for _, c in sorted(side, key=lambda x: x[0])] for name, side in sides.items()}
    for side in ("train", "validation", "test"):
        if side not in pick:
            raise DataError(
                f"{len(conversations)} usable rows leave the {side} side empty at a held-out share "
                f"of {held_out_share}: add rows or raise data.held_out_share"
            )
    return Split(pick["train"], pick["validation"], pick["test"])


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
