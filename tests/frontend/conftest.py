"""The page runs with its own folder as root, so the tests import its modules the same way."""

import os
import sys

import pytest

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "frontend"))
os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FRONTEND_")]:
        monkeypatch.delenv(name)
