"""`make test`: set up what the tests need and run them. `make check` runs only the first stage, `make
test-containers` only the last, and `make test-fast` only the unit tests that are not marked slow. `make
test-clients` is no part of it: it installs every client of bench/roster.py and runs it against a service.

Each service's unit tests run in that service's own environment; Helm renders the chart. The system test
runs `make up` for real, with a real browser. The container tests run `docker compose up` in an engine of
their own, where one may be run (root on Debian) and SKIP_CONTAINERS is not set. Every runner's output is
printed, then a line with count and time for each suite, and one closing line over all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
# The files that mypy reads together, with the environment that has their types and with MYPYPATH.
TYPED = (
    (
        "trainer", "",
        "trainer tests/trainer tests/support/trainer.py tests/support/hub.py tests/support/hub_reader.py "
        "bench/sweep.py bench/engines.py bench/training.py bench/training_run.py bench/curves.py "
        "bench/sweep_time.py bench/turns.py bench/tool_skill.py bench/merge_check.py bench/models.py "
        "tests/support/families.py tests/support/ends.py tests/support/tool_form.py "
        "tests/support/gguf_models.py tests/support/go_template.py",
    ),
    (
        "api", "",
        "api tests/api tests/support/api.py tests/support/replicas.py "
        "tests/support/fields.py bench/fuzz_hooks.py bench/api_fields.py "
        "bench/front.py bench/front_server.py bench/serving.py bench/direct.py bench/stacks.py "
        "bench/random_model.py bench/schemas.py bench/capacity.py bench/capacity_check.py bench/fleet.py "
        "bench/ledger.py",
    ),
    (
        "frontend", "frontend",
        "frontend tests/frontend tests/support/fake_api.py tests/support/votes.py bench/page.py",
    ),
    (
        "tests", "scripts",
        "scripts bench/quickstart.py bench/load.py bench/endurance.py bench/promises.py "
        "bench/pictures.py bench/redis_server.py bench/clients.py bench/roster.py tests/system "
        "tests/support/system.py tests/support/browsing.py tests/support/scripted_api.py",
    ),
    ("tests", "", "tests/containers tests/support/containers.py"),
    ("tests", "", "tests/kubernetes tests/repository tests/support/kubernetes.py"),
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """The tests of one suite."""

    name: str
    passed: int
    failed: int
    skipped: int
    seconds: float = 0.0
    covered: str = ""

    def line(self) -> str:
        covered = f", {self.covered}% of the lines covered" if self.covered else ""
        return (
            f"{self.name}: {_counts(self.passed, self.failed, self.skipped)} in {self.seconds:.0f} s{covered}"
        )


def main(arguments: list[str]) -> int:
    """Return 0 if everything passed, otherwise 1."""
    fast = arguments == ["fast"]
    try:
        check_python()
        install_system_packages(browser=arguments not in (["check"], ["fast"], ["clients"]))
        if arguments == ["containers"]:
            build("tests")
            return _close([_containers()])
        if arguments == ["clients"]:
            return _clients()
        _build_environments(fast)
    except SetupError as error:
        say(f"make test: {error}")
        return 1
    if fast:
        return _close(_fast())
    checked = _check()
    if arguments == ["check"]:
        return 0 if checked else 1
    results = [_suite(name, name) for name in SERVICES]
    results += [_suite(folder, "tests") for folder in ("repository", "kubernetes", "system")]
    reason = "SKIP_CONTAINERS is set" if os.environ.get("SKIP_CONTAINERS") else private_engine.why_not()
    if reason:
        say(f"tests/containers: skipped, {reason}")
        results.append(Result("tests/containers", 0, 0, 1))
    else:
        results.append(_containers())
    return _close(results, checked)


def _build_environments(fast: bool) -> None:
    """Build what the tests need. Raises: SetupError."""
    for name in (*SERVICES, "tests"):
        build(name)
    for name in SERVICES:
        add(name, ROOT / "tests" / "pytest.txt")
    add("api", ROOT / "tests" / "fuzz.txt")
    add("trainer", ROOT / "tests" / "llama-cpp.txt")  # which the exports are held against
    if not fast:
        add("trainer", BENCHMARKS)
        add("trainer", RAY)


def _close(results: list[Result], checked: bool = True) -> int:
    """Print a line for each suite and the closing line; return the exit code."""
    for result in results:
        say(result.line())
    failed = sum(result.failed for result in results) + (0 if checked else 1)
    say(_counts(sum(r.passed for r in results), failed, sum(r.skipped for r in results)))
    return 1 if failed else 0


def _counts(passed: int, failed: int, skipped: int) -> str:
    return f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else "")


def _check() -> bool:
    """Check format, lint, layers and types; all of them run, so that one call shows everything."""
    bin_dir = VENVS / "tests" / "bin"
    ruff, mypy, layers = (str(bin_dir / name) for name in ("ruff", "mypy", "lint-imports"))
    passed = [
        _run([ruff, "format", "--check", "."]),
        _run([ruff, "check", "."]),
        _run([layers, "--no-cache"]),
    ]
    for environment, mypy_path, places in TYPED:
        passed.append(_run([mypy, "--python-executable", python(environment), *places.split()], mypy_path))
    return all(passed)


def _clients() -> int:
    """Run other people's clients against the model that `make up` trained. Raises: SetupError."""
    artifacts = Path(os.environ.get("ARTIFACTS_DIR", ROOT / "artifacts"))
    if not (artifacts / "models" / "current").exists():
        raise SetupError(f"{artifacts} has no model: run `make up` first, or name one by ARTIFACTS_DIR")
    build("api")
    build("tests")
    return 0 if _run([python("tests"), "bench/clients.py", "--artifacts", str(artifacts)]) else 1


def _containers() -> Result:
    return _suite("containers", "tests", within=[sys.executable, str(ROOT / "scripts" / "private_engine.py")])


def _suite(folder: str, environment: str, within: Sequence[str] = ()) -> Result:
    """Run tests/<folder>. within: a command that runs the runner."""
    report = _report(folder)
    begun = time.monotonic()
    _run([*within, python(environment), "-m", "pytest", f"tests/{folder}", f"--junit-xml={report}"])
    return _read(folder, report, time.monotonic() - begun)


def _fast() -> list[Result]:
    """Run the unit tests that are not marked slow, two suites at a time, with coverage."""
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(_fast_suite, SERVICES))
    return [*results, _suite("repository", "tests")]


def _fast_suite(service: str) -> Result:
    report, output, data = (_report(f"{service}.fast", end) for end in ("xml", "txt", "coverage"))
    coverage = [python(service), "-m", "coverage"]
    begun = time.monotonic()
    command = [
        *coverage, "run", f"--data-file={data}", f"--source={service}",
        "-m", "pytest", "-m", "not slow", f"tests/{service}", f"--junit-xml={report}",
    ]  # fmt: skip
    with output.open("w") as file:
        done = subprocess.run(command, cwd=ROOT, env=service_environment(), stdout=file, stderr=file)
    seconds = time.monotonic() - begun
    if done.returncode:
        say(output.read_text())
    shown = [*coverage, "report", f"--data-file={data}"]
    table = subprocess.run(shown, cwd=ROOT, capture_output=True, text=True).stdout
    say(table)
    return _read(service, report, seconds, covered=table.split()[-1].rstrip("%") if table else "")


def _report(name: str, end: str = "xml") -> Path:
    """Return the path of a report that does not exist yet."""
    REPORTS.mkdir(exist_ok=True)
    report = REPORTS / f"{name}.{end}"
    report.unlink(missing_ok=True)
    return report


def _read(folder: str, report: Path, seconds: float, covered: str = "") -> Result:
    """Read a runner's report; one that left none, or ran nothing, counts as one failure."""
    name = f"tests/{folder}"
    suite = ElementTree.parse(report).getroot().find("testsuite") if report.is_file() else None
    if suite is None:
        return Result(name, 0, 1, 0, seconds)
    total, failures, errors, skipped = (
        int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")
    )
    bad = failures + errors
    return Result(name, total - bad - skipped, bad if total else 1, skipped, seconds, covered)


def _run(command: list[str], mypy_path: str = "") -> bool:
    say("$ " + " ".join(part.replace(f"{ROOT}{os.sep}", "") for part in command))
    environment = {**service_environment(), "MYPYPATH": mypy_path}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
