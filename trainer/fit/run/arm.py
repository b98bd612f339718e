"""One arm of the sweep: what it varies, where its runs live, and what a run leaves behind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_model import BaseModel
from trainer.config import RunConfig, fingerprint
from trainer.files import read_json
from trainer.objective.score import RowScore

# What does not change the weights that an arm has after a given step.
NOT_HASHED = {"epochs", "max_steps", "logging_steps", "trackers", "shard_base"}


@dataclass(frozen=True, slots=True)
class Setting:
    """What the sweep chooses."""

    rank: int
    learning_rate: float

    @property
    def name(self) -> str:
        return f"r{self.rank}-lr{self.learning_rate:g}"


@dataclass(frozen=True, slots=True)
class Arm:
    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting.name}-s{self.seed}"


@dataclass(frozen=True, slots=True)
class Run:
    """An arm trained for some steps. adapter: a PEFT directory. validation: in the split's order.

    diverged: why there is neither, or None.
    """

    arm: Arm
    adapter: Path
    validation: list[RowScore]
    diverged: str | None
    record: dict[str, Any]


def arms(config: RunConfig) -> list[Arm]:
    """The grid rank × learning rate × seed, smallest rank first."""
    sweep = config.sweep
    return [
        Arm(Setting(rank, rate), seed)
        for rank in sorted(set(sweep.ranks))
        for rate in sorted(set(sweep.learning_rates))
        for seed in dict.fromkeys(sweep.seeds)
    ]


def arm_directory(
    config: RunConfig, base: BaseModel, data_fingerprint: str, arm: Arm, artifacts: Path
) -> Path:
    """`runs/<arm>-<hash>`: the hash covers all that shapes the training, so nothing is mixed up."""
    key = fingerprint(
        config.lora, config.train.model_dump(mode="json", exclude=NOT_HASHED),
        base.weights_sha256, data_fingerprint, arm.name,
    )  # fmt: skip
    return artifacts / "runs" / f"{arm.name}-{key[:8]}"


def run_name(config: RunConfig, steps: int | None) -> str:
    """The folder of a run inside its arm's; steps: None for as long as the configuration says."""
    steps = steps or config.train.max_steps
    return f"steps-{steps}" if steps else f"epochs-{config.train.epochs:g}"


def read_run(directory: Path, arm: Arm) -> Run | None:
    """The finished run, or None if it has not finished."""
    record = read_json(directory / "result.json")
    if record is None:
        return None
    rows = record["validation"]["rows"] if record["validation"] else []
    return Run(arm, directory / "adapter", [RowScore(*row) for row in rows], record["diverged"], record)
