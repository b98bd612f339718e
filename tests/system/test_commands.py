"""Every command that a message, a skip reason or a document names exists."""

import re
import subprocess

from tests.support import ROOT

COMMAND = re.compile(r"`make ([a-z-]+)")


def test_every_make_target_that_is_named_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    tracked = ["git", "ls-files", "*.py", "*.yaml", "*.yml", "README.md", "docs/*.md", "api/*", "trainer/*"]
    files = subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    named = {
        (file, name)
        for file in files
        if (ROOT / file).is_file()
        for name in COMMAND.findall((ROOT / file).read_text(errors="replace"))
    }
    assert len(named) > 10
    assert {(file, name) for file, name in named if name not in targets} == set()
