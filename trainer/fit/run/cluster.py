"""Run arms as tasks of a Ray cluster, with the processes, folders, results and failures of `processes`.

Every node has this tree and its environment at the same paths, and shares the artifacts' folder. All runs
are submitted at once, each with its requirements, so that Ray places them and an autoscaler knows what to
add. A run whose node is lost starts again elsewhere and continues from its last checkpoint. Only this module
imports Ray, and only when a command asks for it.

Tried (tests/trainer/test_cluster.py): three nodes on one machine without a GPU, one of them killed.
Not tried: more than one host, GPUs, an autoscaler.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, MissingError
from trainer.fit.arm import Arm
from trainer.fit.run.node import ROOT, versions
from trainer.fit.run.processes import arm_flags, show_progress
from trainer.progress import Progress, say

CONNECT_S = 5
POLL_S = 1.0
GROWTH_S = 600.0  # how long a cluster without a node for an arm may take to get one
LOSSES = 20  # nodes that one run may lose, where machines are lent for a while


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that this process is connected to. cpus, gpus: what one arm needs of a node."""

    cpus: int
    gpus: float

    def run_arms(
        self, directories: Mapping[Arm, Path], steps: int | None, command: Sequence[str]
    ) -> dict[Arm, str]:
        """Do what `processes.run_arms` does, on the nodes. Raises: MissingError if none is large enough."""
        import ray

        root, ours = str(ROOT), versions()

        # Defined here so that Ray pickles it by value: a node without this tree then gets a clear error.
        @ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=LOSSES)
        def task(*arguments: Any) -> str | None:
            sys.path.insert(0, root)
            from trainer.fit.run.node import on_node

            return on_node(*arguments)

        tasks = {
            task.remote([*command, *arm_flags(arm, steps)], path.absolute(), self.cpus, self.gpus, ours): arm
            for arm, path in directories.items()
        }
        try:
            with Progress() as progress:
                return self._watch(tasks, directories, progress)
        finally:
            for reference in tasks:
                ray.cancel(reference, force=True)  # has no effect on those that ended

    def _watch(
        self, tasks: Mapping[Any, Arm], directories: Mapping[Arm, Path], progress: Progress
    ) -> dict[Arm, str]:
        import ray

        failed: dict[Arm, str] = {}
        waiting, deadline = list(tasks), None
        while waiting:
            ended, waiting = ray.wait(waiting, timeout=POLL_S)
            for reference in (*ended, *waiting):
                show_progress(tasks[reference], directories[tasks[reference]], progress)
            for arm, reason in ((tasks[reference], _outcome(reference)) for reference in ended):
                if reason:
                    failed[arm] = reason
                    progress.say(f"  {arm.name}: failed: {reason}")
            if self._fits():
                deadline = None
            elif deadline is None:
                deadline = time.monotonic() + GROWTH_S
                progress.say(f"  {self._too_small()}; waiting {GROWTH_S:.0f} s for it to grow")
            elif time.monotonic() > deadline:
                raise MissingError(self._too_small())
        return failed

    def _fits(self) -> bool:
        return any(cpus >= self.cpus and gpus >= self.gpus for cpus, gpus in _nodes())

    def _too_small(self) -> str:
        cpus, gpus = max(_nodes(), key=lambda node: node[::-1], default=(0, 0))
        return (
            f"an arm asks for {self.cpus} CPUs and {self.gpus:g} GPUs of a node, and the largest of the Ray "
            f"cluster has {cpus:g} and {gpus:g}: see --cpus-per-arm and --gpus-per-arm"
        )


def connect(address: str | None, cpus: int, gpus: float | None, device: str) -> Cluster:
    """Join a running cluster, from one of its nodes.

    address: HOST:PORT; None: RAY_ADDRESS, or the cluster of this machine. gpus: None for one, unless
    `device` is cpu or no node has any. Raises: MissingError, ConfigError.
    """
    if cpus < 1 or (gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus)))):
        raise ConfigError(
            f"--cpus-per-arm {cpus} --gpus-per-arm {gpus}: expected 1 CPU or more, and a share of one GPU or "
            "whole ones"
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no telemetry
    try:
        import ray
    except ImportError:
        raise MissingError(
            "--executor ray needs the package ray: on every node, `.venv/tools/bin/uv pip install --python "
            ".venv/trainer -r trainer/requirements-ray.txt`"
        ) from None
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_S).close()  # Ray itself would try for minutes
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end us with a dump of the stack
    except (OSError, RuntimeError, ValueError) as error:
        raise MissingError(
            f"no Ray cluster at {address}: {_line(error)}; expected HOST:PORT of `ray start --head`, from "
            "one of the cluster's nodes"
        ) from None
    nodes = _nodes()
    say(f"  Ray: {len(nodes)} nodes, {sum(c for c, _ in nodes):g} CPUs, {sum(g for _, g in nodes):g} GPUs")
    if gpus is None:
        gpus = 1 if device == "cuda" or (device == "auto" and any(g for _, g in nodes)) else 0
    return Cluster(cpus, gpus)


def _nodes() -> list[tuple[float, float]]:
    """Return the CPUs and GPUs of each node."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(each.get("CPU", 0), each.get("GPU", 0)) for each in resources]


def _outcome(reference: Any) -> str | None:
    """Return what `on_node` returned, or why Ray gave the run up. Raises: MissingError."""
    import ray

    try:
        reason: str | None = ray.get(reference)
    except (MissingError, ImportError) as error:  # Ray's own error, and an instance of the node's
        cause = getattr(error, "cause", error)
        if isinstance(cause, MissingError):
            raise MissingError(str(cause)) from None
        raise MissingError(f"a node cannot import the trainer from {ROOT}: {_line(cause)}") from None
    except ray.exceptions.RayError as error:
        return _line(error)
    return reason


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
