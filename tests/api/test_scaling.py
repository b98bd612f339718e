"""How many replicas Ray Serve is told to have. Needs api/requirements-ray.txt, which no other test does."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="api/requirements-ray.txt is not installed: it doubles vLLM's import")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, at Ray's imports
    from api.replicas import desired_replicas


@pytest.mark.parametrize(
    ("loads", "replicas"),
    [([], 1), ([0.0], 1), ([0.8], 1), ([0.5, 0.5], 2), ([1.5, 1.5], 4), ([9.0], 4)],
    ids=["nothing known yet", "idle", "full", "shared", "behind", "more than there may be"],
)
def test_there_are_as_many_replicas_as_the_load_fills(loads: list[float], replicas: int) -> None:
    context: Any = SimpleNamespace(
        aggregated_metrics={"load": dict(enumerate(loads))} if loads else None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
    )
    assert desired_replicas(context) == (replicas, {})
