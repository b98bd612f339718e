"""Start the servers that bench/serving.py compares, each in its own process with the same engine arguments.

The arguments are the service's own. vLLM's server gets them as flags, and the engine without a front end as
they are. A server is ready once it has generated a token.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.client import Load

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S, POINT_TIMEOUT_S, STOP_TIMEOUT_S = 300.0, 240.0, 30.0
Arguments = dict[str, Any]


def arguments_of(artifacts: Path, preset: str) -> Arguments:
    """Return the engine arguments of this machine's service that differ from vLLM's defaults."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    from api.engine.artifact import read_artifact
    from api.engine.engine import Engine
    from api.engine.environment import set_engine_environment
    from api.settings import Settings

    set_engine_environment()  # also for the processes that are started here
    artifact = read_artifact(artifacts)
    settings = Settings(artifacts_dir=artifacts, preset=preset)
    [own] = Engine(settings, artifact).arguments()
    return {"model": own.model, **differences(own, AsyncEngineArgs(model=own.model))}


def differences(own: Any, default: Any) -> Arguments:
    """Return the fields of a dataclass that differ from `default`, including those of nested dataclasses."""
    found: Arguments = {}
    for field in dataclasses.fields(own):
        value, usual = getattr(own, field.name), getattr(default, field.name)
        if value != usual:
            found[field.name] = differences(value, usual) if dataclasses.is_dataclass(usual) else value
    return found


def flags(arguments: Arguments) -> list[str]:
    """Return the arguments as flags of vLLM's command line."""
    result: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            result.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            result += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return result


class Server:
    """A running server: `stock`, `ours` or `engine`. ready_s: seconds from its start to its first token.

    core: vLLM's processes, which descend from its first one. Raises: RuntimeError with the end of its log
    if it does not become ready.
    """

    def __init__(
        self, name: str, artifacts: Path, preset: str, extra: Arguments, port: int, log: Path
    ) -> None:
        self.name, self._port, self._log = name, port, log
        command = [sys.executable, "-m", "api", "serve"]
        if name == "stock":
            command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
            command += flags({**arguments_of(artifacts, preset), **extra})
            command += ["--host", "127.0.0.1", "--port", str(port)]
        elif name == "engine":
            command = [sys.executable, str(ROOT / "bench" / "direct.py"), json.dumps(extra)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "ARTIFACTS_DIR": str(artifacts), "API_PORT": str(port), "API_PRESET": preset,
        }  # fmt: skip
        begun = time.monotonic()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stderr=output,
                stdout=subprocess.PIPE if name == "engine" else output, start_new_session=True, text=True,
            )  # fmt: skip
        try:
            self._wait_until_ready(begun)
        except BaseException:
            self.stop()
            raise
        self.ready_s = round(time.monotonic() - begun, 1)
        self._core = psutil.Process(self._process.pid).children(recursive=True)

    @property
    def pids(self) -> dict[str, int]:
        """Return the CPU seconds of the front end and of vLLM's busiest process."""
        core = max(self._core, key=_cpu_s)
        return {"front": self._process.pid, "core": core.pid}

    def measure(self, load: Load) -> dict[str, Any]:
        """Return a row's figures, including the number of cores that each part kept busy."""
        before = self._cpu()
        if self.name == "engine":
            line = self._line(json.dumps(vars(load)))
        else:
            options = [f"--{name}={value}" for name, value in vars(load).items()]
            client = [
                sys.executable,
                str(ROOT / "bench" / "client.py"),
                f"--url=http://127.0.0.1:{self._port}",
            ]
            done = subprocess.run(
                [*client, *options], capture_output=True, text=True, timeout=POINT_TIMEOUT_S
            )
            if done.returncode:
                raise RuntimeError(f"{self.name}: {done.stderr[-1500:]}")
            line = done.stdout
        row: dict[str, Any] = json.loads(line)
        used = {name: round((now - before[name]) / row["wall_s"], 3) for name, now in self._cpu().items()}
        return {**used, **row}

    def stop(self) -> None:
        """End the server and all its processes."""
        family = [self._process.pid, *(child.pid for child in self._children())]
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        for pid in family:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                member = psutil.Process(pid)
                member.kill()
                member.wait(10)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self._process.pid).children(recursive=True))
        return []

    def _cpu(self) -> dict[str, float]:
        return {
            "front_cores": _cpu_s(psutil.Process(self._process.pid)),
            "core_cores": sum(map(_cpu_s, self._core)),
        }

    def _wait_until_ready(self, begun: float) -> None:
        while time.monotonic() - begun < START_TIMEOUT_S and self._process.poll() is None:
            if self.name == "engine":
                if self._line() == "READY\n":
                    return
            elif _answers(self._port):
                return
            time.sleep(0.25)
        raise RuntimeError(f"{self.name} did not get ready:\n{self._log.read_text(errors='replace')[-3000:]}")

    def _line(self, asked: str = "") -> str:
        assert self._process.stdin and self._process.stdout
        if asked:
            print(asked, file=self._process.stdin, flush=True)
        while (line := self._process.stdout.readline()) and not line.startswith(("READY", "{")):
            pass  # the output of libraries
        return line


def _answers(port: int) -> bool:
    """Return whether a token comes. Raises: RuntimeError if the server has failed."""
    url = f"http://127.0.0.1:{port}"
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
            model = json.load(answer)["data"][0]["id"]
        asked = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(asked).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        if error.code == 500:
            raise RuntimeError(f"{error.url}: {error.read().decode()[:500]}") from None
        return False
    except OSError:
        return False


def _cpu_s(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


@contextlib.contextmanager
def profiled(pids: dict[str, int], folder: Path | None, label: str) -> Iterator[None]:
    """Record the processes' stacks with py-spy until the body ends, as folder/LABEL-NAME.txt."""
    running = []
    for name, pid in pids.items() if folder else ():
        command = [
            "py-spy",
            "record",
            "--pid",
            str(pid),
            "--duration",
            "20",
            "--rate",
            "200",
            "--nonblocking",
        ]
        command += ["--format", "raw", "--output", f"{folder}/{label}-{name}.txt"]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
        yield
    finally:
        for recorder in running:
            recorder.send_signal(signal.SIGINT)
            recorder.wait(60)
