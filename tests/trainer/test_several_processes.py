"""One arm trained by two processes over gloo, started as a user starts them, against one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.trainer import PAUSING
from trainer.cli import main

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TORCHRUN = (*TWO, "-m", "trainer")
SHARDS = ("--set", "train.shard_base=true")


@pytest.fixture
def shared_rows(config_values: dict[str, Any], tmp_path: Path) -> Path:
    """Four packed rows a step, best checkpoints, and an epoch that is no whole number of steps."""
    config_values["train"].update(tokens_per_step=384, rows_per_step=4, restore_best=True, max_steps=12)
    config_values["data"]["validation_rows"] = 5
    config_values["sweep"] = {"ranks": [2], "learning_rates": [0.01], "steps": 6}
    file = tmp_path / "shared.yaml"
    file.write_text(yaml.safe_dump(config_values))
    return file


def line(verb: str, config: Path, artifacts: Path, *more: str) -> list[str]:
    return [verb, "--config", str(config), "--artifacts", str(artifacts), *more]


def trainer(*arguments: str, start: tuple[str, ...] = ("-m", "trainer")) -> None:
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def result(artifacts: Path, run: str = "steps-12") -> Any:
    (file,) = artifacts.glob(f"runs/*/{run}/result.json")
    return json.loads(file.read_text())


def same(one: Any, other: Any) -> None:
    """Sums in another order differ in the last digits, and nothing else may."""
    for curve in ("train_curve", "validation_curve"):
        assert [step for step, _ in one[curve]] == [step for step, _ in other[curve]]
        assert [x for _, x in one[curve]] == pytest.approx([x for _, x in other[curve]], rel=1e-4)
    rows, others = one["validation"]["rows"], other["validation"]["rows"]
    assert [r[0] for r in rows] == pytest.approx([r[0] for r in others], rel=1e-4)
    assert [r[1:] for r in rows] == [r[1:] for r in others]


@pytest.mark.parametrize("base", [(), SHARDS], ids=["whole", "shared out"])
def test_processes_that_were_killed_leave_a_run_that_one_can_resume(
    shared_rows: Path, tmp_path: Path, base: tuple[str, ...]
) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    more = ("--rank", "2", "--set", "train.max_steps=24", "--set", "train.restore_best=false")
    trainer(*line("arm", shared_rows, alone, *more))
    both = subprocess.Popen(
        [sys.executable, *TWO, str(PAUSING), *line("arm", shared_rows, killed, *more, *base)],
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    while not list(killed.glob("runs/*/*/checkpoint-*/files.json")):
        assert both.poll() is None, "ended before its first checkpoint"
        time.sleep(0.01)
    workers = Path(f"/proc/{both.pid}/task/{both.pid}/children").read_text().split()
    for pid in (both.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    assert both.wait() == -signal.SIGKILL
    trainer(*line("arm", shared_rows, killed, *more))
    one, other = result(alone, "steps-24"), result(killed, "steps-24")
    assert other["resumed_from"] and other["processes"] == 1
    same(one, other)


def test_a_run_whose_last_training_is_shared_ships_one_artifact(shared_rows: Path, tmp_path: Path) -> None:
    """One process trained the sweep's arm, two continue from its trunk: as if one had done all of it."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    trainer(*line("arm", shared_rows, alone, "--rank", "2"))
    trainer(*line("run", shared_rows, shared, "--processes", "2"))
    one, other = result(alone), result(shared)
    assert (other["resumed_from"], other["processes"]) == ("trunk-5", 2)
    assert result(shared, "steps-6")["processes"] == 1
    same({**one, "validation_curve": []}, {**other, "validation_curve": []})
    assert (
        len(list((shared / "models").glob("*/manifest.json"))) == 2
    )  # the artifact's, and through `current`


def test_a_base_that_is_shared_out_gives_the_same_losses_and_adapter(
    shared_rows: Path, tmp_path: Path
) -> None:
    """In the sweep's arms and in the last training; with one validation row, so that one process has none."""
    alone, whole, shared = tmp_path / "alone", tmp_path / "whole", tmp_path / "shared"
    more = ("--set", "data.validation_rows=1")
    trainer(*line("arm", shared_rows, alone, "--rank", "2", *more))
    trainer(*line("arm", shared_rows, whole, "--rank", "2", *more), start=TORCHRUN)
    trainer(*line("train", shared_rows, shared, "--processes", "2", *more, *SHARDS))
    one, other = result(alone), result(shared)
    assert (other["resumed_from"], other["processes"]) == ("trunk-5", 2)
    assert result(shared, "steps-6")["processes"] == 2
    same({**one, "validation_curve": []}, {**other, "validation_curve": []})
    files = [next(at.glob("runs/*/steps-12/adapter/adapter_model.safetensors")) for at in (whole, shared)]
    assert files[0].parent.parent.parent.name == files[1].parent.parent.parent.name, "another run"
    assert files[0].read_bytes() == files[1].read_bytes()


HELD = """
import sys
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
from trainer.config_file import load
from trainer.engines import plain
from trainer.fit.run.world import World

world = World("cpu")
config = load(Path(sys.argv[1]), ["train.shard_base=true"])
model = plain.load(config.base.path, config.train, config.lora, 2, 7, "cpu")
layers = [p for p in model.get_base_model().model.layers.parameters() if not p.requires_grad]
for _ in range(2):
    assert all(isinstance(p, DTensor) for p in layers)
    assert sum(p.to_local().untyped_storage().nbytes() for p in layers) * 2 == sum(p.nbytes for p in layers)
    model(torch.arange(8)[None]).logits.sum().backward()
world.leave()
"""


def test_each_process_holds_its_part_of_the_layers_only(shared_rows: Path, tmp_path: Path) -> None:
    script = tmp_path / "held.py"
    script.write_text(HELD)
    trainer(str(shared_rows), start=(*TWO, str(script)))


@pytest.mark.parametrize(
    ("verb", "more", "environment", "message"),
    [
        ("sweep", [], {"WORLD_SIZE": "2"}, "sweep was started in 2 processes, but only `arm` can be"),
        ("arm", ["--set", "train.engine=compiled"], {"WORLD_SIZE": "2"}, "train.engine is compiled"),
        ("arm", [], {"WORLD_SIZE": "3"}, "train.rows_per_step is 4, set it to a multiple of 3"),
        ("arm", [], {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, "launch plain data parallel"),
        ("run", ["--processes", "0"], {}, "expected 1 or more"),
        (
            "run",
            [*SHARDS],
            {},
            "train.shard_base splits the base over several processes, but there is one",
        ),
        ("arm", [*SHARDS], {}, "or start `arm` with torchrun"),
        ("check", [*SHARDS, "--set", "train.engine=compiled"], {}, "`shard_base` needs `engine: plain`"),
        ("check", ["--set", "train.rows_per_step=8"], {}, "a packed row has 48 tokens"),
        (
            "arm",
            ["--set", "train.tokens_per_step=96000", "--set", "train.rows_per_step=1000"],
            {},
            "lower it",
        ),
    ],
)
def test_what_several_processes_cannot_do_is_refused_in_a_line(
    verb: str, more: list[str], environment: dict[str, str], message: str, shared_rows: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(line(verb, shared_rows, tmp_path / "artifacts", *more)) == 1
    lines = capsys.readouterr().err.splitlines()
    (said,) = [line for line in lines if line.startswith("trainer: ")]
    assert message in said
