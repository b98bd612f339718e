"""Settings of Redis and replicas: contradictions and an absent Redis are refused in one line."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from api.settings import Settings
from bench.load import ROOT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"redis_url": "http://x"}, "must begin with redis://"),
        ({"redis_url": "redis://:s3cret@x", "keys_file": "k"}, "API_KEYS_FILE and API_USAGE_FILE"),
        ({"redis_url": "redis://:s3cret@x", "usage_file": "u"}, "API_KEYS_FILE and API_USAGE_FILE"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        Settings(**settings)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "2"], "several replicas need API_REDIS_URL"),
        (["--replicas", "3", "--most", "2"], "--replicas 3 must be from 1 to --most 2"),
        pytest.param(
            [], "ray is not installed", marks=pytest.mark.skipif(find_spec("ray") is not None, reason="it is")
        ),
    ],
)
def test_impossible_replicas_are_refused_in_one_line(
    artifacts: Path, arguments: list[str], message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "api", "replicas", *arguments],
        env={"ARTIFACTS_DIR": str(artifacts)}, cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"finechat api: {message}")


def test_check_reports_an_unreachable_redis_in_one_line(artifacts: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "api", "check"],
        env={"API_REDIS_URL": "redis://:s3cret@127.0.0.1:1/0", "ARTIFACTS_DIR": str(artifacts)},
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        done.stderr.startswith("finechat api: API_REDIS_URL cannot be used") and done.stderr.count("\n") == 1
    )
    assert "s3cret" not in done.stderr


def test_one_process_alone_does_not_even_import_redis(artifacts: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import api.cli; from api.service import build_service\n"
        "from api.app import create_app\n"
        "from api.settings import Settings; from api.engine.artifact import read_artifact;\n"
        f"artifacts = Path({str(artifacts)!r})\n"
        "create_app(build_service(Settings(artifacts_dir=artifacts), read_artifact(artifacts), None))\n"
        "sys.exit(any(name.split('.')[0] in ('redis', 'ray') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
