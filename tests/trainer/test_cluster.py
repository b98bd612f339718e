"""A sweep on a Ray cluster of three nodes on this machine, one of which is killed; and what is refused."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from ray.cluster_utils import Cluster as Nodes

from tests.support import PATIENCE_S
from trainer import base_model
from trainer.cli import main
from trainer.config_file import load
from trainer.data.prepare import prepare
from trainer.errors import MissingError
from trainer.fit.arm import arms
from trainer.fit.run import cluster
from trainer.fit.run.node import on_node, versions
from trainer.fit.run.train import train

ROOT = Path(__file__).parents[2]
STEPS = 60


class SlowClock:
    """`time` for Ray's node.py, which gives a node 30 s to start, in a constant: ten times as long."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return time.monotonic() / 10


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Three nodes of one CPU each."""
    store = {"object_store_memory": 80_000_000}
    head = {"num_cpus": 1, "include_dashboard": False, **store}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr("ray._private.node.time", SlowClock())
        patch.setattr(Nodes._wait_for_node, "__defaults__", (300,))  # the next 30 s
        made = Nodes(initialize_head=True, head_node_args=head)
        for _ in range(2):
            made.add_node(num_cpus=1, **store)
        yield made
        made.shutdown()


@pytest.fixture
def three_arms(config_values: dict[str, Any], tmp_path: Path) -> Path:
    config_values["sweep"] = {"ranks": [2, 3, 4], "learning_rates": [0.01], "steps": STEPS}
    file = tmp_path / "three.yaml"
    file.write_text(yaml.safe_dump(config_values))
    return file


def sweep(config: Path, artifacts: Path, *more: str) -> list[str]:
    return ["sweep", "--config", str(config), "--artifacts", str(artifacts), "--executor", "ray", *more]


def test_a_killed_node_costs_a_sweep_the_steps_since_a_checkpoint(
    nodes: Nodes, three_arms: Path, tmp_path: Path
) -> None:
    """Its results are, to the last digit, those of one process on one machine."""
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    line = [sys.executable, "-m", "trainer", *sweep(three_arms, shared, "--address", nodes.address)]
    running = subprocess.Popen(line, cwd=ROOT)
    while len({file.parts[-4] for file in shared.glob("runs/*/*/checkpoint-*/files.json")}) < 3:
        assert running.poll() is None, "ended before all three were training"
        time.sleep(0.05)
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    assert running.wait(timeout=600) == 0

    torch.set_num_threads(1)  # as an arm has there: sums in another order differ in the last digits
    config = load(three_arms)
    base = base_model.fetch(config.base, alone)
    resumed = 0
    for arm in arms(config):
        run = train(config, base, prepare(config, base, alone), arm, STEPS, alone)
        (file,) = shared.glob(f"runs/{arm.name}-*/*/result.json")
        found = json.loads(file.read_text())
        resumed += found["resumed_from"] is not None
        assert found["train_curve"] == run.record["train_curve"]
        assert found["validation"] == run.record["validation"]
    assert resumed == 1
    (results,) = shared.glob("sweeps/*/results.json")
    assert json.loads(results.read_text())["failed"] == {}


def test_a_sweep_that_is_stopped_ends_its_arms_on_all_nodes(
    nodes: Nodes, three_arms: Path, tmp_path: Path
) -> None:
    more = ("--address", nodes.address, "--set", "sweep.steps=100000")
    line = [sys.executable, "-m", "trainer", *sweep(three_arms, tmp_path / "stopped", *more)]
    running = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("stopped/runs/*/*/checkpoint-*")):
        assert running.poll() is None, "ended before training"
        time.sleep(0.05)
    assert arms_of(tmp_path)
    running.terminate()
    _, said = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130 and said.startswith("trainer: interrupted")
    deadline = time.monotonic() + PATIENCE_S
    while arms_of(tmp_path):
        assert time.monotonic() < deadline, "arms keep running without a sweep"
        time.sleep(0.1)


def arms_of(folder: Path) -> list[str]:
    """The command lines of the processes that train into a folder below this one."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = file.read_text().split("\0")
            if "arm" in words and any(word.startswith(str(folder)) for word in words):
                found.append(" ".join(words))
    return found


def found(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    assert main(line) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trainer: ")]
    return said


def test_a_cluster_on_which_no_arm_fits_is_waited_for_and_then_refused(
    nodes: Nodes, three_arms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(cluster, "GROWTH_S", 0.0)
    try:
        line = sweep(three_arms, tmp_path / "artifacts", "--address", nodes.address, "--cpus-per-arm", "64")
        said = found(capsys, *line)
    finally:
        ray.shutdown()
    assert (
        "an arm asks for 64 CPUs and 0 GPUs of a node, and the largest of the Ray cluster has 1 and 0" in said
    )


def test_an_absent_cluster_is_reported_at_once(
    three_arms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for address in ("127.0.0.1:9249", "ray://127.0.0.1:10001", "nowhere"):
        said = found(capsys, *sweep(three_arms, tmp_path / "artifacts", "--address", address))
        assert f"no Ray cluster at {address}: " in said
    assert not list(tmp_path.glob("artifacts/*")), "nothing may be made for a cluster that is not there"


def test_ray_is_named_where_it_is_not_installed(
    three_arms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "requirements-ray.txt" in found(capsys, *sweep(three_arms, tmp_path))


def test_options_of_a_cluster_without_one_are_refused(
    three_arms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["sweep", "--config", str(three_arms), "--artifacts", str(tmp_path), "--gpus-per-arm", "0.5"]
    assert "--gpus-per-arm needs --executor ray" in found(capsys, *line)


def test_a_node_that_differs_is_reported_by_name_and_difference(tmp_path: Path) -> None:
    ours = versions()
    directory = tmp_path / "runs" / "arm" / "steps-1"
    with pytest.raises(MissingError, match=r"has torch .* and not 1\.0: arms would not compare"):
        on_node([], directory, 1, 0, {**ours, "torch": "1.0"})
    with pytest.raises(
        MissingError, match=r"has no .*elsewhere: put the artifacts where all nodes share them"
    ):
        on_node([], tmp_path / "elsewhere" / "runs" / "arm" / "steps-1", 1, 0, ours)
    assert not directory.exists()
