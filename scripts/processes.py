"""Processes that end as a whole: each is started in a session of its own, so its tree can be ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from environments import ROOT, end_with_parent

STOP_WITHIN_S = 8


class Children:
    """The processes we started."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def start(
        self, command: list[str], environment: dict[str, str], log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process from the project's folder. log: a file for its output, or our own."""
        output = log.open("wb") if log else None
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self._running.append(process)
        return process

    def stop(self) -> None:
        """SIGTERM to every process, SIGKILL to what is left of its group after STOP_WITHIN_S.

        Not SIGTERM to the group: the API drains its streams, which its engine must live to see.
        """
        for process in self._running:
            process.terminate()
        deadline = time.monotonic() + STOP_WITHIN_S
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
