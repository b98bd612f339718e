"""Measure `make up` in a fresh clone from outside: the time a newcomer waits, and what it costs.

    python bench/quickstart.py            # writes bench/results/quickstart.json and prints a table

The program clones this repository into a temporary folder, where nothing is installed. Packages come from
the caches of pip and uv if they have them. It runs `make up`, stops it and runs it again. Memory is the
peak over time of the sum of proportional set sizes (PSS) of a part's processes.
"""

import argparse
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "quickstart.json"
PORTS = {"API_PORT": "8391", "FRONTEND_PORT": "8392"}
PARTS = {"training": "-m trainer", "API": "-m api", "page": "frontend/app.py"}
GIVE_UP_AFTER_S = 1800
SETTING = ("name", "validation_score", "ci_low", "ci_high", "difference_to_best")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "finechat"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        first = measure(clone)
        second = measure(clone)
        manifest = json.loads((clone / "artifacts/models/current/manifest.json").read_text())
    settings = manifest["selection"]["settings"]
    result = {
        "hardware": manifest["hardware"],
        "versions": manifest["packages"],
        "first_start": first,
        "second_start": second,
        "selection": manifest["selection"]["reason"],
        "settings": [{k: setting[k] for k in SETTING} for setting in settings],
        "train_seconds": manifest["training"]["train_seconds"],
        "metrics": manifest["evaluation"]["metrics"],
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def measure(clone: Path) -> dict[str, Any]:
    """Run `make up` to its first token and to its end."""
    log = clone.parent / "up.log"
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "up"], cwd=clone, env={**os.environ, **PORTS}, stdout=output, stderr=subprocess.STDOUT
        )
    peaks: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peaks, done))
    watcher.start()
    try:
        while "\nReady: " not in (text := log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() - begun > GIVE_UP_AFTER_S:
                raise SystemExit(f"make up did not get ready:\n{text[-2000:]}")
            time.sleep(0.1)
        ready_s = time.monotonic() - begun
        time.sleep(2)
    finally:
        done.set()
        watcher.join()
        stopping = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    return {
        "first_token_after_s": round(ready_s, 1),
        "stopped_after_s": round(time.monotonic() - stopping, 1),
        "peak_memory_gib": {part: round(peak, 2) for part, peak in peaks.items() if peak},
        "stages": [line.strip() for line in text.splitlines() if " done in " in line or ": done in" in line],
    }


def watch(root: int, peaks: dict[str, float], done: threading.Event) -> None:
    """Update each part's peak twice a second. A child belongs to the part of its ancestor."""
    while not done.wait(0.5):
        now: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        add_memory(root, "", now)
        for part, gib in now.items():
            peaks[part] = max(peaks[part], gib)


def add_memory(pid: int, part: str, totals: dict[str, float]) -> None:
    """Add the PSS of a process and its descendants to the part they belong to."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for t in tasks for c in (t / "children").read_text().split()]
    except (OSError, ValueError):  # the process has ended
        return
    part = part or next((name for name, mark in PARTS.items() if mark in command), "")
    for line in rollup.splitlines():
        if part and line.startswith("Pss:"):
            totals[part] += int(line.split()[1]) / 2**20
    for child in children:
        add_memory(child, part, totals)


def table(result: dict[str, Any]) -> str:
    """Return the result in Markdown, as README.md shows it."""
    hardware, first, second = result["hardware"], result["first_start"], result["second_start"]
    memory = first["peak_memory_gib"]
    rows = [
        ("`make up` in a fresh clone, to the first streamed token", f"{first['first_token_after_s']:.0f} s"),
        ("`make up` again", f"{second['first_token_after_s']:.0f} s"),
        ("memory at most: training, API, page", ", ".join(f"{memory[p]:.1f}" for p in PARTS) + " GiB"),
    ]
    names = {
        "loss": "loss on held-out objects (nats a token)",
        "exact_match": "held-out cards exact to the token",
        "general_chat_loss": "loss on general chat (nats a token)",
        "followup_loss": "the same after a card",
    }
    by_turn = any("turn" in metric for metric in result["metrics"])
    for m in result["metrics"]:
        if m["name"] not in names or (by_turn and ("turn" in m) != (m["name"] == "exact_match")):
            continue  # exactness by turn and loss over all of them say enough here
        before, after = m["base"], m["tuned"]
        turn = f", turn {m['turn']}" if "turn" in m else ""
        later = " and later" if "last_turn" in m else ""
        rows.append(
            (
                f"{names[m['name']]}{turn}{later}, n = {m['n']}",
                f"{before['value']:.3f} → {after['value']:.3f} [{after['low']:.3f}, {after['high']:.3f}]",
            )
        )
    head = f"Measured on {hardware['cores']} cores ({hardware['processor']}), no GPU:\n\n| | |\n|---|---|\n"
    return head + "\n".join(f"| {what} | {value} |" for what, value in rows)


if __name__ == "__main__":
    main()
