"""Install what a bare machine lacks: system packages, and one virtual environment for each service.

Only the standard library. Every function returns at once if there is nothing to do. An environment carries
a stamp of the lock that it was built from. The stamp is written last, so an interrupted environment is
built again (from uv's cache, without a new download).
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venv"
UV = "uv==0.13.9"
OLDEST, NEWEST = (3, 11), (3, 12)
NEEDED_DISK_GIB = 6
BENCHMARKS = ROOT / "trainer" / "requirements-benchmarks.txt"
RAY = ROOT / "trainer" / "requirements-ray.txt"
# Imported once after installation. This proves that the environment works, and it compiles the modules,
# which would otherwise delay the first start.
PROOFS = {
    "trainer": "import trl, peft, datasets, gguf",
    "api": "import vllm.v1.engine.async_llm, fastapi, uvicorn",
    "frontend": "import gradio",
    "tests": "import playwright, openai",
}


class SetupError(Exception):
    """One line that says what failed and what to do."""


def say(line: str) -> None:
    print(line, flush=True)


def check_python() -> None:
    """Check that the locks are made for this interpreter. Raises: SetupError."""
    found = sys.version_info[:2]
    if not OLDEST <= found <= NEWEST:
        raise SetupError(
            f"Python {found[0]}.{found[1]} is not supported: 3.11 or 3.12 is needed; "
            "name one with `make PYTHON=/path/to/python3.12 ...`"
        )


def has_nvidia_gpu() -> bool:
    """Return whether the NVIDIA driver answers."""
    program = shutil.which("nvidia-smi")
    return program is not None and subprocess.run([program, "-L"], capture_output=True).returncode == 0


def install_system_packages(*, browser: bool = False) -> None:
    """Install missing packages with apt, as root or by passwordless sudo.

    Raises: SetupError with the exact line to run if neither is possible.
    """
    missing = _missing_packages(browser)
    if not missing:
        return
    names = " ".join(missing)
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    allowed = not sudo or (
        shutil.which("sudo") and subprocess.run([*sudo, "true"], capture_output=True).returncode == 0
    )
    line = f"apt-get update && apt-get install -y --no-install-recommends {names}"
    if not shutil.which("apt-get") or not allowed:
        raise SetupError(f"system packages are missing and may not be installed from here; run: "
                         f"sudo sh -c '{line}'")  # fmt: skip
    say(f"   system packages: installing {names}")
    done = _run([*sudo, "sh", "-c", line], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if done.returncode != 0:
        raise SetupError(f"apt could not install {names}: {_last_line(done)}")


def build(name: str) -> None:
    """Build `.venv/<name>` from `<name>/requirements.txt`. Raises: SetupError."""
    lock = _lock(name)
    changes = _changes(lock)
    venv = VENVS / name

    def install() -> None:
        _check_disk()
        _run_uv(["venv", "--quiet", "--clear", "--python", sys.executable, str(venv)])
        _run_uv(["pip", "install", "--quiet", "--python", str(venv), *_options(changes), "-r", str(lock)])
        proof = _run([python(name), "-c", PROOFS[name]], env=service_environment())
        if proof.returncode != 0:
            raise SetupError(f"it does not import: {_last_line(proof)}")

    _once(venv / ".finechat-stamp", [lock, *changes.values()], install)


def add(name: str, lock: Path) -> None:
    """Install one more lock file into `.venv/<name>`. Raises: SetupError."""
    venv, changes = VENVS / name, _changes(lock)
    command = ["pip", "install", "--quiet", "--python", str(venv), *_options(changes), "-r", str(lock)]
    stamp = venv / f".finechat-stamp-{lock.stem}"
    _once(stamp, [lock, *changes.values()], lambda: _run_uv(command))


def build_trainer(profile: str) -> None:
    """Build `.venv/trainer`, with lm-eval if the profile asks for benchmarks. Raises: SetupError.

    If a profile cannot be read, the trainer reports what is wrong with it.
    """
    build("trainer")
    command = [python("trainer"), "-m", "trainer", "run", "--dry-run", "--config", profile]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0 and json.loads(done.stdout)["evaluate"]["benchmarks"]:
        add("trainer", BENCHMARKS)


def python(name: str) -> str:
    """Return the interpreter of a service's environment."""
    return str(VENVS / name / "bin" / "python")


def service_environment() -> dict[str, str]:
    """Return our processes' environment. It keeps compiled modules, which save ten seconds a start."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def end_with_parent() -> None:
    """Make Linux end a child if this process is killed (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _lock(name: str) -> Path:
    """Return the service's lock; on NVIDIA machines trainer and API have another one."""
    cuda = ROOT / name / "requirements-cuda.txt"
    return cuda if cuda.is_file() and has_nvidia_gpu() else ROOT / name / "requirements.txt"


def _changes(lock: Path) -> dict[str, Path]:
    """Return the files next to a lock that exclude or override dependencies."""
    variant = lock.stem.removeprefix("requirements")
    files = {option: lock.with_name(f"{option}{variant}.txt") for option in ("excludes", "overrides")}
    return {option: file for option, file in files.items() if file.is_file()}


def _options(changes: dict[str, Path]) -> list[str]:
    return [part for option, file in changes.items() for part in (f"--{option}", str(file))]


def _missing_packages(browser: bool) -> list[str]:
    missing = []
    if importlib.util.find_spec("ensurepip") is None:
        missing.append(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")
    if not has_nvidia_gpu() and not _has_library("libnuma.so.1"):  # vLLM's CPU build links to it
        missing.append("libnuma1")
    if browser and not shutil.which("chromium"):
        missing += ["chromium", "fonts-dejavu-core"]
    if browser and not _has_library("libatomic.so.1"):  # Playwright's node links to it
        missing.append("libatomic1")
    return missing


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def uv() -> Path:
    """Return uv, installed in an environment of its own; it installs a service in seconds from its cache."""
    tools = VENVS / "tools"
    uv = tools / "bin" / "uv"
    stamp = tools / ".finechat-stamp"
    if not (stamp.is_file() and stamp.read_text() == UV and uv.is_file()):
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(tools)],
            [str(tools / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", UV],
        ):
            done = _run(command)
            if done.returncode != 0:
                raise SetupError(f"{UV} could not be installed: {_last_line(done)}")
        stamp.write_text(UV)
    return uv


def _uv_environment() -> dict[str, str]:
    """Return uv's variables for this machine's wheels, because uv does not read pip's settings."""
    environment = dict(os.environ)
    if links := find_links():
        environment.setdefault("UV_FIND_LINKS", ",".join(links))
    return environment


def find_links() -> list[str]:
    """Return the folders and pages of wheels that pip's settings name."""
    return (os.environ.get("PIP_FIND_LINKS") or _pip_setting("global.find-links")).split()


def _pip_setting(key: str) -> str:
    pip = VENVS / "tools" / "bin" / "pip"
    done = subprocess.run([str(pip), "config", "get", key], capture_output=True, text=True)
    return done.stdout.strip()


def _once(stamp: Path, inputs: Sequence[Path], install: Callable[[], None]) -> None:
    """Install unless the stamp, which is written last, says that exactly these files were installed."""
    digest = hashlib.sha256(sys.version.encode())
    for file in inputs:
        digest.update(file.read_bytes())
    if stamp.is_file() and stamp.read_text() == digest.hexdigest():
        return
    label = f"   environment {stamp.parent.name}"
    say(f"{label}: installing {inputs[0].relative_to(ROOT)}")
    begun = time.monotonic()
    try:
        install()
    except SetupError as error:
        raise SetupError(
            f"environment {stamp.parent.name} could not be built: {error}. Run the same command "
            "again: complete downloads are kept"
        ) from None
    stamp.write_text(digest.hexdigest())
    say(f"{label}: ready after {time.monotonic() - begun:.1f} s")


def _run_uv(arguments: list[str]) -> None:
    done = _run([str(uv()), *arguments], env=_uv_environment())
    if done.returncode != 0:
        raise SetupError(_last_line(done))


def _check_disk() -> None:
    VENVS.mkdir(exist_ok=True)
    free_gib = shutil.disk_usage(VENVS).free / 2**30
    if free_gib < NEEDED_DISK_GIB:
        raise SetupError(
            f"{free_gib:.1f} GiB are free under {VENVS}, {NEEDED_DISK_GIB} are needed; free some"
        )


def _run(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, capture_output=True, text=True, preexec_fn=end_with_parent)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return " ".join(lines[-2:])[:400] or f"exit {done.returncode}"
