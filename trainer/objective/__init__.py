"""Define what training optimises, and the score by which its results are compared and gated.

An objective is a module of this package with the names of `Objective`, and a line in `objective_of`.
Its score has a name, a unit and a direction, which page, card and console take from it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from datasets import Dataset

from trainer.config import RunConfig
from trainer.data.conversation import Conversation
from trainer.data.tokenize import ChatTokenizer, Rendered, TokenRow
from trainer.engines import Engine
from trainer.objective import sft
from trainer.objective.score import Measure, RowScore


class Objective(Protocol):
    """METHOD: a phrase for the model card. SCORE: compares runs, and models at the gate. HITS: the share of
    rows that a model gets right.
    """

    NAME: str
    METHOD: str
    SCORE: Measure
    HITS: Measure

    def rows(self, chat: ChatTokenizer, conversations: Sequence[Conversation]) -> list[Rendered]:
        """Tokenise and label a batch of conversations, in their order. One may become several rows."""

    def pack(self, rows: Dataset, length: int, together: bool = True) -> Dataset:
        """Join prepared rows into the examples that a step takes, each of up to `length` tokens.

        together: False for a base that would let them see each other; then each row is an example.
        """

    def collate(self, packed: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Turn one example into tensors.

        `labels` is one of them: the Trainer divides a step's loss by how many labels are not IGNORED.
        """

    def loss(self, engine: Engine, model: Any, inputs: dict[str, Any], counted: Any) -> Any:
        """Return an example's part of the step's loss. counted: the labels of all the step's examples."""

    def scores(self, model: Any, rows: Sequence[TokenRow], pad_id: int) -> list[RowScore]:
        """Score rows under a model, in their order, each with the scores of its answers in `turns`."""


def objective_of(config: RunConfig) -> Objective:
    """Return the objective that a configuration trains for: `sft`, the only one."""
    return sft
