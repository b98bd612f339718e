"""A fork of a prepared process behaves as a new one does."""

import os
import signal
from multiprocessing import forkserver
from multiprocessing.connection import Connection

import pytest

from api.engine import fork_server


def report(pipe: Connection) -> None:
    """Send two of the child's variables, and whether it blocks SIGINT."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    pipe.send((os.environ.get("SAID_LATER"), os.environ.get("TAKEN_BACK"), signal.SIGINT in blocked))


def test_a_fork_has_the_environment_of_its_start_and_ctrl_c_does_not_reach_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fork_server, "_PRELOADED", ["json"])
    monkeypatch.setattr(fork_server, "_started", False)
    monkeypatch.setenv("TAKEN_BACK", "1")
    try:
        fork_server.start()
        monkeypatch.setenv("SAID_LATER", "1")
        monkeypatch.delenv("TAKEN_BACK")
        ours, theirs = fork_server._Context().Pipe()
        process = fork_server._Context().Process(target=report, args=(theirs,))
        process.start()
        assert ours.poll(30)
        assert ours.recv() == ("1", None, True)
        process.join(30)
        assert process.exitcode == 0
    finally:
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
