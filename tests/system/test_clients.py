"""Other people's clients as they come: an address, a key and a model's name, and nothing else is set.

Each runs in a process of its own, offline, without our warnings filter: what they warn about is theirs.
These are the ones that install in seconds; `make test-clients` runs all of bench/roster.py.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import clients
from bench.load import ROOT, Service
from bench.roster import CLIENTS
from tests.support.system import KEY

TESTS = ROOT / ".venv" / "tests"
IN_OUR_ENVIRONMENT = (
    "openai for Python, chat",
    "openai for Python, responses",
    "LiteLLM",
    "LangChain",
)
FOR_NODE = ("openai for Node, chat", "openai for Node, responses")


def unexplained(service: Service, name: str, environment: Path | None = None) -> dict[str, str]:
    """Run a client's steps. Return the failures that bench/roster.py does not lay at another's door."""
    [client] = [client for client in CLIENTS if client.name == name]
    target = clients.Target(service.url, KEY, service.model)
    return clients.unexplained(name, clients.run(client, target, environment or clients.install(client)))


@pytest.mark.parametrize("name", IN_OUR_ENVIRONMENT)
def test_a_client_works_as_it_comes(service: Service, name: str) -> None:
    assert unexplained(service, name, TESTS) == {}


@pytest.mark.skipif(not shutil.which("npm"), reason="no npm")
@pytest.mark.parametrize("name", FOR_NODE)
def test_a_client_for_node_works_as_it_comes(service: Service, name: str) -> None:
    assert unexplained(service, name) == {}


TASK = """
task: colors
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""


def test_lm_eval_measures_through_the_chat_endpoint(service: Service, tmp_path: Path) -> None:
    rows = [{"question": f"What is {number} and {number}?", "answer": str(2 * number)} for number in range(4)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "colors.yaml").write_text(TASK.replace("FILE", str(data)))
    address = f"base_url={service.url}/v1/chat/completions"
    arguments = ["-m", "lm_eval", "run", "--model", "local-chat-completions", "--tasks", "colors",
                 "--model_args", f"model={service.model},{address}", "--include_path", str(tmp_path),
                 "--apply_chat_template", "--output_path", str(tmp_path / "results"),
                 "--log_samples"]  # fmt: skip
    _run(ROOT / ".venv/trainer/bin/python", arguments, tmp_path)
    [found] = (tmp_path / "results").rglob("results_*.json")
    assert json.loads(found.read_text())["n-samples"]["colors"]["effective"] == 4
    [samples] = (tmp_path / "results").rglob("samples_*.jsonl")
    assert all(json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines())


def _run(python: Path, arguments: list[str], home: Path) -> None:
    environment = {
        **os.environ,
        "OPENAI_API_KEY": KEY,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home / "hf"),
    }
    done = subprocess.run(
        [str(python), *arguments], cwd=home, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
