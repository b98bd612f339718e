"""The stack as a Compose project in a container engine of its own."""

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY, ADMIN_KEY = "a-key-for-this-test-only", "another-key-for-this-test-only"
UP_WITHIN_S = 600


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
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-3000:]}"
    return done.stdout
