"""Measure what a request costs the Redis that replicas share: CPU of the server, and the wait to be admitted.

    python bench/ledger.py     # three turns; writes bench/results/ledger.json

One ledger admits and settles requests of ten keys that have every kind of limit, 32 at once. CPU time is the
server's own figure (`INFO cpu`), so it does not contain other programs. Run it in the API's environment.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from api.errors import LimitsUnavailable  # noqa: E402 - run as a program, only its folder is on the path
from api.ledger.keys import Key, Limits  # noqa: E402
from api.ledger.redis import RedisLedger  # noqa: E402
from bench.front import hardware  # noqa: E402
from bench.redis_server import redis_server  # noqa: E402

RESULT = ROOT / "bench" / "results" / "ledger.json"
TURNS, KEYS, AT_ONCE, REQUESTS = 3, 10, 32, 8000
PLENTY = 10**9
LIMITS = Limits(
    requests_per_minute=PLENTY, tokens_per_minute=PLENTY, tokens_per_day=PLENTY, answers_at_once=PLENTY
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [asyncio.run(measure(Path(folder, str(turn)))) for turn in range(TURNS)]
    result = {"hardware": hardware(), "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(sentence(rows))


def sentence(rows: list[dict[str, Any]]) -> str:
    """Return the medians of all turns as docs/scale.md states them."""
    cpu_ms, wait_ms = (statistics.median(row[name] for row in rows) for name in ("redis_cpu_ms", "admit_ms"))
    return f"{cpu_ms:.3f} ms of its one core, and a request waits {wait_ms:.1f} ms for the question"


async def measure(folder: Path) -> dict[str, Any]:
    """Return the server's CPU time of one request and the median wait of `admit`, both in ms."""
    folder.mkdir()
    with redis_server(folder) as server:
        ledger = RedisLedger(server.url)
        ledger.start()
        async with Redis.from_url(server.url) as asking:
            secrets = [await ledger.create(f"key-{number}", LIMITS, 5) for number in range(KEYS)]
            keys = [await find(ledger, secret.encode()) for secret in secrets]
            await run(ledger, keys, AT_ONCE)  # connections and scripts
            before = await cpu_s(asking)
            waits_s = await run(ledger, keys, REQUESTS)
            await ledger.close()  # writes what is left
            used_s = await cpu_s(asking) - before
    return {
        "requests": REQUESTS,
        "at_once": AT_ONCE,
        "redis_cpu_ms": 1000 * used_s / REQUESTS,
        "admit_ms": 1000 * statistics.median(waits_s),
    }


async def find(ledger: RedisLedger, secret: bytes) -> Key:
    """Return the key once the ledger lets requests in."""
    deadline = time.monotonic() + 30
    while True:
        try:
            key = await ledger.find(secret)
            assert key is not None
            (await ledger.admit(key, 1, 1)).settle(0, 0)
            return key
        except LimitsUnavailable:
            assert time.monotonic() < deadline, "the ledger does not open"
            await asyncio.sleep(0.1)


async def run(ledger: RedisLedger, keys: list[Key], requests: int) -> list[float]:
    """Admit and settle `requests`, AT_ONCE together; return how long each waited to be admitted."""
    numbers, waits_s = iter(range(requests)), list[float]()

    async def client() -> None:
        for number in numbers:
            begun = time.perf_counter()
            reservation = await ledger.admit(keys[number % KEYS], 700, 1)
            waits_s.append(time.perf_counter() - begun)
            reservation.settle(500, 100)

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return waits_s


async def cpu_s(asking: Any) -> float:
    used = await asking.info("cpu")
    return float(used["used_cpu_sys"] + used["used_cpu_user"])


if __name__ == "__main__":
    main()
