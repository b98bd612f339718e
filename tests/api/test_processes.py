"""An engine process is what vLLM starts with multiprocessing, and no other child of the service."""

import contextlib
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from api.engine import fork_server
from api.engine import grammars as grammars_module
from api.engine.artifact import read_artifact
from api.engine.engine import Engine
from api.engine.grammars import Grammars
from api.engine.processes import engine_processes, kill_all_engines, start_watchdog
from api.errors import EngineStartError
from api.settings import Settings

pytestmark = pytest.mark.anyio


def engine_core(ready: Any) -> None:
    """Stand in for vLLM's engine core: it has a worker process of its own."""
    worker = subprocess.Popen(["/bin/sleep", "600"])
    ready.send(worker.pid)
    worker.wait()


def started(context: Any) -> tuple[BaseProcess, int]:
    """An engine core and the process id of its worker."""
    ours, theirs = context.Pipe()
    core = context.Process(target=engine_core, args=(theirs,))
    core.start()
    assert ours.poll(60)
    return core, ours.recv()


def runs(pid: int) -> bool:
    """A process that has ended may still wait for its parent to read its exit code."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
async def grammars(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Grammars]:
    """With a worker that has tried a schema, however long it took to start on a busy machine."""
    monkeypatch.setattr(grammars_module, "TIMEOUT_S", 600)
    made = Grammars()
    await made.require('{"type": "object"}', read_artifact(artifacts), "response_format")
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fork_server, "_PRELOADED", ["json"])
    monkeypatch.setattr(fork_server, "_started", False)
    yield
    kill_all_engines()


async def test_a_grammar_worker_and_a_watchdog_are_no_engine_and_live_when_engines_are_killed(
    grammars: Grammars, artifacts: Path
) -> None:
    core, worker = started(multiprocessing.get_context("spawn"))
    assert grammars._worker is not None
    with contextlib.closing(_Watchdog()) as watchdog:
        assert {process.pid for process in engine_processes()} == {core.pid, worker}
        kill_all_engines()
        assert not runs(worker) and not core.is_alive()
        assert engine_processes() == []
        assert watchdog.is_alive and grammars._worker.returncode is None
    await grammars.require('{"type": "array"}', read_artifact(artifacts), "response_format")


def test_an_engine_from_the_fork_server_is_found_and_the_fork_server_ends_with_all() -> None:
    fork_server.start()
    server = fork_server.pid()
    assert server is not None
    assert engine_processes() == [], "a fork server is no engine"
    core, worker = started(fork_server._Context())
    assert {process.pid for process in engine_processes()} == {core.pid, worker}
    kill_all_engines()
    assert not runs(worker) and not runs(server)
    forkserver.ensure_running()  # takes note that the old one has ended
    assert fork_server.pid() != server


def test_an_engine_that_does_not_start_ends_no_grammar_worker_of_the_one_that_serves(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's first schema can come in while new weights are loaded."""
    meanwhile: list[subprocess.Popen[bytes]] = []
    cores: list[tuple[BaseProcess, int]] = []

    def from_engine_args(*_: object, **__: object) -> None:
        meanwhile.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        cores.append(started(multiprocessing.get_context("spawn")))
        raise RuntimeError("out of memory")

    async_llm = SimpleNamespace(from_engine_args=from_engine_args)
    usage = SimpleNamespace(OPENAI_API_SERVER="")
    monkeypatch.setitem(sys.modules, "vllm.usage.usage_lib", SimpleNamespace(UsageContext=usage))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.async_llm", SimpleNamespace(AsyncLLM=async_llm))
    monkeypatch.setattr(Engine, "import_libraries", lambda _: None)
    monkeypatch.setattr(Engine, "arguments", lambda *_: [None])
    serving, worker = started(multiprocessing.get_context("spawn"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        with pytest.raises(EngineStartError, match="out of memory"):
            Engine(Settings(artifacts_dir=artifacts), read_artifact(artifacts)).start()
        [(failed, failed_worker)] = cores
        assert not failed.is_alive() and not runs(failed_worker)
        assert serving.is_alive() and runs(worker), "the engine that serves keeps running"
        assert meanwhile[0].poll() is None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for process in meanwhile:
            process.communicate()


class _Watchdog:
    """The watchdog of an engine whose process has ended already."""

    def __init__(self) -> None:
        ended = subprocess.Popen(["/bin/true"])
        process = psutil.Process(ended.pid)
        ended.wait()
        self._shell = start_watchdog([process])

    @property
    def is_alive(self) -> bool:
        return self._shell.poll() is None

    def close(self) -> None:
        self._shell.kill()
        self._shell.communicate()
