"""The rungs of a sweep. Arms train for real, on the tiny model; only their processes are left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer import base_model, identity
from trainer.base_model import BaseModel
from trainer.config import RunConfig
from trainer.config_file import load
from trainer.data.prepare import Prepared, prepare
from trainer.errors import ArmError, ConfigError
from trainer.fit.arm import Arm
from trainer.fit.run.sweep import Sweep
from trainer.fit.run.train import train
from trainer.pages.sweep import write_page


class InThisProcess:
    """Runs the arms; remembers what it was asked to run."""

    def __init__(self, config: RunConfig, artifacts: Path) -> None:
        self.config, self.artifacts = config, artifacts
        self.base: BaseModel = base_model.fetch(config.base, artifacts)
        self.prepared: Prepared = prepare(config, self.base, artifacts)
        self.ran: list[tuple[str, int | None]] = []
        self.broken: set[str] = set()

    def __call__(self, directories: Mapping[Arm, Path], steps: int | None) -> dict[Arm, str]:
        self.ran += [(arm.name, steps) for arm in directories]
        for arm in directories:
            if arm.name not in self.broken:
                train(self.config, self.base, self.prepared, arm, steps, self.artifacts)
        return {arm: "out of luck" for arm in directories if arm.name in self.broken}

    def sweep(self, keep_older: bool = False) -> tuple[Any, dict[str, Any]]:
        return Sweep(
            self.config, self.base, self.prepared, self.artifacts, self, write_page, keep_older
        ).run()


@pytest.fixture
def arms_here(config_values: dict[str, Any], tmp_path: Path) -> InThisProcess:
    config_values["sweep"] = {
        "ranks": [2, 4], "learning_rates": [1e-5, 0.03], "steps": 8, "halvings": 1,
    }  # fmt: skip
    config_values["train"].update(warmup_steps=0, save_every_steps=100)
    config_values["data"]["validation_rows"] = 8
    file = tmp_path / "halved.yaml"
    file.write_text(yaml.safe_dump(config_values))
    return InThisProcess(load(file), tmp_path)


def test_the_worse_half_stops_at_the_rung_and_nothing_finished_runs_again(arms_here: InThisProcess) -> None:
    winner, results = arms_here.sweep()
    first = [name for name, steps in arms_here.ran if steps == 4]
    second = [name for name, steps in arms_here.ran if steps == 8]
    assert len(first) == 4 and {name.split("-")[1] for name in second} == {"lr0.03"}
    assert winner.learning_rate == 0.03
    stopped = {arm["name"]: arm["stopped"] for arm in results["arms"]}
    assert stopped == {name: None if name in second else "out after 4 of 8 steps" for name in first}
    assert {s["name"]: s["steps"] for s in results["settings"]}["r2-lr1e-05"] == 4
    page = next(arms_here.artifacts.glob("sweeps/*/index.html")).read_text()
    assert "r2-lr1e-05" in page and results["reason"] in page

    arms_here.ran.clear()
    assert arms_here.sweep()[1]["settings"] == results["settings"]
    assert arms_here.ran == []


def test_trunks_stay_only_where_the_final_run_can_resume_from_them(arms_here: InThisProcess) -> None:
    winner, _ = arms_here.sweep()
    kept = {path.parents[1].name.rsplit("-", 2)[0] for path in arms_here.artifacts.glob("runs/*/*/trunk-*")}
    assert kept == {winner.name}


def test_a_seed_that_failed_leaves_the_setting_its_other_seed(arms_here: InThisProcess) -> None:
    arms_here.broken = {"r2-lr0.03-s7"}
    winner, results = arms_here.sweep()
    assert winner.rank == 4 and results["failed"] == {"r2-lr0.03-s7": "out of luck"}


def test_a_sweep_without_a_finished_arm_says_why_for_each(arms_here: InThisProcess) -> None:
    arms_here.broken = {f"r{rank}-lr{rate:g}-s7" for rank in (2, 4) for rate in (1e-5, 0.03)}
    with pytest.raises(ArmError, match="no arm finished: r2-lr1e-05-s7: out of luck; r2-lr0"):
        arms_here.sweep()


def test_arms_of_other_code_are_not_compared_in_silence(
    arms_here: InThisProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def as_made_by(trl: str) -> None:
        monkeypatch.setattr(identity, "made_by", lambda without=(): {"trl": trl})

    def older_lines() -> list[str]:
        return [line.strip() for line in capsys.readouterr().out.splitlines() if "arms were made by" in line]

    as_made_by("1.2.0")
    _, first = arms_here.sweep()
    ran = list(arms_here.ran)
    assert older_lines() == [] and "made_by_others" not in first

    as_made_by("1.3.0")
    arms_here.ran.clear()
    _, kept = arms_here.sweep(keep_older=True)
    assert arms_here.ran == [] and kept["settings"] == first["settings"]
    assert kept["made_by_others"] == {arm["name"]: "trl 1.2.0 (now 1.3.0)" for arm in first["arms"]}
    said = "4 of 4 arms were made by trl 1.2.0 (now 1.3.0): "
    assert older_lines() == [f"{said}used because of --keep-older-runs"]

    _, again = arms_here.sweep()
    assert arms_here.ran == ran and "made_by_others" not in again
    assert older_lines() == [f"{said}made again; --keep-older-runs would use what exists"]
    arms_here.sweep()
    assert older_lines() == []


def test_code_that_changes_while_a_sweep_runs_is_reported(
    arms_here: InThisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InThisProcess, "__call__", lambda *_: {})
    with pytest.raises(ArmError, match=r"left no result in .* code or its packages changed"):
        arms_here.sweep()


def test_halvings_without_steps_to_halve_are_refused(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="2 halvings need `steps` of at least 4"):
        load(config_file, ["sweep.halvings=2"])
