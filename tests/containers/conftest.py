"""The stack in a container engine of its own: `make test-containers` starts that and runs these inside.

With WHOLE_QUICKSTART=1 the trainer makes the quickstart's model, not a shorter one.
"""

import os
import shutil
import time
from collections.abc import Iterator

import pytest

from bench.load import free_port
from tests.support import ROOT
from tests.support.containers import ADMIN_KEY, KEY, Stack, docker

TREE = ("api", "trainer", "frontend", "monitoring", "bench", "docs", "tests/system", "tests/containers")
FILES = ("LICENSE", ".dockerignore", "Dockerfile.cpu", "Dockerfile.gpu",
         "docker-compose.yml", "docker-compose.cpu.yml")  # fmt: skip
COMPOSE_FILES = ["docker-compose.yml", "docker-compose.cpu.yml"]
if not os.environ.get("WHOLE_QUICKSTART"):
    COMPOSE_FILES.append("tests/containers/short.yml")


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
    found.seconds["build"] = time.monotonic() - begun
    print(f"build: {found.seconds['build']:.0f} s", flush=True)
    yield found
    found.compose("down", "--volumes", "--remove-orphans")
    assert docker("ps", "--all", "--quiet") == "", "`down` leaves no container"
