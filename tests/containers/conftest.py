"""The stack in a container engine of its own: `make test-containers` starts that and runs these inside.

With WHOLE_QUICKSTART=1 the trainer makes the quickstart's model, not a shorter one.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TREE = ("api", "trainer", "frontend", "monitoring", "bench", "docs", "tests/system", "tests/containers")
FILES = ("LICENSE", ".dockerignore", "Dockerfile.cpu", "Dockerfile.gpu",
         "docker-compose.yml", "docker-compose.cpu.yml")  # fmt: skip
KEY, ADMIN_KEY = "a-key-for-this-test-only", "another-key-for-this-test-only"
UP_WITHIN_S = 600
COMPOSE_FILES = ["docker-compose.yml", "docker-compose.cpu.yml"]
if not os.environ.get("WHOLE_QUICKSTART"):
    COMPOSE_FILES.append("tests/containers/short.yml")


@dataclass
class Stack:
    """A copy of the tree as a Compose project, and what the first start took."""

    tree: Path
    environment: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def page_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['FRONTEND_PORT']}"

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['API_PORT']}"

    def try_compose(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "compose", *arguments],
            cwd=self.tree,
            env={**self.environment, **settings},
            capture_output=True,
            text=True,
            timeout=UP_WITHIN_S,
        )

    def compose(self, *arguments: str, **settings: str) -> str:
        done = self.try_compose(*arguments, **settings)
        assert done.returncode == 0, f"{arguments}: {done.stderr[-3000:]}\n{self.logs()[-3000:]}"
        return done.stdout

    def logs(self, service: str = "trainer") -> str:
        return self.try_compose("logs", "--no-log-prefix", service).stdout

    def in_api(self, program: str) -> str:
        return self.compose("exec", "-T", "api", "python", "-c", program)

    def inspect(self, service: str) -> Any:
        container = self.compose("ps", "--all", "--quiet", service).strip()
        return json.loads(docker("inspect", container))[0]

    def up(self, name: str) -> None:
        begun = time.monotonic()
        self.compose("up", "--detach", "--build", "--wait")
        self.seconds[name] = time.monotonic() - begun
        print(f"{name}: {self.seconds[name]:.0f} s", flush=True)


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Images built; nothing started yet."""
    assert "DOCKER_HOST" in os.environ, "run these by `make test-containers`"
    tree = tmp_path_factory.mktemp("stack")
    for folder in TREE:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    secrets = {"API_KEY_FILE": KEY, "API_ADMIN_KEY_FILE": ADMIN_KEY}
    for name, secret in secrets.items():
        (tree / name).write_text(secret)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("API_", "FRONTEND_"))},
        **{name: str(tree / name) for name in secrets},
        "COMPOSE_FILE": ":".join(COMPOSE_FILES),
        "API_PORT": str(free_port()),
        "FRONTEND_PORT": str(free_port()),
    }
    found = Stack(tree, environment)
    begun = time.monotonic()
    found.compose("build")
    print(f"build: {time.monotonic() - begun:.0f} s", flush=True)
    yield found
    found.compose("down", "--volumes", "--remove-orphans")
    assert docker("ps", "--all", "--quiet") == "", "`down` leaves no container"
