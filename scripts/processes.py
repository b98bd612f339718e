"""Start processes, each in its own session, so that its whole tree can be ended."""

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
    """The processes that this program started."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def start(
        self, command: list[str], environment: dict[str, str], log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process in the project's folder. log: a file for its output; None: our own output."""
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
        """Send SIGTERM to every process, and SIGKILL to what is left of its group after STOP_WITHIN_S.

        The group gets no SIGTERM: the API drains its streams, and needs its engine until then.
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
