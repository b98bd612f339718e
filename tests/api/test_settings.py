"""The service refuses to start unsafe, in one line that names the variable and never the key."""

import subprocess
import sys
from pathlib import Path

import pytest

from api.errors import SettingsError
from api.settings import read_settings, reference
from tests.support.api import KEY


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


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("API_CONFIG", str(tmp_path / "api.yaml"))
    return tmp_path / "api.yaml"


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "secrets"
    directory.mkdir()
    monkeypatch.setenv("API_SECRETS_DIR", str(directory))
    return directory


def test_environment_comes_before_file_before_secrets_before_default(
    monkeypatch: pytest.MonkeyPatch, config: Path, secrets: Path
) -> None:
    config.write_text("port: 1002\nmax_queue: 2\ncors_origins: [https://a.org]\nartifacts_dir: /other\n")
    for name, value in {"API_PORT": "1003", "API_MAX_QUEUE": "3", "api_key": f"{KEY}\n"}.items():
        (secrets / name).write_text(value)
    monkeypatch.setenv("API_PORT", "1001")
    settings = read_settings()
    assert (settings.port, settings.max_queue, settings.max_num_seqs) == (1001, 2, 64)
    assert settings.key is not None and settings.key.get_secret_value() == KEY
    assert (settings.cors_origins, settings.artifacts_dir) == (("https://a.org",), Path("/other"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port: 0\n", ": port=0: Input should be greater than or equal to 1"),
        ("key: a b\n", ": key: must be printable"),
        ("key: ''\n", ": key: must be printable"),
        ("prot: 8000\n", ": prot is not a setting"),
        ("api_port: 8000\n", ": api_port is not a setting"),
        ("- port\n", " must hold lines"),
        ("1: 2\n", " must hold lines"),
        ("port: [\n", " cannot be read"),
        (None, " cannot be read"),
    ],
    ids=ascii,
)
def test_wrong_line_of_the_file_is_refused_with_its_place(config: Path, text: str | None, said: str) -> None:
    if text is not None:
        config.write_text(text)
    with pytest.raises(SettingsError) as refusal:
        read_settings()
    line = str(refusal.value)
    assert line.startswith("API_CONFIG") and f"{config}{said}" in line and "\n" not in line
    assert "a b" not in line


def test_wrong_secret_is_refused_with_its_place(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets / "API_PORT").write_text("x")
    with pytest.raises(SettingsError, match=f"^API_SECRETS_DIR {secrets}: API_PORT=x: "):
        read_settings()
    monkeypatch.setenv("API_SECRETS_DIR", str(secrets / "gone"))
    with pytest.raises(SettingsError, match=r"^API_SECRETS_DIR=.*gone is not a directory$"):
        read_settings()


@pytest.mark.parametrize("origin", ["*", "chat.example.org", "https://a.org/", "https://a.org,", "null"])
def test_what_is_no_origin_is_refused(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("API_CORS_ORIGINS", origin)
    with pytest.raises(SettingsError, match=r"^API_CORS_ORIGINS: .* is not an origin"):
        read_settings()


def test_every_setting_is_in_help_and_docs() -> None:
    root = Path(__file__).parents[2]
    docs = (root / "docs" / "operations.md").read_text(encoding="utf-8")
    help = subprocess.run(
        [sys.executable, "-m", "api", "--help"], cwd=root, capture_output=True, text=True, timeout=120
    ).stdout
    assert {name for name, _, _ in reference()} >= {"ARTIFACTS_DIR", "API_PORT", "API_CONFIG"}
    for name, default, text in reference():
        assert text, f"{name} has no description"
        assert f"| `{name}` | {default} | {text} |" in docs
        assert f"{name} ({default})\n      {text}\n" in help


def run_check(artifacts: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "api", "check"],
        env={"ARTIFACTS_DIR": str(artifacts), **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
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
