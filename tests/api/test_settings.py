"""The service refuses to start unsafe, in one line that names the variable and never the key."""

import subprocess
import sys
from pathlib import Path

import pytest

from api.errors import SettingsError
from api.settings import read_settings
from conftest import KEY


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("API_HOST", host)
    assert read_settings().key is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.evil"])
def test_other_addresses_need_a_key(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("API_HOST", host)
    monkeypatch.setenv("API_KEY", "")  # what compose makes of an unset variable
    with pytest.raises(SettingsError, match="API_KEY must be set"):
        read_settings()
    monkeypatch.setenv("API_KEY", "short")
    with pytest.raises(SettingsError, match="at least 16 characters"):
        read_settings()
    monkeypatch.setenv("API_KEY", KEY)
    assert KEY not in repr(read_settings())


def test_on_loopback_any_key_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "short")
    assert read_settings().key is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_PORT", "0"),
        ("API_PORT", "http"),
        ("API_MAX_QUEUE", "0"),
        ("API_MAX_MODEL_LEN", "1e99"),
        ("API_DRAIN_TIMEOUT_S", "-1"),
        ("API_KV_CACHE_GIB", "nan"),
    ],
)
def test_wrong_value_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refusal:
        read_settings()
    assert str(refusal.value).startswith(f"{name}={value}: ")


@pytest.mark.parametrize("key", ["a key with spaces in it", "schlüssel" * 3])
def test_unusable_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("API_KEY", key)
    with pytest.raises(SettingsError, match=r"^API_KEY: ") as refusal:
        read_settings()
    assert key not in str(refusal.value)


def run_check(artifacts: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "api", "check"],
        env={"ARTIFACTS_DIR": str(artifacts), **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_check_says_what_can_be_served(artifacts: Path) -> None:
    run = run_check(artifacts)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("ok: tiny-docs (")


def test_check_fails_with_one_line_and_no_traceback(artifacts: Path) -> None:
    (artifacts / "models/tiny-r8/README.md").unlink()
    for run in (run_check(artifacts), run_check(artifacts, API_HOST="0.0.0.0")):
        assert (run.returncode, run.stdout) == (1, "")
        assert run.stderr.startswith("finechat api: ")
        assert run.stderr.count("\n") == 1
