"""Check one promise of the API each, against a running service: the parts of bench/endurance.py.

A part gets the service and the headers of a key without limits. It returns its figures, and whether the
promise was kept.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from bench.fuzz import run_schemathesis
from bench.load import (
    CHAT,
    Answer,
    Connection,
    Headers,
    Service,
    ask,
    at_once,
    body,
    cpu_s,
    events,
    memory_mib,
    open_files,
    quantile,
)
from bench.streams import compare_streams

ADMIN_KEY = "operators-key-of-this-benchmark"
OPERATOR = {"authorization": f"Bearer {ADMIN_KEY}"}
REFUSAL_CPU_MS, REFUSAL_WAIT_MS = 1.0, 50.0


async def streams(service: Service, headers: Headers) -> tuple[dict[str, Any], bool]:
    results = await compare_streams(service, headers, prompts=500, streams=200, tokens=20)
    return results, results["lost_or_duplicated"] == 0


async def fuzz(service: Service, headers: Headers) -> tuple[dict[str, Any], bool]:
    """Fuzz the API. Valid requests cost an answer of a few tokens each, so there are fewer of them."""
    results: dict[str, Any] = {}
    kept = True
    for mode, examples in (("negative", 6800), ("positive", 200)):
        key, folder = headers["authorization"], service.log.parent
        one = await asyncio.to_thread(
            run_schemathesis, service.url, service.model, key, mode, examples, folder
        )
        if not one["passed"]:
            print(one["output"])
        results[mode] = {"cases": one["cases"], "passed": one["passed"]}
        kept = kept and one["passed"]
    results["answers_by_status"] = statuses = _statuses(service)
    defects = {"500", "502", "504"} & set(statuses)
    return results, kept and not defects and results["negative"]["cases"] >= 20_000


def _statuses(service: Service) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in service.get("/metrics", OPERATOR)[1].splitlines():
        if found := re.match(r'finechat_requests_total\{route="(?!/health).*status="(\w+)"\} (\d+)', line):
            counts[found[1]] = counts.get(found[1], 0) + int(found[2])
    return counts


async def requests(service: Service, headers: Headers) -> tuple[dict[str, Any], bool]:
    """Measure memory and open files of both processes after a hundred requests and after 10,000 more."""

    short = json.dumps({"model": service.model, "prompt": "Hi", "max_tokens": 1}).encode()

    async def one(_: int) -> None:
        answer = await ask(service.port, short, headers, "/v1/completions")
        assert answer.status == 200, answer

    async def some(count: int) -> None:
        await at_once(16, count, one)

    await some(500)
    marks = [_sizes(service)]
    begun = time.monotonic()
    for _ in range(4):
        await some(2500)
        marks.append(_sizes(service))
    seconds = time.monotonic() - begun
    grown = marks[-1]["api_mib"] - marks[0]["api_mib"]
    results = {"requests_per_s": round(10_000 / seconds, 1), "every_2500_requests": marks}
    return results, grown < 50 and marks[-1]["api_files"] <= marks[0]["api_files"] + 5


def _sizes(service: Service) -> dict[str, float]:
    return {
        "api_mib": round(memory_mib(service.pid), 1),
        "engine_mib": round(sum(map(memory_mib, service.engine())), 1),
        "api_files": open_files(service.pid),
    }


async def rejected(service: Service, headers: Headers) -> tuple[dict[str, Any], bool]:
    """Measure the API process's CPU time for one refusal, on connections that stay open."""
    limited = {"authorization": f"Bearer {service.settings['LIMITED_KEY']}"}
    asked = body(service, max_tokens=1)
    await ask(service.port, asked, limited)
    results = {
        "nothing": await _cost(service, asked, headers, 200, path="/health/live", method="GET"),
        "wrong key": await _cost(service, asked, {"authorization": "Bearer x"}, 401),
        "bad body": await _cost(service, body(service, max_tokens=0), headers, 400),
        "unknown model": await _cost(service, asked.replace(service.model.encode(), b"x"), headers, 404),
        "over the key's limit": await _cost(service, asked, limited, 429),
    }
    async with _full_house(service, headers):
        results["full house"] = await _cost(service, asked, headers, 503, background=True)
    return results, all(one["cpu_ms"] < REFUSAL_CPU_MS for one in results.values())


async def _cost(
    service: Service, asked: bytes, headers: Headers, status: int,
    *, path: str = CHAT, method: str = "POST", background: bool = False, count: int = 10_000,
) -> dict[str, float]:  # fmt: skip
    """Return the CPU time of a request.

    background: the process has other work, whose cost is measured first and subtracted.
    """
    aside = 0.0
    if background:
        worked, begun = cpu_s(service.pid), time.monotonic()
        await asyncio.sleep(4)
        aside = (cpu_s(service.pid) - worked) / (time.monotonic() - begun)

    async def client(share: int) -> None:
        async with Connection.to(service.port) as connection:
            for _ in range(share):
                answer = await connection.ask(method, path, asked, headers)
                assert answer.status == status, answer

    worked, begun = cpu_s(service.pid), time.monotonic()
    await asyncio.gather(*(client(count // 8) for _ in range(8)))
    seconds = time.monotonic() - begun
    cpu = cpu_s(service.pid) - worked - aside * seconds
    return {"cpu_ms": round(1000 * cpu / count, 3), "per_s": round(count / seconds)}


@contextlib.asynccontextmanager
async def _full_house(service: Service, headers: Headers) -> Any:
    """Occupy every place for minutes with whole answers."""
    long = body(service, max_tokens=1900, logit_bias={"2": -100})
    tasks = [
        asyncio.create_task(ask(service.port, long, headers))
        for _ in range(int(service.settings["API_MAX_QUEUE"]))
    ]
    await asyncio.sleep(2)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(1)


async def overload(service: Service, headers: Headers) -> tuple[dict[str, Any], bool]:
    """Send requests for 20 s at ten times the rate that the service can answer."""
    asked = body(service, max_tokens=16, logit_bias={"2": -100})
    places = int(service.settings["API_MAX_QUEUE"])

    async def one(_: int) -> Answer:
        return await ask(service.port, asked, headers)

    await at_once(places, places, one)
    begun = time.monotonic()
    calm = await at_once(places, places * 8, one)
    capacity = len(calm) / (time.monotonic() - begun)
    tasks: list[asyncio.Task[Answer]] = []
    begun = time.monotonic()
    while (now := time.monotonic() - begun) < 20:
        tasks += [asyncio.create_task(one(0)) for _ in range(int(now * capacity * 10) - len(tasks))]
        await asyncio.sleep(0.005)
    answers = await asyncio.gather(*tasks)
    refusals = [answer.seconds * 1000 for answer in answers if answer.status == 503]
    accepted = [answer.seconds for answer in answers if answer.status == 200]
    results = {
        "capacity_per_s": round(capacity, 1),
        "arrivals_per_s": round(len(answers) / 20, 1),
        "accepted": len(accepted),
        "refused": len(refusals),
        "other": len(answers) - len(accepted) - len(refusals),
        "refusal_ms": {"p50": round(quantile(refusals, 0.5), 1), "p99": round(quantile(refusals, 0.99), 1)},
        "accepted_s_full_use": _spread([answer.seconds for answer in calm]),
        "accepted_s_overload": _spread(accepted),
    }
    return results, results["other"] == 0 and quantile(refusals, 0.99) <= REFUSAL_WAIT_MS


def _spread(values: list[float]) -> dict[str, float]:
    return {"p50": round(quantile(values, 0.5), 2), "p99": round(quantile(values, 0.99), 2)}


async def swaps(service: Service, headers: Headers) -> tuple[dict[str, Any], bool]:
    """Change `models/current` ten times while four clients stream without a pause."""
    models = service.artifacts / "models"
    two = sorted(path.name for path in models.iterdir() if path.is_dir() and not path.is_symlink())[:2]
    done, answers, failed, mixed = False, 0, 0, 0

    async def client(number: int) -> None:
        nonlocal answers, failed, mixed
        while not done:
            answer = await ask(service.port, body(service, number, max_tokens=40, stream=True), headers)
            answers += 1
            try:
                prints = {event["system_fingerprint"] for event in events(answer.body)}
            except (AssertionError, KeyError, ValueError):
                failed += 1
            else:
                mixed += len(prints) != 1

    clients = [asyncio.create_task(client(number)) for number in range(4)]
    marks = [{"api_mib": round(memory_mib(service.pid)), "seconds": 0.0}]
    for number in range(10):
        begun = time.monotonic()
        _point(models, two[(two.index((models / "current").readlink().name) + 1) % 2])
        while await asyncio.to_thread(_swapped, service) <= number:
            assert time.monotonic() - begun < 300, service.log.read_text()[-2000:]
            await asyncio.sleep(0.5)
        marks.append(
            {"api_mib": round(memory_mib(service.pid)), "seconds": round(time.monotonic() - begun, 1)}
        )
    done = True
    await asyncio.gather(*clients)
    results = {"answers": answers, "failed": failed, "of_two_models": mixed, "swaps": marks}
    return results, not failed and not mixed


def _point(models: Path, id: str) -> None:
    new = models / "current.new"
    new.symlink_to(id)
    new.replace(models / "current")


def _swapped(service: Service) -> float:
    with contextlib.suppress(AssertionError):  # no swap yet
        return service.metric('finechat_swaps_total{outcome="done"}', OPERATOR)
    return 0.0


Part = Callable[[Service, Headers], Coroutine[Any, Any, tuple[dict[str, Any], bool]]]
SMALL_HOUSE = {"API_MAX_QUEUE": "16"}
PARTS: dict[str, tuple[Part, dict[str, str]]] = {
    "streams": (streams, {}),
    "fuzz": (fuzz, {"API_MAX_MODEL_LEN": "36"}),
    "requests": (requests, {}),
    "rejected": (rejected, SMALL_HOUSE),
    "overload": (overload, SMALL_HOUSE),
    "swaps": (swaps, {}),
}
