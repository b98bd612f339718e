"""Data sets of the Hub, against a Hub on loopback: what is read, and the sentence where something fails."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.support import ROOT
from tests.support.hub import Hub, Repository
from trainer.source_name import HubName

TOKEN = "hf_of_somebody_who_may"


def rows(word: str, count: int = 3) -> list[dict[str, str]]:
    return [{"instruction": f"{word}{i}", "output": f"{word}{i}!"} for i in range(count)]


def lines(word: str) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(word)).encode()


def table(word: str, count: int = 3) -> bytes:
    written = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows(word, count)), written)
    return written.getvalue()


def card(*configs: str) -> bytes:
    return ("---\nconfigs:\n" + "".join(configs) + "---\n").encode()


SPLIT = "  - split: {}\n    path: {}\n"
REPOSITORIES = {
    "o/lines": Repository({"README.md": b"A set.\n", "train.jsonl": lines("t")}),
    "o/splits": Repository(
        {
            f"data/{side}-00000-of-00001.parquet": table(word)
            for side, word in (("train", "t"), ("validation", "v"), ("test", "x"))
        }
    ),
    "o/many": Repository(
        {
            "README.md": card(
                "- config_name: default\n  data_files:\n",
                *(SPLIT.format(name, f"{name}.jsonl") for name in ("train", "small", "test")),
            ),
            **{f"{name}.jsonl": lines(name) for name in ("train", "small", "test")},
        }
    ),
    "o/sft": Repository(
        {
            "README.md": card(
                "- config_name: default\n  data_files:\n",
                *(SPLIT.format(name, f"{name}.jsonl") for name in ("train_sft", "train_gen", "test_sft")),
            ),
            **{f"{name}.jsonl": lines(name) for name in ("train_sft", "train_gen", "test_sft")},
        }
    ),
    "o/subsets": Repository(
        {
            "README.md": card(
                "- config_name: en\n  data_files: en.jsonl\n", "- config_name: de\n  data_files: de.jsonl\n"
            ),
            "en.jsonl": lines("en"),
            "de.jsonl": lines("de"),
        }
    ),
    "o/tagged": Repository({"train.jsonl": lines("t")}, revisions=("main", "v1.0")),
    "o/gated": Repository({"train.jsonl": lines("t")}, token=TOKEN, gated=True),
    "o/private": Repository({"train.jsonl": lines("t")}, token=TOKEN),
    "o/limited": Repository({"train.jsonl": lines("t")}, limits=1),
    "o/cut": Repository({"train.parquet": table("t", 5000)}, broken=1),
    "o/fault": Repository({"train.jsonl": lines("t")}, fault=503),
    "o/empty": Repository({"README.md": b"Soon.\n"}),
    "o/mixed": Repository({"a.jsonl": lines("t"), "b.jsonl": b'{"other": 1}\n'}),
    "o/broken": Repository({"train.jsonl": b'{"instruction": "a", "output": "b"}\n{"instruction"\n'}),
    "o/script": Repository({"script.py": b"import datasets\n"}),
}  # fmt: skip


class Reader:
    """A process that reads sources by the Hub at an address."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TQDM_DISABLE": "1",
            **settings,
        }
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-m", "tests.support.hub_reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
            cwd=ROOT,
        )
        self.said: list[str] = []

    def ask(self, source: str, check: bool = False) -> dict[str, Any]:
        """Return the sides and the error of a source."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"source": source, "check": check}) + "\n")
        self._process.stdin.flush()
        self.said = []
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                answer: dict[str, Any] = json.loads(line.removeprefix("ANSWER "))
                return answer
            self.said.append(line.strip())
        raise AssertionError(f"the reader ended: {self.said}")

    def texts(self, source: str) -> dict[str, list[str]]:
        """Return side → the questions of its rows."""
        answer = self.ask(source)
        assert answer["error"] is None
        return {side: [value["instruction"] for _, value in found] for side, found in answer["rows"].items()}

    def error(self, source: str, check: bool = False) -> str:
        error = str(self.ask(source, check)["error"])
        assert "\n" not in error
        return error

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(REPOSITORIES) as served:
        yield served


@pytest.fixture(scope="module")
def reader(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    started = Reader(tmp_path_factory.mktemp("home"), HF_ENDPOINT=hub.address)
    yield started
    started.close()


def test_a_data_set_of_one_split_is_rows_to_divide(reader: Reader) -> None:
    assert reader.texts("hub:o/lines") == {"train": ["t0", "t1", "t2"]}
    assert reader.ask("hub:o/lines")["rows"]["train"][0][0] == "o/lines:0"


def test_the_splits_of_a_data_set_are_kept(reader: Reader) -> None:
    sides = reader.texts("hub:o/splits")
    assert {side: texts[0] for side, texts in sides.items()} == {
        "train": "t0", "validation": "v0", "test": "x0"
    }  # fmt: skip
    assert reader.ask("hub:o/splits")["rows"]["test"][0][0] == "o/splits#test:0"


def test_a_split_by_its_name_is_rows_to_divide(reader: Reader) -> None:
    assert reader.texts("hub:o/splits#test") == {"train": ["x0", "x1", "x2"]}
    assert reader.texts("hub:o/sft#train_gen")["train"][0] == "train_gen0"


def test_a_split_that_is_no_side_is_named_with_its_rows(reader: Reader) -> None:
    assert set(reader.texts("hub:o/many")) == {"train", "test"}
    assert reader.said == ["o/many: not read are the splits small (3 rows)"]


def test_a_subset_and_a_revision_are_read(reader: Reader, hub: Hub) -> None:
    assert reader.texts("hub:o/subsets:de") == {"train": ["de0", "de1", "de2"]}
    assert reader.texts("hub:o/tagged@v1.0") == {"train": ["t0", "t1", "t2"]}
    assert hub.asked("/datasets/o/tagged/resolve/v1.0/", "HEAD")


@pytest.mark.parametrize(
    "source", ["hub:o/lines", "hub:o/tagged@v1.0", "hub:o/subsets:de", "hub:o/splits#test", "hub:o/cut"]
)
def test_the_commit_that_a_source_has_is_recorded(reader: Reader, hub: Hub, source: str) -> None:
    repository = hub.repositories[HubName.parse(source).repository]
    assert reader.ask(source)["commits"] == {source: repository.commit}


def test_a_download_that_breaks_off_goes_on_from_there(reader: Reader, hub: Hub) -> None:
    assert len(reader.texts("hub:o/cut")["train"]) == 5000
    begun, resumed = hub.asked("/stored/")[-2:]
    assert not begun and 0 < int(resumed.removeprefix("bytes=").removesuffix("-"))


def test_too_many_requests_are_waited_for(reader: Reader, hub: Hub) -> None:
    assert reader.texts("hub:o/limited") == {"train": ["t0", "t1", "t2"]}
    assert hub.repositories["o/limited"].limits == 0


def test_a_check_leaves_a_busy_hub_to_the_loading(reader: Reader, hub: Hub) -> None:
    hub.repositories["o/limited"].limits = 1
    assert reader.ask("hub:o/limited", check=True)["error"] is None


@pytest.mark.slow
def test_a_hub_that_stays_busy_is_told(reader: Reader, hub: Hub) -> None:
    hub.repositories["o/busy"] = Repository({"train.jsonl": lines("t")}, limits=1000)
    assert reader.error("hub:o/busy") == (
        "data set o/busy cannot be loaded, because the Hub has had too many requests from here (429): run "
        "the same command again after 0 seconds, or set HF_TOKEN, which is allowed more"
    )


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:o/gated", "o/gated is gated: accept its terms on its page"),
        ("hub:o/private", "o/private is not on the Hub, or HF_TOKEN has no access to it: check the name"),
        ("hub:o/nothing", "o/nothing is not on the Hub"),
        ("hub:o/lines@v9", "o/lines has no revision v9: give a branch, a tag or a commit"),
    ],
)
def test_what_cannot_be_had_is_told_before_any_work_and_when_loading(
    reader: Reader, source: str, message: str, check: bool
) -> None:
    assert message in reader.error(source, check)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:o/splits#dev", "o/splits has no split dev: it has train, validation, test"),
        ("hub:o/sft", "train_gen, test_sft: name the one to train on, as in hub:o/sft#train_sft"),
        ("hub:o/subsets", "o/subsets has several subsets, en, de: name one, such as hub:o/subsets:en"),
        ("hub:o/subsets:fr", "o/subsets:fr has no subset fr: it has en, de"),
        ("hub:o/empty", "o/empty has no files that can be read as rows"),
        ("hub:o/mixed", "o/mixed has files of different columns, which make no one table"),
        ("hub:o/broken", "o/broken has a file that cannot be read: download its files"),
        ("hub:o/script", "o/script is a program, which is not run"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_what_to_do(reader: Reader, source: str, message: str) -> None:
    assert message in reader.error(source)


def test_a_fault_of_the_hub_is_told_as_one(reader: Reader) -> None:
    assert "the Hub has a fault of its own (503)" in reader.error("hub:o/fault", check=True)


def test_a_token_opens_what_it_may_read(hub: Hub, tmp_path: Path) -> None:
    allowed = Reader(tmp_path / "allowed", HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN)
    refused = Reader(tmp_path / "refused", HF_ENDPOINT=hub.address, HF_TOKEN="hf_of_another")
    for source in ("hub:o/gated", "hub:o/private"):
        assert allowed.ask(source, check=True)["error"] is None
        assert allowed.texts(source) == {"train": ["t0", "t1", "t2"]}
    assert "o/gated is gated" in refused.error("hub:o/gated")
    allowed.close()
    refused.close()


def test_without_a_network_the_cache_is_enough(hub: Hub, tmp_path: Path) -> None:
    online = Reader(tmp_path, HF_ENDPOINT=hub.address)
    online.texts("hub:o/lines")
    online.close()
    offline = Reader(tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert offline.ask("hub:o/lines", check=True)["error"] is None
    assert offline.texts("hub:o/lines") == {"train": ["t0", "t1", "t2"]}
    assert offline.ask("hub:o/lines")["commits"] == {"hub:o/lines": hub.repositories["o/lines"].commit}
    assert "o/splits is not in the cache, and HF_HUB_OFFLINE forbids the network" in offline.error(
        "hub:o/splits"
    )
    offline.close()


def test_a_hub_that_cannot_be_reached_is_told_before_any_work(tmp_path: Path) -> None:
    alone = Reader(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert alone.error("hub:o/lines", check=True) == (
        "data set o/lines cannot be loaded, because the Hub cannot be reached: run the same command with a "
        "network, or download its files and give them as data.source"
    )
    alone.close()


def test_a_folder_of_the_same_name_is_not_taken_for_the_hubs(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "o/lines").mkdir(parents=True)
    (tmp_path / "o/lines/train.jsonl").write_bytes(lines("local"))
    program = "from trainer.data.sources import read_rows; print([r.value for r in read_rows('hub:o/lines')])"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'t0'" in done.stdout and "local" not in done.stdout


@pytest.mark.slow
def test_prepare_keeps_the_splits_of_the_hub(hub: Hub, tmp_path: Path, config_file: Path) -> None:
    flags = [
        "--set",
        "data.source=hub:o/splits",
        "--set",
        "data.general=null",
        "--artifacts",
        str(tmp_path / "a"),
    ]
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "prepare", "--config", str(config_file), *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "test has rows of its own: 3 of o/splits#test" in done.stdout
    assert "3 train, 3 validation, 3 test" in done.stdout
