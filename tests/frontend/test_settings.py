import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from errors import SettingsError
from settings import load_settings
from tests.support import ROOT


@pytest.fixture(autouse=True)
def an_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTEND_API_URL", "http://127.0.0.1:8000")


def test_only_the_apis_address_must_be_set() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 7860)
    assert (settings.intro, settings.examples) == ("", ()), "those of the model, see `offer`"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FRONTEND_PORT", "abc"),
        ("FRONTEND_PORT", "0"),
        ("FRONTEND_API_URL", "localhost:8000"),
        ("FRONTEND_TEMPERATURE", "9"),
        ("FRONTEND_EXAMPLES", "/no/such/file.json"),
        ("FRONTEND_TITEL", "typo"),
        ("FRONTEND_ROOT_PATH", "chat"),
        ("FRONTEND_VOTES", "/no/such/folder/votes.jsonl"),
    ],
)
def test_wrong_variable_is_named_in_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_a_page_without_an_api_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRONTEND_API_URL")
    with pytest.raises(SettingsError, match="set FRONTEND_API_URL to the address"):
        load_settings()


def test_an_address_that_a_space_cannot_reach_is_refused_with_the_ports_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPACE_ID", "someone/chat")
    with pytest.raises(SettingsError, match=r"FRONTEND_API_URL=.*80, 443, 8080"):
        load_settings()
    monkeypatch.setenv("FRONTEND_API_URL", "https://api.example.org/v1")
    load_settings()


def test_all_wrong_variables_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_key_is_not_in_the_repr_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTEND_API_KEY", "sk-secret")
    assert "sk-secret" not in repr(load_settings())


def test_port_in_use_is_one_line_and_exit_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "app.py"],
            cwd=ROOT / "frontend",
            env={"FRONTEND_PORT": port, "FRONTEND_API_URL": "http://127.0.0.1:8000"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert port in line
    assert "FRONTEND_PORT" in line
