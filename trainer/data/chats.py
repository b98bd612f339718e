"""Join rows of one turn into conversations, so that later turns are taught and measured.

A conversation of train has one to `turns` turns. Some of its turns are general questions with the base
model's own answers, so that the tuned model changes the subject and comes back. A held-out conversation has
`turns` turns, all from the source: its rows are independent, so it counts each turn's position fairly.
"""

import random
from collections.abc import Iterator, Sequence

from trainer.config_data import ChatsConfig
from trainer.data.conversation import Conversation, Message
from trainer.data.general import SOURCE, OwnAnswer


def join_for_training(
    rows: Sequence[Conversation], answers: Sequence[OwnAnswer], chats: ChatsConfig, seed: int
) -> Iterator[Conversation]:
    """Yield conversations until the rows are used up, each row once. The answers come again and again."""
    chance = random.Random(seed)
    left, asked = list(reversed(rows)), 0
    while left:
        turns: list[Conversation] = []
        for _ in range(chance.randint(1, chats.turns)):
            if answers and chance.random() < chats.general_share:
                turns.append(_general(answers, asked % len(answers)))
                asked += 1
            elif left and _is_single(left[-1]):
                turns.append(left.pop())
        if turns:
            yield _joined(turns)
        elif left and not _is_single(left[-1]):
            yield left.pop()


def join_held_out(rows: Sequence[Conversation], chats: ChatsConfig) -> Iterator[Conversation]:
    """Yield conversations of `turns` rows each, in the order of the rows; the last may have fewer."""
    single = [row for row in rows if _is_single(row)]
    for start in range(0, len(single), chats.turns):
        yield _joined(single[start : start + chats.turns])
    yield from (row for row in rows if not _is_single(row))


def _joined(turns: Sequence[Conversation]) -> Conversation:
    """Return one conversation; its source is that of the first turn from the data."""
    from_data = [turn for turn in turns if not turn.own]
    first = from_data[0] if from_data else turns[0]
    own = [number for turn in turns for number in turn.own or (None,)]
    return Conversation(
        tuple(message for turn in turns for message in turn.messages),
        first.source,
        where=first.where,
        own=tuple(own) if any(number is not None for number in own) else (),
        joined=tuple(turn.where for turn in from_data[1:]),
    )


def _general(answers: Sequence[OwnAnswer], number: int) -> Conversation:
    answer = answers[number]
    turns = (Message("user", answer.prompt), Message("assistant", answer.text))
    return Conversation(turns, SOURCE, own=(number,))


def _is_single(row: Conversation) -> bool:
    return not row.tools and [message.role for message in row.messages] == ["user", "assistant"]
