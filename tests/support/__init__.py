"""Helpers that tests share. A test imports from here, never from another test or a conftest."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
