"""The file of keys: read again when it changes, written whole, and never holding a secret."""

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from api.errors import SettingsError
from api.ledger import key_file
from api.ledger.key_file import create_key, read_keys, revoke_key
from api.ledger.keys import Limits
from api.ledger.memory import MemoryLedger
from api.ledger.usage import Usage
from tests.support.api import House, ask

URL = "/v1/chat/completions"
MakeHouse = Callable[..., House]
KNOWN = {"name": "a", "sha256": "0" * 64, "created_at": ""}
TWICE = json.dumps({"keys": [{"name": "a", "sha256": c * 64, "created_at": ""} for c in "01"]})


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(key_file, "CHECK_EVERY_S", 0.0)
    return tmp_path / "keys" / "keys.json"


@pytest.mark.anyio
async def test_a_key_is_kept_as_a_hash_that_only_the_owner_can_read(file: Path) -> None:
    secret = create_key(file, "ann", Limits(requests_per_minute=3))
    assert await MemoryLedger(file).find(secret.encode())
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.anyio
async def test_a_file_that_changes_is_read_again(file: Path) -> None:
    keys = MemoryLedger(file, api_key="the-one-from-outside")
    assert keys.required and await keys.find(b"the-one-from-outside")
    secret = create_key(file, "ann", Limits()).encode()
    assert await keys.find(secret)
    revoke_key(file, "ann")
    assert await keys.find(secret) is None and await keys.find(b"the-one-from-outside")


@pytest.mark.anyio
async def test_a_file_that_breaks_keeps_the_keys_that_were_known(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = create_key(file, "ann", Limits()).encode()
    keys = MemoryLedger(file)
    file.write_text("{")
    assert await keys.find(secret)
    assert caplog.text.count("keys_unreadable") == 1
    assert await keys.find(secret) and caplog.text.count("keys_unreadable") == 1


@pytest.mark.anyio
async def test_a_file_without_keys_lets_nobody_in(file: Path) -> None:
    keys = MemoryLedger(file)
    assert keys.required and await keys.find(b"") is None and await keys.find(b"x") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "valid dictionary"),
        ('{"keys": [{"name": "a b"}]}', "keys.0.name"),
        ('{"keys": [], "more": 1}', "more"),
        (json.dumps({"keys": [KNOWN | {"priority": 10}]}), "keys.0.priority"),
        (TWICE, "name a is there twice"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(file: Path, content: str, message: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(SettingsError, match=message) as refusal:
        MemoryLedger(file)
    assert "\n" not in str(refusal.value)


@pytest.mark.anyio
async def test_a_key_named_as_api_key_is_refused_next_to_it(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a key could be created once, and both would have one account."""
    secret = create_key(file, "ann", Limits())
    ledger = MemoryLedger(file, api_key="the-one-from-outside")
    file.write_text(file.read_text().replace('"ann"', '"default"'))
    with pytest.raises(SettingsError, match="'default' is the name of API_KEY") as refusal:
        MemoryLedger(file, api_key="the-one-from-outside")
    assert "\n" not in str(refusal.value)
    assert await ledger.find(secret.encode()), "a running service keeps what it knows"
    assert caplog.text.count("keys_unreadable") == 1
    found = await MemoryLedger(file).find(secret.encode())
    assert found and found.name == "default", "without API_KEY it is a name like any other"


def test_keys_made_at_once_are_all_there(file: Path) -> None:
    threads = [threading.Thread(target=create_key, args=(file, f"k{i}", Limits())) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(file)} == {f"k{i}" for i in range(8)}
    assert [name for name in os.listdir(file.parent) if name.endswith(".json")] == ["keys.json"]


@pytest.mark.anyio
async def test_a_service_opens_to_its_keys_as_they_come_and_go(make_house: MakeHouse, file: Path) -> None:
    house = make_house(keys_file=file)
    await house.load()
    secret = create_key(file, "ann", Limits())
    async with house.client(headers={"authorization": f"Bearer {secret}"}) as client:
        assert (await client.post(URL, json=ask())).status_code == 200
        revoke_key(file, "ann")
        refused = await client.post(URL, json=ask())
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert len(json.loads(file.read_text())["keys"]) == 0


@pytest.mark.anyio
async def test_each_keys_prompts_are_cached_apart_and_without_keys_together(
    make_house: MakeHouse, file: Path
) -> None:
    salts: list[list[str | None]] = []
    ann, bob = (create_key(file, name, Limits()) for name in ("ann", "bob"))
    for options in ({}, {"keys_file": file}, {"keys_file": file}):
        house = make_house(**options)
        await house.load()
        for secret in (ann, ann, bob):
            async with house.client(headers={"authorization": f"Bearer {secret}"}) as client:
                assert (await client.post(URL, json=ask())).status_code == 200
        salts.append([call["cache_salt"] for call in house.engine.calls])
    open_to_all, first, second = salts
    assert open_to_all == [None] * 3
    assert first[0] == first[1] != first[2]
    assert not set(first) & set(second), "nobody outside can know them, not even by the file of keys"


def cli(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "api", *arguments],
        env={"API_KEYS_FILE": str(file), "API_USAGE_FILE": str(file.with_name("usage.db"))},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.anyio
async def test_the_command_line_makes_lists_and_revokes(file: Path) -> None:
    made = cli(file, "keys", "create", "ann", "--requests-per-minute", "60", "--priority", "7")
    assert made.returncode == 0 and await MemoryLedger(file).find(made.stdout.strip().encode())
    listed = cli(file, "keys", "list").stdout
    assert listed.startswith("ann  made ") and "priority=7 requests_per_minute=60" in listed
    for wrong, found in (
        (("create", "ann"), "already"),
        (("create", "bob", "--tokens-per-day", "0"), "--tokens-per-day: "),
        (("revoke", "bob"), "no key named 'bob'"),
    ):
        run = cli(file, "keys", *wrong)
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (1, "", 1)
        assert found in run.stderr
    assert cli(file, "keys", "revoke", "ann").returncode == 0
    assert cli(file, "keys", "list").stdout == ""


def test_the_command_line_prints_the_usage(file: Path) -> None:
    assert "nothing has been served yet" in cli(file, "usage").stderr
    usage = Usage(file.with_name("usage.db"))
    usage.add("ann", 3, 4)
    usage.close()
    assert cli(file, "usage").stdout.endswith("ann  requests=1 prompt_tokens=3 completion_tokens=4\n")
    assert cli(file, "usage", "--day", "1999-01-01").stdout == ""


def test_a_full_disk_leaves_the_keys_as_they_were_and_no_other_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_key(file, "first", Limits())
    before = sorted(file.parent.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match=r"cannot be written: No space left on device"):
        create_key(file, "second", Limits())
    assert sorted(file.parent.iterdir()) == before
    assert [key.name for key in read_keys(file)] == ["first"]
