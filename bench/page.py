"""Measure how many chats one page process carries before one delays another.

    .venv/frontend/bin/python bench/page.py        # writes bench/results/page.json and prints a table

The program starts frontend/app.py in front of an API that gives every chat 25 tokens a second at once, and
sends what so many browsers would send, through Gradio's own routes. The time of a chat beyond the
API's is the page's. The browser's drawing is not included.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "page.json"
API_PORT, PAGE_PORT = 8393, 8394
CHATS = (1, 10, 50)
TOKENS, TOKENS_PER_S = 200, 25


async def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    server = await asyncio.start_server(answer, "127.0.0.1", API_PORT)
    rows = []
    for chats in CHATS:
        async with page() as (client, process):
            config = (await client.get("/config")).json()
            for session in range(chats):
                await open_page(client, config, str(session))
            cpu = cpu_s(process.pid)
            updates = await asyncio.gather(*(chat(client, config, str(n)) for n in range(chats)))
            rows.append(summary(chats, updates, cpu_s(process.pid) - cpu, process.pid))
    server.close()
    result = {
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "tokens": TOKENS,
        "tokens_per_s": TOKENS_PER_S,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve the API: a model list, and for a chat so many tokens at the given pace."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    if "/chat/completions" not in head:
        status = "200 OK" if "/v1/models" in head else "404 Not Found"
        body = b'{"data": [{"id": "model"}]}'
        writer.write(b"HTTP/1.1 %b\r\nconnection: close\r\n\r\n%b" % (status.encode(), body))
    else:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        begun = time.monotonic()
        for token in range(TOKENS):
            await asyncio.sleep(max(0, begun + token / TOKENS_PER_S - time.monotonic()))
            writer.write(piece(f"word{token} ", None))
        writer.write(piece("", "stop") + b"data: [DONE]\n\n")
    await writer.drain()
    writer.close()


def piece(text: str, finish_reason: str | None) -> bytes:
    choice = {"delta": {"content": text}, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


@asynccontextmanager
async def page() -> AsyncIterator[tuple[httpx.AsyncClient, subprocess.Popen[bytes]]]:
    """Start a new page process and yield a client of it."""
    environment = {
        **os.environ,
        "FRONTEND_API_URL": f"http://127.0.0.1:{API_PORT}",
        "FRONTEND_PORT": str(PAGE_PORT),
        "FRONTEND_VISITOR_ANSWERS": "1000",
        "FRONTEND_VISITOR_MESSAGES_PER_MINUTE": "1000",
    }
    process = subprocess.Popen([sys.executable, str(ROOT / "frontend/app.py")], env=environment)
    url, limits = f"http://127.0.0.1:{PAGE_PORT}", httpx.Limits(max_connections=None)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            while True:
                try:
                    await client.get("/config")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.2)
            yield client, process
    finally:
        process.terminate()
        process.wait()


@dataclass
class Event:
    """One of Gradio's events: its number, the ids of its inputs and outputs, and the inputs' values."""

    number: int
    inputs: list[int]
    outputs: list[int]
    values: list[Any]


def event(config: Any, kind: str, elem_id: str = "", of: Event | None = None) -> Event:
    """Return the event of that kind, on that element or after another event."""
    props = {part["id"]: part["props"] for part in config["components"]}
    [found] = [
        known
        for known in config["dependencies"]
        if any(
            target[1] == kind and (not elem_id or props[target[0]].get("elem_id") == elem_id)
            for target in known["targets"]
        )
        and (of is None or known["trigger_after"] == of.number)
    ]
    values = [
        "Go." if props[id_].get("elem_id") == "chat-input" else props[id_].get("value")
        for id_ in found["inputs"]
    ]
    return Event(found["id"], found["inputs"], found["outputs"], values)


def body(of: Event, session: str) -> dict[str, Any]:
    """Return what a browser sends for the event."""
    return {"fn_index": of.number, "data": of.values, "session_hash": session, "event_data": None}


async def open_page(client: httpx.AsyncClient, config: Any, session: str) -> None:
    """Load the page as a browser does. Gradio then makes its session, which costs more than any answer."""
    load = body(event(config, "tick"), session)
    (await client.post("/gradio_api/run/predict", json=load)).raise_for_status()


async def chat(client: httpx.AsyncClient, config: Any, session: str) -> list[float]:
    """Return the seconds from asking to each update of the conversation; the last is its end."""
    begun, updates = time.monotonic(), []
    asking = event(config, "click", "send")
    asked = await client.post("/gradio_api/run/predict", json=body(asking, session))
    of = dict(zip(asking.outputs, asked.json()["data"], strict=True))
    answering = event(config, "then", of=asking)
    answering.values = [
        of.get(id_, value) for id_, value in zip(answering.inputs, answering.values, strict=True)
    ]
    (await client.post("/gradio_api/queue/join", json=body(answering, session))).raise_for_status()
    async with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        async for line in stream.aiter_lines():
            if not line.startswith("data: "):
                continue
            message = json.loads(line.removeprefix("data: "))
            if message["msg"] == "process_generating" and "word" in json.dumps(message["output"]["data"][0]):
                updates.append(time.monotonic() - begun)
            if message["msg"] == "process_completed":
                assert message["success"], message
                break
    return updates


def summary(chats: int, updates: list[list[float]], page_cpu_s: float, pid: int) -> dict[str, Any]:
    """Return one row of the result."""
    firsts = sorted(times[0] for times in updates)
    gaps = sorted(after - before for times in updates for before, after in itertools.pairwise(times))
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {
        "chats": chats,
        "first_text_s": {"median": round(statistics.median(firsts), 3), "most": round(firsts[-1], 3)},
        "between_updates_s": {
            "median": round(statistics.median(gaps), 3),
            "p99": round(gaps[int(len(gaps) * 0.99)], 3),
        },
        "longer_than_the_api_s": round(max(times[-1] for times in updates) - (TOKENS - 1) / TOKENS_PER_S, 3),
        "page_cpu_s_per_s": round(page_cpu_s / (TOKENS / TOKENS_PER_S), 2),
        "memory_mib": memory // 1024,
    }


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    asyncio.run(main())
