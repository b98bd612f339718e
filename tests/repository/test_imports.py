"""Imports that import-linter cannot see: of the tests, and of the page's modules, which are no package."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

FORBIDDEN = {
    "frontend": ("api", "trainer", "tests", "bench"),
    "scripts": ("api", "trainer", "frontend", "tests"),
}


def imported(file: Path) -> Iterator[str]:
    """Yield the full name of every module that a file imports, also within functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_no_test_imports_another_test_or_a_conftest() -> None:
    """What tests share lives in tests/support."""
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in ROOT.glob("tests/**/*.py")
        for name in imported(file)
        if name.startswith(".")
        or name.split(".")[-1] == "conftest"
        or name.split(".")[-1].startswith("test_")
        or (name.startswith("tests.") and not name.startswith("tests.support"))
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_of_programs_imports_no_service(folder: str) -> None:
    own = {file.stem for file in (ROOT / folder).glob("*.py")}
    names = {name.split(".")[0] for file in (ROOT / folder).glob("*.py") for name in imported(file)}
    assert (names - own) & set(FORBIDDEN[folder]) == set()


def test_scripts_use_the_standard_library_only() -> None:
    own = {file.stem for file in (ROOT / "scripts").glob("*.py")}
    names = {name.split(".")[0] for file in (ROOT / "scripts").glob("*.py") for name in imported(file)}
    assert names - own - sys.stdlib_module_names == set()
