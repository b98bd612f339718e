"""One arm of the sweep: what it varies, where it lives, and what it leaves behind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_model import BaseModel
from trainer.config import RunConfig, fingerprint
from trainer.files import read_json
from trainer.fit.loss import RowLoss


@dataclass(frozen=True, slots=True)
class Arm:
    rank: int
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"r{self.rank}-lr{self.learning_rate:g}-s{self.seed}"


@dataclass(frozen=True, slots=True)
class ArmResult:
    """A finished arm. adapter: a PEFT directory. validation: per row, in the split's order."""

    arm: Arm
    adapter: Path
    validation: list[RowLoss]
    record: dict[str, Any]


def arms(config: RunConfig) -> list[Arm]:
    """The grid rank × learning rate × seed, smallest rank first."""
    sweep = config.sweep
    return [
        Arm(rank, rate, seed)
        for rank in sorted(set(sweep.ranks))
        for rate in sorted(set(sweep.learning_rates))
        for seed in dict.fromkeys(sweep.seeds)
    ]


def arm_directory(
    config: RunConfig, base: BaseModel, data_fingerprint: str, arm: Arm, artifacts: Path
) -> Path:
    """`runs/<arm>-<hash>`: the hash covers all that shapes the training, so nothing is mixed up."""
    key = fingerprint(
        config.lora, config.train, base.weights_sha256, data_fingerprint,
        [arm.rank, arm.learning_rate, arm.seed],
    )  # fmt: skip
    return artifacts / "runs" / f"{arm.name}-{key[:8]}"


def read_result(directory: Path, arm: Arm) -> ArmResult | None:
    """The arm's result, or None if it has not finished."""
    record = read_json(directory / "result.json")
    if record is None:
        return None
    validation = [RowLoss(*row) for row in record["validation"]["rows"]]
    return ArmResult(arm, directory / "adapter", validation, record)
