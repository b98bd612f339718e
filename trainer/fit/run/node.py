"""Start one run's process on this machine, for a sweep here or, through Ray, for a sweep elsewhere.

This module imports nothing large, because a Ray worker that only waits for the process imports it.
"""

import ctypes
import importlib.metadata
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.errors import MissingError
from trainer.identity import made_by

OUTPUT = "output.txt"
NEARLY_FULL_BYTES = 2**16  # a write fails before the last byte is used
ROOT = Path(__file__).resolve().parents[3]


def start(line: Sequence[str], directory: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a run's process. The kernel ends it if this process is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / OUTPUT).open("w") as output:
        return subprocess.Popen(
            line,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
        )


def failure_of(directory: Path, code: int) -> str:
    """Return why a process failed, by its last line of output. code: its exit code, which is not 0."""
    text = (directory / OUTPUT).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines and shutil.disk_usage(directory).free < NEARLY_FULL_BYTES:
        return f"the disk under {directory} is full"  # so full that the process could not write why
    errors = [
        line for line in lines if line.startswith("trainer: ")
    ]  # torchrun prints lines of its own after
    return (errors or lines)[-1].removeprefix("trainer: ") if lines and code > 0 else f"exit {code}"


def on_node(
    arguments: Sequence[str], directory: Path, cpus: int, gpus: float, expected: Mapping[str, str]
) -> str | None:
    """Run one arm on the node that Ray chose. Return None, or why it failed.

    expected: the `versions` of the machine that started the sweep. Raises: MissingError if this node differs.
    """
    here = f"the node {socket.gethostname()}"
    if not directory.parents[2].is_dir():
        raise MissingError(
            f"{here} has no {directory.parents[2]}: put the artifacts where all nodes share them"
        )
    found = versions()
    if other := [name for name in {**expected, **found} if found.get(name) != expected.get(name)]:
        differing = ", ".join(f"{name} {found.get(name)} and not {expected.get(name)}" for name in other)
        raise MissingError(f"{here} has {differing}: arms would not compare; give all nodes the same")
    environment = {**os.environ, "OMP_NUM_THREADS": str(cpus)}
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    line = [sys.executable, "-m", "trainer", *arguments]
    code = start(line, directory, {**environment, "PYTHONPATH": str(ROOT)}).wait()
    return failure_of(directory, code) if code else None


def versions() -> dict[str, str]:
    """Return what must be the same on all nodes: Python, Ray, and what decides a run's result."""
    return {"Python": platform.python_version(), "ray": importlib.metadata.version("ray"), **made_by()}


def _end_with_parent() -> None:
    """Ask Linux to end this child when its parent dies (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
