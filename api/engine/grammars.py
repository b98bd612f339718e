"""Try a JSON schema in a separate process before the engine gets it, and check answers there.

vLLM validates a schema on this service's event loop and compiles it in the engine. Without a trial, one
schema could stop every stream, and in vLLM 0.26 to 0.29 a schema that does not compile ends the engine
(CVE-2026-105757). A check runs patterns of clients, which can take for ever.
"""

import asyncio
import contextlib
import dataclasses
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from pathlib import Path
from typing import Any

import orjson

from api.engine.artifact import Artifact
from api.engine.thinking import Marker
from api.errors import InvalidRequest, Overloaded, Unavailable

REMEMBERED = 256
MAX_WAITING = 16  # schemas, and as many answers; a trial can take seconds
NOT_CHECKED = "the answer could not be checked"
TIMEOUT_S = 60.0  # wall clock, including a start of the worker; grammar_worker.py limits a trial's CPU time

_ROOT = Path(__file__).parents[2]


class Grammars:
    """Run trials and checks in one worker process. The first one starts it; it ends with this process."""

    def __init__(self) -> None:
        self._worker: Process | None = None
        self._free = asyncio.Lock()
        self._trials: OrderedDict[tuple[Path, str, Marker | None], asyncio.Task[str]] = OrderedDict()
        self._checks: set[asyncio.Task[str]] = set()

    async def require(
        self, schema: str, artifact: Artifact, param: str, closing: Marker | None = None, rules: str = ""
    ) -> None:
        """Return once a trial has shown that the engine may have the schema. schema: JSON text.

        closing: ends the thinking before the answer that obeys it, if it may begin with one. rules: of a
        grammar, instead of a schema.
        Raises: InvalidRequest if it may not; Overloaded, Unavailable.
        """
        name = (artifact.directory, rules or schema, closing)
        trial = self._trials.get(name)
        if trial is None:
            if sum(not trial.done() for trial in self._trials.values()) >= MAX_WAITING:
                raise Overloaded("Too many new schemas wait for their trial. Try again in a moment.")
            trial = asyncio.create_task(self._try(schema, artifact, closing, rules))
            self._trials[name] = trial
            if len(self._trials) > REMEMBERED:
                self._trials.popitem(last=False)
        self._trials.move_to_end(name)
        try:
            refusal = await asyncio.shield(trial)  # others may wait for the same trial, and it holds the pipe
        except Exception:
            self._trials.pop(name, None)
            raise Unavailable("The schema could not be tried out. Try again.") from None
        if refusal:
            raise InvalidRequest(f"{param}: the schema cannot be enforced: {refusal}.", param=param)

    async def check(self, answer: str, schema: str) -> str:
        """Return how a complete answer disobeys a schema; "" if it obeys. schema: JSON text."""
        if len(self._checks) >= MAX_WAITING:  # slow ones must not keep the schemas of others from their trial
            return NOT_CHECKED
        check = asyncio.create_task(self._ask({"answer": answer, "schema": schema}))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)
        try:
            return await asyncio.shield(check)  # the client may leave, and the check holds the pipe
        except Exception:
            return NOT_CHECKED

    async def _try(self, schema: str, artifact: Artifact, closing: Marker | None, rules: str) -> str:
        given: dict[str, Any] = {"directory": str(artifact.directory), "vocab_size": artifact.vocab_size}
        given |= {"schema": schema, "rules": rules}
        return await self._ask({**given, "closing": dataclasses.asdict(closing) if closing else None})

    async def _ask(self, request: dict[str, Any]) -> str:
        async with self._free:
            try:
                self._worker = self._worker or await _start()
                async with asyncio.timeout(TIMEOUT_S):
                    return await _answer(self._worker, orjson.dumps(request))
            except Exception:
                await self.close()
                raise

    async def close(self) -> None:
        """End the worker. A later schema starts a new one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()


async def _start() -> Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("API_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api.engine.grammar_worker",
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL, cwd=_ROOT,
        env=environment,
    )  # fmt: skip


async def _answer(worker: Process, request: bytes) -> str:
    """Send a request to the worker and return its answer. Raises: EOFError if the worker has ended."""
    assert worker.stdin and worker.stdout
    worker.stdin.write(request + b"\n")
    await worker.stdin.drain()
    line = await worker.stdout.readline()
    if not line:
        raise EOFError
    return line.decode().strip()
