"""What the lock files promise: exact versions, the hashes of their files, and no addresses."""

import re
from pathlib import Path

import pytest

from tests.support import ROOT

LOCKS = sorted(
    {
        *ROOT.glob("*/requirements*.txt"),
        ROOT / "tests" / "pytest.txt",
        ROOT / "tests" / "fuzz.txt",
        ROOT / "tests" / "llama-cpp.txt",
    }
)
PIN = re.compile(r"([A-Za-z0-9._-]+)(\[[a-z0-9,-]+\])?==[^\s;]+( ; python_version >= '3\.11')?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.relative_to(ROOT)))
def test_a_lock_pins_every_version_with_the_hashes_of_its_files(lock: Path) -> None:
    """torch has none: its build differs by platform. `python scripts/hashes.py` writes them."""
    without = set()
    for entry in lock.read_text().replace("\\\n", " ").splitlines():
        if not entry or entry.startswith("#"):
            continue
        pin, *hashes = re.split(r"\s+(?=--hash)", entry)
        named = PIN.fullmatch(pin.strip())
        assert named, f"neither a pinned name nor a comment: {pin}"
        assert all(HASH.fullmatch(found.strip()) for found in hashes)
        if not hashes:
            without.add(named[1])
    assert without <= {"torch"}


@pytest.mark.parametrize("service", ["trainer", "api"])
def test_the_lock_for_gpus_is_read_a_line_at_a_time(service: str) -> None:
    """Tools that pack the environment for a machine without a network cut a line at its marker."""
    lines = (ROOT / service / "requirements-cuda.txt").read_text().splitlines()
    pins = [line.split(";")[0].split("#")[0].strip() for line in lines]
    assert all(PIN.fullmatch(pin) for pin in pins if re.match(r"[A-Za-z0-9]", pin))
