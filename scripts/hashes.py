"""Write the hashes of every pinned version into lock files: `python scripts/hashes.py api/requirements.txt`.

The hashes are those of all files of a version, as the package index states them; nothing is installed, and
no version changes. torch gets none, because its build differs by platform and does not always come from the
index. Wheels that this machine keeps elsewhere (PIP_FIND_LINKS) do not count.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from environments import ROOT, SetupError, say, uv

PIN = re.compile(r"^([A-Za-z0-9._-]+)(\[[^\]]*\])?==([^\s;\\]+)")
HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")
WITHOUT_HASH = {"torch"}


def main(locks: list[str]) -> None:
    for name in locks:
        lock = Path(name).resolve()
        lock.write_text(with_hashes(lock.read_text()))
        say(f"{lock.relative_to(ROOT)}: written")


def with_hashes(text: str) -> str:
    """Return the lock with the index's hashes after each pin, its other lines as they are.

    Raises: SetupError if a pinned version is not on the index.
    """
    lines = [line.rstrip(" \\") for line in text.splitlines() if not line.lstrip().startswith("--hash")]
    pins = {line: match[1] for line in lines if (match := PIN.match(line))}
    known = _ask([line for line, name in pins.items() if name not in WITHOUT_HASH])
    written = []
    for line in lines:
        hashes = known[_normal(pins[line])] if pins.get(line, "torch") not in WITHOUT_HASH else []
        written += [" \\\n    ".join([line, *(f"--hash={found}" for found in hashes)])]
    return "\n".join(written) + "\n"


def _ask(pins: list[str]) -> dict[str, list[str]]:
    """Return the hashes by normalised name."""
    command = [
        str(uv()), "pip", "compile", "--quiet", "--no-config", "--no-deps", "--generate-hashes",
        "--no-header", "--no-annotate", "--python-version", "3.12",
        "--python-platform", "x86_64-manylinux_2_39", "-",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("UV_FIND_LINKS", "PIP_FIND_LINKS")}
    done = subprocess.run(command, input="\n".join(pins), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SetupError(done.stderr.strip())
    known: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if match := PIN.match(line):
            name = _normal(match[1])
        for found in HASH.findall(line):
            known.setdefault(name, []).append(found)
    return {name: sorted(hashes) for name, hashes in known.items()}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SetupError as error:
        sys.exit(f"hashes: {error}")
