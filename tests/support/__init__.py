"""Helpers that tests share. A test imports from here, never from another test or a conftest."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
"""The deadline for an event that must come. It only ends a test that would otherwise hang, on any machine."""
