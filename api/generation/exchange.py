"""The life of a generation request, the same for chat, responses and text completions.

The gate has authorised it and FastAPI has validated it against the allow list. Here it is admitted,
rendered, generated and sent, whole or as a stream; then it is accounted. Admission comes before
rendering, so that a full house spends no time on tokens it will not use.
"""

import asyncio
import contextlib
import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.types import Message, Receive, Scope, Send

from api.dialects.chat.frames import Frames
from api.engine.context import require_known_tokens, token_budget
from api.engine.engine import Delta, Engine
from api.engine.prompt import Prompt
from api.engine.served import ServedModel
from api.errors import REASON, ApiError, ClientGone, DeadlineExceeded
from api.generation.answer_schema import AnswerSchema
from api.generation.logprobs import token_logprobs
from api.generation.merged import merged
from api.generation.schema import FinishReason, GenerationRequest, TokenLogprob, Usage
from api.http.gate import KEY
from api.http.log import SEND, request_id
from api.http.metrics import TALLY, Tally
from api.ledger.keys import NORMAL, Key
from api.service import Service

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(slots=True)
class Answer:
    """One choice, as far as it has come."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = "stop"


# A header, because OpenAI's clients set headers and refuse fields they do not know.
Timeout = Annotated[
    Annotated[float, Field(ge=0.001, le=86_400)] | SkipJsonSchema[None],
    Header(alias="x-request-timeout", description="Seconds."),
]


class Exchange(Response):
    """One request and its answers; raw ASGI, so that a chunk goes straight to the server."""

    id_prefix: str
    prompt_field: str
    limit_field = "max_tokens"

    def __init__(self, request: GenerationRequest, service: Service, timeout_s: float | None) -> None:
        """timeout_s: what the client gives it; the service's own limit holds as well."""
        super().__init__()
        most = service.request_timeout_s
        self._timeout_s = most if timeout_s is None else min(timeout_s, most)
        self.id = f"{self.id_prefix}{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._request = request
        self._service = service
        self._frames: Frames | None = None  # of a stream that has begun
        self._fingerprint = ""

    @abstractmethod
    def prompts(self) -> int:
        """How many there are; every one has as many answers as the request says."""

    @abstractmethod
    def encode(self, prompt: Prompt) -> list[list[int]]:
        """Token ids of every prompt; runs in a thread."""

    @abstractmethod
    def token_limit(self) -> int | None:
        """How many tokens the client wants at most; None: as many as fit."""

    @abstractmethod
    def logprobs_wanted(self) -> int | None:
        """How many alternatives beside each token's own logprob; None: no logprobs at all."""

    def answer_schema(self, prompt: Prompt) -> AnswerSchema | None:
        """None: the answer may be any text."""
        return None

    @abstractmethod
    def frames(self, head: dict[str, Any], answers: int) -> Frames:
        """head: what all chunks have in common."""

    @abstractmethod
    def whole(self, head: dict[str, Any], answers: Sequence[Answer], usage: Usage) -> BaseModel: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (key := scope[KEY]) is not None:  # with nothing left, no work is done for it
            self._service.ledger.check(key, self._answers())
        with self._service.admission.places(self._answers()):
            try:
                await self._service.lifecycle.supervise(self._in_time(scope, receive, send), receive)
            except ClientGone:
                self._service.metrics.aborted.inc()
            except ApiError as error:
                if self._frames is None:
                    raise
                scope[REASON] = error.reason
                await scope[SEND](_body(self._frames.failed(error), more=False))

    def _answers(self) -> int:
        return self.prompts() * self._request.choices()

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._serve(scope, receive, send)
        except TimeoutError:
            raise DeadlineExceeded(f"The answer was not complete after {self._timeout_s:g} s.") from None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        served = self._service.lifecycle.require_ready()
        with served.in_use():
            await self._serve_by(served, scope, receive, send)

    async def _serve_by(self, served: ServedModel, scope: Scope, receive: Receive, send: Send) -> None:
        engine, prompt = served.engine, served.prompt
        self._fingerprint = served.artifact.manifest.id
        require_known_tokens(self._request, engine.vocab_size)
        # A long prompt and many schemas take milliseconds: not on the event loop.
        prompts, schema = await asyncio.to_thread(lambda: (self.encode(prompt), self.answer_schema(prompt)))
        asked, context = self.token_limit(), engine.max_model_len
        fields = self.prompt_field, self.limit_field
        limits = [token_budget(len(ids), asked, context, *fields) for ids in prompts]
        key: Key | None = scope[KEY]
        tally = scope[TALLY] = Tally(
            key.name if key else "",
            sum(map(len, prompts)),
            self._answers(),
            bool(self._request.stream),
            self._service.metrics,
        )
        most = tally.prompt_tokens + sum(limits) * self._request.choices()
        async with contextlib.AsyncExitStack() as held:
            headers = await held.enter_async_context(self._reserved(key, most, tally))
            if schema is not None:
                await self._service.grammars.require(schema.text, served.artifact, schema.param)
            priority = key.priority if key else NORMAL
            turn = self._service.admission.turn(tally.key, self._answers(), most, priority)
            await held.enter_async_context(turn)
            tally.take_turn()
            async with aclosing(self._generate(engine, prompts, limits, key, schema)) as deltas:
                if self._request.stream:
                    with self._service.metrics.active_streams.track_inprogress():
                        await self._send_stream(deltas, prompt, tally, headers, send, scope[SEND])
                else:
                    body = await self._collect(deltas, prompt, tally)
                    response = Response(body.model_dump_json(), 200, headers, "application/json")
                    await response(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _reserved(self, key: Key | None, most: int, tally: Tally) -> AsyncIterator[dict[str, str]]:
        """Holds the most that the request can cost its key; gives the rate-limit headers of the answer.

        What had no turn or failed on our side costs no tokens; what its client left, those it had by then.
        Raises: RateLimited before anything is generated.
        """
        if key is None:
            yield {}
            return
        reservation = await self._service.ledger.admit(key, most, self._answers())
        self._service.metrics.key_requests.labels(key.name).inc()
        ours = False
        try:
            yield reservation.headers()
        except Exception as error:
            ours = not isinstance(error, ClientGone)
            raise
        finally:
            charged = tally.turn is not None and not ours
            used = (tally.prompt_tokens, tally.completion_tokens) if charged else (0, 0)
            reservation.settle(*used)
            self._service.metrics.key_tokens.labels(key.name).inc(sum(used))

    def _generate(
        self,
        engine: Engine,
        prompts: list[list[int]],
        limits: list[int],
        key: Key | None,
        schema: AnswerSchema | None,
    ) -> AsyncGenerator[Delta, None]:
        salt = self._service.ledger.cache_salt(key) if key else None
        streams = [
            engine.generate(
                f"{request_id()}.{self.id}-{i}", ids, self._request, limit,
                stream=bool(self._request.stream), model=self._request.model,
                logprobs=self.logprobs_wanted(), cache_salt=salt,
                json_schema=schema.text if schema else None,
            )
            for i, (ids, limit) in enumerate(zip(prompts, limits, strict=True))
        ]  # fmt: skip
        return streams[0] if len(streams) == 1 else merged(streams, self._request.choices())

    async def _send_stream(
        self,
        deltas: AsyncIterator[Delta],
        prompt: Prompt,
        tally: Tally,
        headers: dict[str, str],
        send: Send,
        send_body: Send,
    ) -> None:
        """send_body: the server's own, for what comes with every token."""
        frames = self.frames(self._head(), self._answers())
        silent = set(range(self._answers()))
        running = set(silent)
        untold: dict[int, list[TokenLogprob]] = {index: [] for index in running}
        async for delta in deltas:
            index = delta.index
            tally.add(delta.tokens, index, delta.cached_tokens)
            if delta.logprobs:
                untold[index] += token_logprobs(delta, prompt)
            frame = b""
            if delta.text or (delta.finish_reason and index in silent):
                write = frames.first if index in silent else frames.text
                frame = write(delta.text, index, untold[index])
                untold[index] = []
                silent.discard(index)
            if delta.finish_reason:
                frame += frames.finish(delta.finish_reason, index, untold[index])
                running.discard(index)
            if not running:
                frame += frames.end(_usage(tally))
            if frame:
                if self._frames is None:
                    await self._start_stream(send, headers)
                    self._frames = frames
                await send_body(_body(frame, more=bool(running)))

    async def _start_stream(self, send: Send, headers: dict[str, str]) -> None:
        """Headers wait for the first text: until then a failure is an HTTP status."""
        own = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": [*_STREAM_HEADERS, *own]})

    async def _collect(self, deltas: AsyncIterator[Delta], prompt: Prompt, tally: Tally) -> BaseModel:
        answers = [Answer() for _ in range(self._answers())]
        async for delta in deltas:
            tally.add(delta.tokens, delta.index, delta.cached_tokens)
            answer = answers[delta.index]
            answer.text += delta.text
            answer.logprobs += token_logprobs(delta, prompt)
            answer.finish_reason = delta.finish_reason or answer.finish_reason
        return self.whole(self._head(), answers, _usage(tally))

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "created": self.created,
            "model": self._request.model,
            "system_fingerprint": self._fingerprint,
        }


def _body(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _usage(tally: Tally) -> Usage:
    return Usage(
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        total_tokens=tally.prompt_tokens + tally.completion_tokens,
    )
