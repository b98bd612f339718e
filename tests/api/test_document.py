"""The served OpenAPI document is exact: schemathesis asks by it, rightly and wrongly, and reads answers."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.fuzz import run_schemathesis
from tests.support.api import KEY, MODEL, House

pytestmark = pytest.mark.anyio


async def test_every_request_is_answered_as_the_document_says(
    make_house: Callable[..., House], tmp_path: Path
) -> None:
    """bench/endurance.py does it with 20,000 cases and the real engine."""
    async with make_house(key=KEY).serving() as url:
        found = await asyncio.to_thread(run_schemathesis, url, MODEL, f"Bearer {KEY}", "all", 15, tmp_path)
    assert found["passed"], found["output"]
    assert found["cases"] > 300
