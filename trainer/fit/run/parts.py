"""Split the logged loss by its targets: labels of the task, and the base's probabilities in general chat.

Their sizes differ by up to two orders of magnitude, so the mean over a mixed step depends on the mixture.
"""

from typing import Any

import torch

from trainer.fit.run.world import World


class Parts:
    """The sums and counts since the last log. They stay tensors: to read them is to wait for a GPU."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._task: Any = 0.0
        self._general: Any = 0.0
        self._counts = [0, 0]

    def add(self, inputs: dict[str, Any], total: Any) -> None:
        """Add one packed row.

        inputs: after the engine, which left the general part as `divergence`. total: the sum over all targets
        """
        general = inputs.get("divergence", 0.0)
        followed = len(inputs["top_targets"]) if "top_targets" in inputs else 0
        self._task = self._task + torch.as_tensor(total).detach() - general
        self._general = self._general + general
        self._counts[0] += len(inputs["target_positions"]) - followed
        self._counts[1] += followed

    def means(self, world: World) -> dict[str, float]:
        """Return `task_loss` and `general_loss`, each a target and if there were any; begin again at 0."""
        own = [(float(self._task), self._counts[0], float(self._general), self._counts[1])]
        task, targets, general, followed = (sum(part) for part in zip(*world.joined(own), strict=True))
        self._begin()
        means = {"task_loss": (task, targets), "general_loss": (general, followed)}
        return {name: total / count for name, (total, count) in means.items() if count}
