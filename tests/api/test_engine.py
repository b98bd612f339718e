"""What of the engine needs no vLLM to be true; the rest is in tests/system."""

from pathlib import Path

import pytest

from api.engine.artifact import read_artifact
from api.engine.engine import Engine
from api.errors import EngineFailed
from api.schema.generation import Sampling
from api.settings import Settings


@pytest.mark.anyio
async def test_who_gets_a_turn_in_an_engine_that_has_ended_is_told_that_it_failed(artifacts: Path) -> None:
    """A queue of requests can outlive the engine that they wait for by a second."""
    engine = Engine(Settings(artifacts_dir=artifacts), read_artifact(artifacts))
    engine.shutdown()
    with pytest.raises(EngineFailed):
        await anext(engine.generate("late", [1], Sampling(), 1, stream=True))
