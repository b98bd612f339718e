"""How a step's forward and backward pass is computed: `plain`, `compiled` or `unsloth`, each a module."""

from pathlib import Path
from typing import Any, Protocol

from trainer.config import TrainConfig
from trainer.config_lora import LoraConfig


class Engine(Protocol):
    def load(
        self,
        base: Path,
        settings: TrainConfig,
        lora: LoraConfig | None,
        rank: int | None,
        seed: int,
        device: str,
    ) -> Any:
        """Return the base, frozen, with an adapter of `rank`.

        Its first weights are those of `lora.adapter`, or `seed` alone decides them. Without `lora` return the
        base in fp32, all of it to be trained.
        """

    def compute_loss(self, model: Any, inputs: dict[str, Any], target_tokens: Any) -> Any:
        """Return the sum of NLL over the targets of one packed row, over `target_tokens`.

        inputs: as `trainer.objective.sft.collate` makes them. Only `plain` reads `top_targets`.
        """
