"""Control the service's state: starting → ready → draining → stopped, or restarting, or failed.

While the service is ready it follows `models/current`. A new artifact gets its own engine while the old one
still serves; it takes over once it has generated a token, and the old engine ends with its last request.
HTTP is open in every state but the last two. This module decides whether a request may begin, and it ends
the running ones when the drain timeout is over.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Any

from starlette.types import Receive

from api.engine.artifact import NEXT_COMMAND, Artifact, current_id, read_artifact
from api.engine.engine import Engine
from api.engine.served import ServedModel, load
from api.errors import ClientGone, EngineFailed, NotReady, StartError, SwapRefused
from api.telemetry.log import log
from api.telemetry.metrics import Metrics

CHECK_INTERVAL_S = 0.25
RESTART_DELAYS_S = (0.0, 1.0, 4.0, 15.0, 60.0)  # before each attempt to restart a dead engine
_CUT_GRACE_S = 1.0


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


_EXPLANATIONS = {
    State.STARTING: "The model is being loaded. Try again in a few seconds.",
    State.READY: "Ready.",
    State.RESTARTING: "The engine has failed and is being restarted. Try again in a few seconds.",
    State.DRAINING: "The service is stopping; requests that run may finish.",
    State.STOPPED: "The service has stopped.",
    State.FAILED: "The engine has failed and could not be restarted.",
}


class Lifecycle:
    """Own the served model and decide whether requests may run.

    artifact: the first one to serve; later the one that `artifacts_dir` names as current. make_engine:
    makes a new engine for every start. failure: the reason why the service must end; None until then.
    """

    def __init__(
        self,
        artifact: Artifact,
        artifacts_dir: Path,
        make_engine: Callable[[Artifact], Engine],
        wait_idle: Callable[[float], Awaitable[bool]],
        metrics: Metrics,
        drain_timeout_s: float,
    ) -> None:
        self._first = artifact
        self._artifacts_dir = artifacts_dir
        self._make_engine = make_engine
        self._wait_idle = wait_idle
        self._metrics = metrics
        self._drain_timeout_s = drain_timeout_s
        self._state = State.STARTING
        self._served: ServedModel | None = None
        self._refused: str | None = None  # the artifact that could not be swapped in
        self._asked: asyncio.Future[StartError | None] | None = None  # set by `reload`
        self._engines: list[Engine] = []  # engines that have processes, or may have
        self._retiring: set[asyncio.Task[None]] = set()
        self._cut = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self.failure: StartError | None = None
        self.restarts = 0

    @property
    def artifact(self) -> Artifact:
        """Return the artifact that is served, or the first one while it loads."""
        return self._served.artifact if self._served else self._first

    @property
    def state(self) -> State:
        if self._state is State.READY and self._served and self._served.engine.is_dead:
            return State.RESTARTING
        return self._state

    @property
    def explanation(self) -> str:
        return _EXPLANATIONS[self.state]

    def require_ready(self) -> ServedModel:
        """Return the served model. Raises: EngineFailed, NotReady (both 503)."""
        if self.state in (State.FAILED, State.RESTARTING):
            raise EngineFailed(self.explanation)
        if self.state is not State.READY or self._served is None:
            raise NotReady(self.explanation)
        return self._served

    def start(self) -> None:
        """Load the model, then watch the engine and the artifact until `stop`. A second call does nothing."""
        self._running = self._running or asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            self._served = await self._load(self._first)
        except StartError as error:
            self._fail(error)
            return
        if self._state is State.STARTING:
            self._state = State.READY
        while self.failure is None:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                if self.state is State.RESTARTING:
                    await self._restart()
                elif self.state is State.READY:
                    await self._check_artifact()
            except Exception:  # a defect here must not leave the engine unwatched
                log.exception("event=defect")

    async def _load(self, artifact: Artifact) -> ServedModel:
        """Load the artifact with a new engine. Raises: StartError."""
        begun = time.monotonic()
        engine = self._make_engine(artifact)
        self._engines.append(engine)
        try:
            served = await load(artifact, engine)
        except StartError:
            await self._end(engine)
            raise
        log.info("event=ready model=%s duration_s=%.1f", artifact.name, time.monotonic() - begun)
        for gate in artifact.failed_gates:
            log.warning("event=failed_gate model=%s gate=%r", artifact.name, gate)
        return served

    async def _restart(self) -> None:
        assert self._served
        self._state = State.RESTARTING
        self.restarts += 1
        self._metrics.engine_restarts.inc()
        log.error("event=engine_dead")
        failure = StartError("the engine died")
        await self._end(self._served.engine)
        for delay_s in RESTART_DELAYS_S:
            await asyncio.sleep(delay_s)
            try:
                self._served = await self._load(self._served.artifact)
            except StartError as error:
                failure = error
                log.error("event=restart_failed error=%r", str(error))
            else:
                if self._state is State.RESTARTING:
                    self._state = State.READY
                return
        self._fail(failure)

    async def reload(self) -> None:
        """Serve what `models/current` names now, even if it was refused before; return once it is served.

        Raises: SwapRefused with the reason; NotReady, EngineFailed if nothing can be swapped now.
        """
        self.require_ready()
        assert self._running
        asked = self._asked = self._asked or asyncio.get_running_loop().create_future()
        await asyncio.wait({asked, self._running}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise NotReady(self.explanation)
        if refusal := asked.result():
            raise SwapRefused(str(refusal))

    async def _check_artifact(self) -> None:
        asked, self._asked = self._asked, None
        if asked:
            self._refused = None
        try:
            refusal = await self._follow()
        except Exception as error:
            if asked:
                asked.set_exception(error)
            raise
        if asked:
            asked.set_result(refusal)

    async def _follow(self) -> StartError | None:
        """Swap to the current artifact if it is a new one; return why it was refused, or None."""
        assert self._served
        id = current_id(self._artifacts_dir)
        if id is None:  # only a reload reports it
            return StartError(f"{self._artifacts_dir}/models/current names no artifact; {NEXT_COMMAND}")
        if id in (self._served.artifact.manifest.id, self._refused):
            return None
        log.info("event=swap_begun artifact=%s", id)
        try:
            served = await self._load(read_artifact(self._artifacts_dir))
        except StartError as error:
            self._refused = id
            self._metrics.swaps.labels("refused").inc()
            log.error("event=swap_refused artifact=%s error=%r", id, str(error))
            return error
        old, self._served, self._refused = self._served, served, None
        self._metrics.swaps.labels("done").inc()
        log.info("event=swapped artifact=%s", id)
        retiring = asyncio.create_task(self._retire(old))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        return None

    async def _retire(self, old: ServedModel) -> None:
        """End the old model's engine when its last request has ended."""
        await old.wait_until_unused()
        await self._end(old.engine)

    async def _end(self, engine: Engine) -> None:
        await asyncio.to_thread(engine.shutdown)
        self._engines.remove(engine)

    def _fail(self, failure: StartError) -> None:
        if self._state in (State.STARTING, State.RESTARTING):
            self._state, self.failure = State.FAILED, failure

    async def supervise(self, work: Coroutine[Any, Any, None], receive: Receive) -> None:
        """Run `work` until it ends, the client hangs up, or the drain timeout is over.

        Cancelled work is awaited, so that its abort has reached the engine.
        Raises: ClientGone, NotReady, or what `work` raises.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(receive))
        cut = asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait({task, gone, cut}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in (task, gone, cut):
                future.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        elif self._cut.is_set():
            raise NotReady("The service stopped before this answer was complete.")
        else:
            raise ClientGone

    async def drain(self) -> None:
        """Refuse new requests, wait for the running ones until the drain timeout, then cut them off."""
        self._state = State.DRAINING
        log.info("event=draining timeout_s=%g", self._drain_timeout_s)
        if not await self._wait_idle(self._drain_timeout_s):
            log.warning("event=cut reason=drain_timeout")
            self._cut.set()
            await self._wait_idle(_CUT_GRACE_S)

    async def stop(self) -> None:
        """End all engines. After a failure the state stays `failed`."""
        for task in (self._running, *self._retiring):
            if task is not None:
                task.cancel()
        if self._state is not State.FAILED:
            self._state = State.STOPPED
        for engine in list(self._engines):
            await self._end(engine)
        log.info("event=stopped")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
