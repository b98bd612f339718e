"""Simulate replicas of the API: a trace of arrivals in, answers with their times out.

A replica works as vLLM does. It batches continuously: each step first generates a token of every answer,
then reads prompts in order of arrival, cut to what the step may hold. Standard library only.
"""

import bisect
import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.client import Answer, summary

DISPATCHES = ("least-busy", "round-robin")


class Arrival(NamedTuple):
    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Speed:
    """A replica's capacity and the time of its steps.

    points: (sequences in a step, its seconds without prompts), two or more, ascending.
    prompt_token_s: additional time for each prompt token. request_s: time from a request to its place in
    the engine. slots, step_tokens: the most sequences and tokens in a step.
    """

    points: tuple[tuple[int, float], ...]
    prompt_token_s: float
    request_s: float
    slots: int
    step_tokens: int

    def step_s(self, sequences: int, prompt_tokens: int) -> float:
        """Interpolate linearly between the points, and extrapolate from the last two."""
        above = max(1, min(bisect.bisect_left(self.points, (sequences, 0.0)), len(self.points) - 1))
        (few, short), (many, long) = self.points[above - 1 : above + 1]
        decoding = short + (long - short) * (sequences - few) / (many - few)
        return decoding + self.prompt_token_s * prompt_tokens


@dataclass
class Job:
    """A request in a replica, with the tokens left of its prompt and of its answer."""

    answer: Answer
    enters_s: float
    prompt_left: int
    left: int


class Replica:
    """One engine with its requests."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._now = 0.0

    @property
    def in_progress(self) -> int:
        return len(self._waiting) + len(self._running)

    def submit(self, arrival: Arrival) -> None:
        at, prompt, tokens = arrival
        answer = Answer(at, prompt_tokens=prompt, tokens=tokens)
        enters_s = at + self._speed.request_s
        self._waiting.append(Job(answer, enters_s, prompt, tokens))

    def run(self, until: float = math.inf) -> Iterator[Answer]:
        """Return the answers that end in steps that begin before `until`."""
        while self.in_progress:
            if not self._running:
                self._now = max(self._now, self._waiting[0].enters_s)
            if self._now >= until:
                return
            yield from self._step(until)

    def _step(self, until: float) -> list[Answer]:
        """Run one step, or several equal steps at once if no prompt is in them."""
        while self._room() and self._waiting[0].enters_s <= self._now:
            self._running.append(self._waiting.popleft())
        prompts = [job for job in self._running if job.prompt_left]
        decoding = [job for job in self._running if not job.prompt_left]
        read = self._read(prompts, max(1, self._speed.step_tokens - len(decoding)))
        took = self._speed.step_s(len(self._running), read)
        steps = 1
        if not prompts:
            change = min(until, self._waiting[0].enters_s) if self._room() else until
            steps = int(min(min(job.left for job in decoding), (change - self._now) / took + 1))
        self._now += steps * took
        for job in decoding:
            job.left -= steps
        for job in prompts:
            if not job.prompt_left:
                job.answer.first = self._now
                job.left -= 1
        return self._ended()

    def _room(self) -> bool:
        return bool(self._waiting) and len(self._running) < self._speed.slots

    def _read(self, prompts: Sequence[Job], room: int) -> int:
        """Return the prompt tokens that fit into a step."""
        read = 0
        for job in prompts:
            part = min(job.prompt_left, room - read)
            job.prompt_left -= part
            read += part
        return read

    def _ended(self) -> list[Answer]:
        ended = [job.answer for job in self._running if not job.left]
        self._running = [job for job in self._running if job.left]
        for answer in ended:
            answer.last = answer.ended = self._now
        return ended


def simulate(
    trace: Sequence[Arrival], speed: Speed, replicas: int, dispatch: str = DISPATCHES[0]
) -> dict[str, float]:
    """Return bench/client.py's figures. in_progress: mean requests in a replica when one arrives."""
    fleet = [Replica(speed) for _ in range(replicas)]
    answers: list[Answer] = []
    found = []
    for number, arrival in enumerate(trace):
        for replica in fleet:
            answers += replica.run(arrival.arrival_s)
        chosen = fleet[choose([replica.in_progress for replica in fleet], number, dispatch)]
        found.append(chosen.in_progress)
        chosen.submit(arrival)
    for replica in fleet:
        answers += replica.run()
    wall_s = max(answer.ended for answer in answers) - trace[0].arrival_s
    return {**summary(answers, wall_s), "in_progress": round(statistics.mean(found), 1)}


def choose(in_progress: Sequence[int], number: int, dispatch: str) -> int:
    """Return the replica that gets the request of that number."""
    if dispatch == "round-robin":
        return number % len(in_progress)
    return min(range(len(in_progress)), key=in_progress.__getitem__)


def benchmark(speed: Speed, chats: Sequence[tuple[int, int]], streams: int) -> dict[str, float]:
    """Simulate bench/client.py on one replica: streams begin at once and ask again until all is answered.

    chats: tokens of each prompt and of its answer.
    """
    replica = Replica(speed)
    for chat in chats[:streams]:
        replica.submit(Arrival(0.0, *chat))
    answers: list[Answer] = []
    for answer in replica.run():
        if len(answers) + streams < len(chats):
            replica.submit(Arrival(answer.ended, *chats[len(answers) + streams]))
        answers.append(answer)
    return summary(answers, answers[-1].ended)
