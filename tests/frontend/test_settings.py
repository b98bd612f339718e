import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import FRONTEND
from errors import SettingsError
from settings import DEFAULT_EXAMPLES, load_settings


def test_defaults_need_no_environment() -> None:
    settings = load_settings()
    assert str(settings.api_url) == "http://127.0.0.1:8000/"
    assert (settings.host, settings.port) == ("127.0.0.1", 7860)
    assert settings.examples == DEFAULT_EXAMPLES


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FRONTEND_PORT", "abc"),
        ("FRONTEND_PORT", "0"),
        ("FRONTEND_API_URL", "localhost:8000"),
        ("FRONTEND_TEMPERATURE", "9"),
        ("FRONTEND_EXAMPLES", "/no/such/file.json"),
        ("FRONTEND_TITEL", "typo"),
    ],
)
def test_wrong_variable_is_named_in_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_all_wrong_variables_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTEND_PORT", "abc")
    monkeypatch.setenv("FRONTEND_MAX_TOKENS", "1")
    with pytest.raises(SettingsError, match=r"FRONTEND_PORT.*FRONTEND_MAX_TOKENS"):
        load_settings()


def test_examples_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "examples.json"
    file.write_text(json.dumps([{"title": "Greet", "prompt": "Say hello.\n  Twice."}]))
    monkeypatch.setenv("FRONTEND_EXAMPLES", str(file))
    (example,) = load_settings().examples
    assert example.prompt == "Say hello.\n  Twice."


@pytest.mark.parametrize("text", ["{", "{}", '[{"title": "x"}]', '[{"title": " ", "prompt": "x"}]'])
def test_examples_of_another_shape_are_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples.json").write_text(text)
    monkeypatch.setenv("FRONTEND_EXAMPLES", str(tmp_path / "examples.json"))
    with pytest.raises(SettingsError, match="FRONTEND_EXAMPLES"):
        load_settings()


def test_key_does_not_show_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTEND_API_KEY", "sk-secret")
    assert "sk-secret" not in repr(load_settings())


def test_port_in_use_is_one_line_and_exit_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "app.py"],
            cwd=FRONTEND,
            env={"FRONTEND_PORT": port},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert port in line
    assert "FRONTEND_PORT" in line
