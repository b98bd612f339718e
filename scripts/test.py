"""`make test`: sets up what the tests need and runs them; `make check` only the first stage, and
`make test-containers` only the last.

Each service's unit tests run in that service's own environment; Helm renders the chart. The system test
runs `make up` for real, with a real browser. The container tests run `docker compose up` in an engine of
their own, where one may be run (root on Debian) and SKIP_CONTAINERS is not set. Prints what every runner
prints, and one closing line over all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import private_engine
from environments import (
    BENCHMARKS,
    RAY,
    ROOT,
    VENVS,
    SetupError,
    add,
    build,
    check_python,
    install_system_packages,
    python,
    say,
    service_environment,
)

SERVICES = ("trainer", "api", "frontend")
REPORTS = VENVS / "reports"
# What mypy reads together: in the types of which environment, with what on its path.
TYPED = (
    (
        "trainer", "",
        "trainer tests/trainer tests/support/trainer.py bench/sweep.py bench/engines.py "
        "bench/training.py bench/curves.py bench/sweep_time.py",
    ),
    (
        "api", "",
        "api tests/api tests/support/api.py bench/fuzz_hooks.py bench/front.py bench/serving.py "
        "bench/direct.py bench/stacks.py bench/random_model.py bench/capacity.py bench/capacity_check.py "
        "bench/fleet.py",
    ),
    ("frontend", "frontend", "frontend tests/frontend tests/support/fake_api.py bench/page.py"),
    (
        "tests", "scripts",
        "scripts bench/quickstart.py bench/load.py bench/endurance.py bench/pictures.py "
        "bench/redis_server.py tests/system tests/support/system.py tests/support/browsing.py "
        "tests/support/scripted_api.py",
    ),
    ("tests", "", "tests/containers tests/support/containers.py"),
    ("tests", "", "tests/kubernetes tests/support/kubernetes.py"),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """0 if everything passed, 1 otherwise."""
    try:
        check_python()
        install_system_packages(browser=arguments != ["check"])
        if arguments == ["containers"]:
            build("tests")
            return _close([_containers()], checked=True)
        for name in (*SERVICES, "tests"):
            build(name)
        for name in SERVICES:
            add(name, ROOT / "tests" / "pytest.txt")
        add("trainer", BENCHMARKS)
        add("trainer", RAY)
        add("api", ROOT / "tests" / "fuzz.txt")
    except SetupError as error:
        say(f"make test: {error}")
        return 1
    checked = _check()
    if arguments == ["check"]:
        return 0 if checked else 1
    results = [_suite(name, name) for name in SERVICES]
    results += [_suite(folder, "tests") for folder in ("kubernetes", "system")]
    reason = "SKIP_CONTAINERS is set" if os.environ.get("SKIP_CONTAINERS") else private_engine.why_not()
    if reason:
        say(f"tests/containers: skipped, {reason}")
        results.append((0, 0, 1))
    else:
        results.append(_containers())
    return _close(results, checked)


def _close(results: list[tuple[int, int, int]], checked: bool) -> int:
    """The closing line, and the exit code."""
    passed, failed, skipped = (sum(column) for column in zip(*results, strict=True))
    failed += 0 if checked else 1
    say(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


def _check() -> bool:
    """Format, lint and types; all are run, so that one call shows everything."""
    bin_dir = VENVS / "tests" / "bin"
    ruff, mypy = str(bin_dir / "ruff"), str(bin_dir / "mypy")
    passed = [_run([ruff, "format", "--check", "."]), _run([ruff, "check", "."])]
    for environment, mypy_path, places in TYPED:
        passed.append(_run([mypy, "--python-executable", python(environment), *places.split()], mypy_path))
    return all(passed)


def _containers() -> tuple[int, int, int]:
    return _suite("containers", "tests", within=[sys.executable, str(ROOT / "scripts" / "private_engine.py")])


def _suite(folder: str, environment: str, within: Sequence[str] = ()) -> tuple[int, int, int]:
    """(passed, failed, skipped) of tests/<folder>. within: a command that runs the runner."""
    REPORTS.mkdir(exist_ok=True)
    report = REPORTS / f"{folder}.xml"
    report.unlink(missing_ok=True)
    begun = time.monotonic()
    _run([*within, python(environment), "-m", "pytest", f"tests/{folder}", f"--junit-xml={report}"])
    say(f"tests/{folder}: {time.monotonic() - begun:.0f} s")
    return _count(report)


def _count(report: Path) -> tuple[int, int, int]:
    """A runner that left no report, or ran nothing, counts as one failure."""
    if not report.is_file():
        return 0, 1, 0
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        return 0, 1, 0
    total, failures, errors, skipped = (
        int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")
    )
    bad = failures + errors
    return total - bad - skipped, bad if total else 1, skipped


def _run(command: list[str], mypy_path: str = "") -> bool:
    say("$ " + " ".join(part.replace(f"{ROOT}{os.sep}", "") for part in command))
    environment = {**service_environment(), "MYPYPATH": mypy_path}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
