"""Turn the messages of answer trees, a row each, into conversations: OASST's form.

A message names its `message_id`, its `parent_id` (null for a question that begins a tree), its `role` and
its `text`. People ranked the answers to one question by `rank`. Each tree gives the conversation of its
best-ranked answers, so that no question is trained on twice.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from trainer.data.formats import RawRow
from trainer.data.unusual import rank_of

NAMES = ("message_id", "parent_id", "role", "text")
OFF_PATH = "an answer of a tree that is not on its best-ranked path"


def without_trees(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """Yield the rows; those of trees as conversations, where the first row is a message of one.

    A message that no conversation contains is yielded with the reason.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    found = chain([first], rows)
    if not (isinstance(first.value, dict) and all(name in first.value for name in NAMES)):
        yield from found
        return
    children: defaultdict[Any, list[RawRow]] = defaultdict(list)
    for row in found:
        if isinstance(row.value, dict):
            children[row.value.get("parent_id")].append(row)
        else:
            yield row
    taken: set[str] = set()
    for root in children[None]:
        path = list(_path(root, children))
        taken.update(row.where for row in path)
        yield RawRow(root.where, {"messages": [row.value for row in path]})
    for row in chain.from_iterable(children.values()):
        if row.where not in taken:
            yield RawRow(row.where, None, OFF_PATH)


def _path(root: RawRow, children: dict[Any, list[RawRow]]) -> Iterator[RawRow]:
    """Yield a question and the best-ranked answers after it, each once."""
    seen: set[Any] = set()
    node: RawRow | None = root
    while node is not None:
        yield node
        name = node.value.get("message_id")
        replies = [] if name in seen or name is None else children.get(name, [])
        seen.add(name)
        node = min(replies, key=lambda row: rank_of(row.value), default=None)
