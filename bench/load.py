"""Start a service and load it with cheap clients, for bench/endurance.py and tests/system.

Standard library only. The client speaks HTTP/1.1 itself, so that its requests can be wrong, slow or
incomplete, and so that a thousand clients leave the two cores to the service.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "api" / "bin" / "python"
CHAT = "/v1/chat/completions"
THINGS = "river clock garden letter bridge candle market winter engine mirror pocket ladder".split()
VERBS = "Describe Explain Praise Compare Draw Remember Sell Mend Find Count".split()
Headers = Mapping[str, str]


class Service:
    """`python -m api` on its own port. settings: environment variables."""

    def __init__(self, artifacts: Path, log: Path, settings: Headers) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.artifacts = artifacts
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    @property
    def model(self) -> str:
        manifest = json.loads((self.artifacts / "models" / "current" / "manifest.json").read_text())
        return str(manifest["name"])

    def start(self, timeout_s: float = 180) -> float:
        """Start the service; return the seconds until it is ready."""
        begun = time.monotonic()
        own = {"ARTIFACTS_DIR": str(self.artifacts), "API_PORT": str(self.port), **self.settings}
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | own
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(PYTHON), "-m", "api"], cwd=ROOT, env=environment, stdout=output, stderr=output
            )
        while not self.is_ready():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() - begun < timeout_s, self.log.read_text()[-3000:]
            time.sleep(0.1)
        return time.monotonic() - begun

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/health/ready")[0] == 200
        return False

    def get(self, path: str, headers: Headers = {}) -> tuple[int, str]:  # noqa: B006 - read only
        request = urllib.request.Request(self.url + path, headers=dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, headers: Headers = {}) -> float:  # noqa: B006
        for line in self.get("/metrics", headers)[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")

    def engine_core(self) -> int:
        [core] = [pid for pid in self.engine() if b"EngineCore" in cmdline(pid)]
        return core

    def engine(self) -> list[int]:
        """Return the ids of vLLM's processes: a core, and a worker that computes."""
        return [pid for pid in descendants(self.pid) if cmdline(pid).startswith(b"VLLM::")]

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""
    seconds: float = 0.0

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """Return the code in OpenAI's error body."""
        return str(self.json["error"]["code"])


class Connection:
    """One TCP connection for one request after another; answers are read whole or in pieces."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator["Connection"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def send(self, method: str, path: str, body: bytes = b"", headers: Headers = {}) -> None:  # noqa: B006
        lines = {"host": "test", "content-length": str(len(body)), "content-type": "application/json"}
        fields = "".join(f"{name}: {value}\r\n" for name, value in (lines | dict(headers)).items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{fields}\r\n".encode() + body)
        await self.writer.drain()

    async def head(self) -> Answer:
        status = int((await self.reader.readline()).split()[1])
        headers = {}
        while line := (await self.reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return Answer(status, headers)

    async def pieces(self, answer: Answer) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises: IncompleteReadError if it ends too soon."""
        if answer.headers.get("transfer-encoding") != "chunked":
            yield await self.reader.readexactly(int(answer.headers.get("content-length", 0)))
            return
        while size := int(await self.reader.readline(), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readline()

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Headers = {}) -> Answer:  # noqa: B006
        begun = time.perf_counter()
        await self.send(method, path, body, headers)
        answer = await self.head()
        answer.body = b"".join([piece async for piece in self.pieces(answer)])
        answer.seconds = time.perf_counter() - begun
        return answer


async def ask(port: int, body: bytes, headers: Headers = {}, path: str = CHAT) -> Answer:  # noqa: B006
    async with Connection.to(port) as connection:
        return await connection.ask("POST", path, body, headers)


async def good(service: Service, asked: bytes, headers: Headers) -> Answer:
    answer = await ask(service.port, asked, headers)
    assert answer.status == 200, answer
    return answer


async def at_once(most: int, count: int, one: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """Call `one` with every number below `count`, at most `most` at a time."""
    slots = asyncio.Semaphore(most)

    async def in_a_slot(number: int) -> Any:
        async with slots:
            return await one(number)

    return await asyncio.gather(*(in_a_slot(number) for number in range(count)))


def prompt(number: int) -> list[dict[str, str]]:
    thing, verb = THINGS[number % 12], VERBS[number // 12 % 10]
    return [{"role": "user", "content": f"{verb} the {thing} number {number}."}]


def body(service: Service, number: int = 0, **fields: Any) -> bytes:
    return json.dumps(
        {"model": service.model, "messages": prompt(number), "temperature": 0} | fields
    ).encode()


def events(body: bytes) -> list[Any]:
    """Return the JSON events of a whole stream, whose last event must be [DONE]."""
    *lines, done, rest = body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b""), body[-300:]
    return [json.loads(event.removeprefix(b"data: ")) for event in lines]


def descendants(pid: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _read(stat).rpartition(b")")[2].split()
        if fields:
            parents[int(stat.parent.name)] = int(fields[1])
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def cmdline(pid: int) -> bytes:
    return _read(Path(f"/proc/{pid}/cmdline"))


def memory_mib(pid: int) -> float:
    """Return the proportional set size: shared pages are divided among the processes that share them."""
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of all threads of one process, without its children."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
