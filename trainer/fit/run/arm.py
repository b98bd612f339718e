"""One arm of the sweep: what it varies, where its runs live, and what a run leaves behind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_model import BaseModel
from trainer.config import RunConfig
from trainer.files import read_json
from trainer.identity import Older, older_directory, own_directory, run_key
from trainer.objective.score import RowScore


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where an arm's runs live: a folder for each length.

    key: of all that shapes them, but code and packages. older: runs of the same key that other code made, if
    ours are still to be made or if these are kept: then they are in `directory`.
    """

    key: str
    directory: Path
    older: Older | None


def place_of(
    config: RunConfig,
    base: BaseModel,
    data_fingerprint: str,
    arm: Arm,
    artifacts: Path,
    keep_older: bool = False,
) -> Place:
    """Return the arm's place. keep_older: that of the newest runs that other code made, if there are any."""
    setting, runs = arm.setting, artifacts / "runs"
    key = run_key(config, base.sha256, data_fingerprint, setting.rank, setting.learning_rate, arm.seed)
    older = older_directory(runs, f"{arm.name}-", key)
    if older and keep_older:
        return Place(key, older.directory, older)
    own = own_directory(runs, arm.name, key)
    return Place(key, own, None if own.exists() else older)


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
