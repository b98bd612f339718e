"""Describe one arm of a sweep: what it varies, where its runs lie, and what a finished run holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from trainer.base_model import BaseModel
from trainer.config import RunConfig
from trainer.files import read_json
from trainer.identity import Older, older_directory, own_directory, run_key
from trainer.objective.score import RowScore


@dataclass(frozen=True, slots=True)
class Setting:
    """The hyperparameters that the sweep chooses. rank: None in full fine-tuning."""

    rank: int | None
    learning_rate: float

    @property
    def name(self) -> str:
        return f"r{self.rank}-lr{self.learning_rate:g}" if self.rank else f"full-lr{self.learning_rate:g}"

    @property
    def size(self) -> int:
        """Return the rank, for an order; full fine-tuning has none, and no other size beside it."""
        return self.rank or 0


@dataclass(frozen=True, slots=True)
class Arm:
    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting.name}-s{self.seed}"


@dataclass(frozen=True, slots=True)
class Run:
    """An arm that was trained for some steps.

    adapter: a PEFT directory, or the whole model after full fine-tuning. validation: one score a row, in the
    order of the split. diverged: why the run has neither, or None. record: the content of result.json.
    """

    arm: Arm
    adapter: Path
    validation: list[RowScore]
    diverged: str | None
    record: dict[str, Any]


def arms(config: RunConfig) -> list[Arm]:
    """Return the grid rank × learning rate × seed, smallest rank first."""
    sweep = config.sweep
    return [
        Arm(Setting(rank, rate), seed)
        for rank in (sorted(set(sweep.ranks)) if sweep.ranks else [None])
        for rate in sorted(set(sweep.learning_rates))
        for seed in dict.fromkeys(sweep.seeds)
    ]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an arm's runs lie. Each length of a run has a folder in `directory`.

    key: `identity.run_key`. older: runs of the same key that other code or packages made. It is None once our
    code has begun its own, unless the older ones are kept; then `directory` is theirs.
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
    """Return where the arm's runs lie. keep_older: prefer the newest runs of other code or packages."""
    setting, runs = arm.setting, artifacts / "runs"
    key = run_key(config, base.sha256, data_fingerprint, setting.rank, setting.learning_rate, arm.seed)
    older = older_directory(runs, f"{arm.name}-", key)
    if older and keep_older:
        return Place(key, older.directory, older)
    own = own_directory(runs, arm.name, key)
    return Place(key, own, None if own.exists() else older)


def run_name(config: RunConfig, steps: int | None) -> str:
    """Return the name of a run's folder. steps: None for as long as the configuration says."""
    steps = steps or config.train.max_steps
    return f"steps-{steps}" if steps else f"epochs-{config.train.epochs:g}"


def read_run(directory: Path, arm: Arm) -> Run | None:
    """Return the run, or None if it has not finished, or if its adapter has been cut or removed since."""
    record = read_json(directory / "result.json")
    trained = directory / trained_folder(arm)
    if record is None or not (record["diverged"] or _is_whole(trained)):
        return None
    rows = record["validation"]["rows"] if record["validation"] else []
    return Run(arm, trained, [RowScore(*row) for row in rows], record["diverged"], record)


def trained_folder(arm: Arm) -> str:
    """Return the folder of a run that receives what it trained."""
    return "adapter" if arm.setting.rank else "model"


def _is_whole(trained: Path) -> bool:
    """Return whether adapter or model can be read. The headers of weights must match the files' lengths."""
    index = read_json(trained / "model.safetensors.index.json")
    names = set(index["weight_map"].values()) if isinstance(index, dict) else {"model.safetensors"}
    config = "config.json"
    if trained.name == "adapter":
        names, config = {"adapter_model.safetensors"}, "adapter_config.json"
    try:
        for name in names:
            with safe_open(trained / name, "np"):
                pass
    except (OSError, SafetensorError):
        return False
    return isinstance(read_json(trained / config), dict)
