"""Teach the small model to call functions, and count exact calls before and after, through the real API.

    .venv/trainer/bin/python bench/tool_skill.py            # writes bench/results/tool_skill.json

The program makes rows: questions with two functions on offer, answered by a call whose arguments stand in
the question, or by a text where no function fits. It trains by the ordinary command line on the quickstart's
base, serves the artifact with the base beside it, and asks questions with cities, songs and numbers that were
not in training, with `tools` and `tool_choice: auto`, greedily. A call is exact if it is the only one, with
the right name and arguments. Intervals are Wilson's, at 95%.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.config_file import load  # noqa: E402
from trainer.fit.choose.intervals import share_interval  # noqa: E402

RESULT = ROOT / "bench" / "results" / "tool_skill.json"
READY_WITHIN_S = 900
WORDS: dict[str, list[str]] = {
    "city": (
        "Oslo Lima Cairo Quito Turin Porto Delhi Perth Tunis Kyoto Dakar Bergen Leeds Basel Malmö Accra "
        "Osaka Riga Ghent Cork Split Bari Graz Lyon Nantes Bilbao Tampere Aarhus Utrecht Bremen"
    ).split(),
    "person": (
        "Anna Ben Carla David Emma Felix Greta Hugo Ines Jonas Karin Leo Mona Nils Olga Paul Rosa Simon Tara "
        "Uwe Vera Walter Yara Zoe"
    ).split(),
    "food": (
        "pizza sushi ramen tapas curry falafel tacos pancakes dumplings noodles paella burgers soup salad "
        "waffles gnocchi"
    ).split(),
    "song": [
        f"{first} {second}"
        for first in ("Blue", "Silver", "Lonely", "Summer", "Golden", "Winter")
        for second in ("River", "Morning", "Street", "Garden", "Train")
    ],
    "word": (
        "lucid brisk opaque candid frugal vivid nimble serene tacit zealous austere benign cogent docile "
        "earnest fickle genial humble idle jovial"
    ).split(),
    "message": [
        "I am late", "call me back", "dinner is ready", "the train left", "happy birthday", "see you at noon",
        "bring the keys", "the meeting moved", "I got the job", "we need milk", "good luck", "I found it",
    ],
    "minutes": [str(number) for number in range(2, 60)],
}  # fmt: skip
PLAIN = ("What is {a} plus {b}?", "Please add {a} and {b}.", "How much is {a} and {b} together?")


@dataclass(frozen=True, slots=True)
class Function:
    """A function and questions that ask for it. values: argument → the words that it is taken from."""

    name: str
    description: str
    values: dict[str, str]
    questions: tuple[str, ...]

    @property
    def tool(self) -> dict[str, Any]:
        """Return it in OpenAI's form."""
        kinds = {name: {"type": "integer" if name == "minutes" else "string"} for name in self.values}
        parameters = {"type": "object", "properties": kinds, "required": list(kinds)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


FUNCTIONS = (
    Function(
        "get_weather", "The weather in a city.", {"city": "city"},
        ("What is the weather in {city}?", "Will it rain in {city} today?", "How warm is it in {city}?"),
    ),
    Function(
        "set_timer", "Start a timer.", {"minutes": "minutes"},
        (
            "Set a timer for {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Time {minutes} minutes for me.",
        ),
    ),
    Function(
        "send_message", "Send a text.", {"to": "person", "text": "message"},
        ("Tell {to}: {text}.", "Send {to} the message: {text}.", "Write to {to}: {text}."),
    ),
    Function(
        "find_restaurant", "Restaurants by food and city.", {"food": "food", "city": "city"},
        ("Where can I eat {food} in {city}?", "Find me {food} in {city}.", "I want {food} in {city}."),
    ),
    Function(
        "play_song", "Play a song.", {"title": "song"},
        ("Play {title}.", "I would like to hear {title}.", "Put on {title}, please."),
    ),
    Function(
        "book_train", "Book a train.", {"origin": "city", "destination": "city"},
        (
            "Book a train from {origin} to {destination}.",
            "I need to get from {origin} to {destination} by rail.",
            "A ticket from {origin} to {destination}, please.",
        ),
    ),
    Function(
        "define_word", "The meaning of a word.", {"word": "word"},
        ("What does {word} mean?", "Define {word}.", "I do not know the word {word}. What is it?"),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """A question with functions. call: the right one's name and arguments; None: none fits.

    answer: the text where none fits.
    """

    text: str
    tools: list[dict[str, Any]]
    call: tuple[str, dict[str, Any]] | None
    answer: str = ""

    def row(self) -> dict[str, Any]:
        """Return it as a row of OpenAI's format."""
        answer: dict[str, Any] = {"role": "assistant", "content": self.answer}
        if self.call:
            function = {"name": self.call[0], "arguments": json.dumps(self.call[1])}
            answer = {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": function}],
            }
        return {"messages": [{"role": "user", "content": self.text}, answer], "tools": self.tools}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--port", type=int, default=8491)
    parser.add_argument("--folder", type=Path, help="keep rows, profile and artifacts there")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        train, held_out = questions(options.rows, held_out=False), questions(options.questions, held_out=True)
        artifacts = trained(folder, train)
        base = next(path for path in (artifacts / "bases").iterdir() if path.is_dir())
        manifest = json.loads((artifacts / "models/current/manifest.json").read_text())
        with served(artifacts, base, options.port) as url:
            asked = {"before": "base", "after": manifest["name"]}
            found = {when: measured(url, model, held_out) for when, model in asked.items()}
    result = {
        "base": manifest["base_model"]["id"],
        "functions": len(FUNCTIONS),
        "rows": manifest["data"]["rows"],
        "steps": manifest["training"]["steps"],
        "packages": manifest["packages"],
        **found,
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(found))


def questions(count: int, *, held_out: bool) -> list[Question]:
    """Return questions of all functions in turn, and one in eight that none fits.

    held_out: with the last third of the words, which the others do not have.
    """
    chance = random.Random(f"tool skill {held_out}")
    words = {
        kind: list[len(list) * 2 // 3 :] if held_out else list[: len(list) * 2 // 3]
        for kind, list in WORDS.items()
    }
    made: dict[str, Question] = {}
    while len(made) < count:
        offered = chance.sample(FUNCTIONS, 2)
        tools = [function.tool for function in offered]
        if chance.random() < 1 / 8:
            a, b = (chance.randint(*((60, 99) if held_out else (1, 59))) for _ in "ab")
            text = chance.choice(PLAIN).format(a=a, b=b)
            question = Question(text, tools, None, f"{a} plus {b} is {a + b}.")
        else:
            function = chance.choice(offered)
            drawn = {name: chance.choice(words[kind]) for name, kind in function.values.items()}
            arguments = {name: int(v) if name == "minutes" else v for name, v in drawn.items()}
            text = chance.choice(function.questions).format(**drawn)
            question = Question(text, tools, (function.name, arguments))
        made.setdefault(question.text, question)
    return list(made.values())


def trained(folder: Path, rows: Sequence[Question]) -> Path:
    """Train on the rows with the ordinary command, and return the artifacts directory."""
    file, profile, artifacts = folder / "rows.jsonl", folder / "tool-skill.yaml", folder / "artifacts"
    file.write_text("".join(json.dumps(question.row()) + "\n" for question in rows))
    quickstart = load(ROOT / "trainer" / "configs" / "quickstart.yaml")
    values = {
        "name": "SmolLM2-135M-tools",
        "description": "Calls functions.",
        "base": quickstart.base.model_dump(mode="json", exclude_none=True),
        "data": {"source": str(file), "max_length": 448, "validation_rows": 16, "test_rows": 32},
        "lora": {"scaling": 2.0, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
        "sweep": {"ranks": [16], "learning_rates": [3.0e-3]},
        "train": {
            "device": "cpu", "dtype": "float32", "tokens_per_step": 896, "epochs": 1, "warmup_steps": 3,
            "cooldown_share": 0.9, "max_grad_norm": 0.1, "adam_betas": [0.8, 0.95], "save_every_steps": 50,
        },
        "evaluate": {
            "samples": 8, "max_new_tokens": 64, "prompt_tokens": 24, "max_general_loss_increase": 1.0,
        },
    }  # fmt: skip
    profile.write_text(yaml.safe_dump(values))
    command = [
        sys.executable,
        "-m",
        "trainer",
        "run",
        "--config",
        str(profile),
        "--artifacts",
        str(artifacts),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return artifacts


@contextlib.contextmanager
def served(artifacts: Path, base: Path, port: int) -> Iterator[str]:
    """Serve the artifact and its base; yield the address."""
    environment = {
        **os.environ,
        "ARTIFACTS_DIR": str(artifacts),
        "API_PORT": str(port),
        "API_BASE_DIR": str(base),
        "API_MAX_MODEL_LEN": "1024",
    }
    url = f"http://127.0.0.1:{port}"
    with (artifacts / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [ROOT / ".venv/api/bin/python", "-m", "api"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while not _answers(f"{url}/health/ready"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the API is not ready: {artifacts / 'api.log'} says why")
                time.sleep(1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def measured(url: str, model: str, held_out: Sequence[Question]) -> dict[str, Any]:
    """Ask a model every question; return the shares of exact calls, and of texts where none fits."""
    with ThreadPoolExecutor(8) as threads:
        messages = list(threads.map(lambda question: ask(url, model, question), held_out))
    pairs = list(zip(held_out, messages, strict=True))
    return {
        "model": model,
        "exact_call": share([is_exact(question, message) for question, message in pairs if question.call]),
        "right_function": share([_names(m) == [q.call[0]] for q, m in pairs if q.call]),
        "no_call_where_none_fits": share(
            [not message.get("tool_calls") for q, message in pairs if not q.call]
        ),
    }


def ask(url: str, model: str, question: Question) -> dict[str, Any]:
    """Return the message that answers a question."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question.text}],
        "tools": question.tools,
        "tool_choice": "auto",
        "temperature": 0,
        "max_tokens": 64,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        message: dict[str, Any] = json.load(response)["choices"][0]["message"]
    return message


def is_exact(question: Question, message: dict[str, Any]) -> bool:
    """Return whether the answer is one call, with the right name and arguments."""
    called = message.get("tool_calls") or []
    if len(called) != 1:
        return False
    function = called[0]["function"]
    try:
        return (function["name"], json.loads(function["arguments"])) == question.call
    except ValueError:
        return False


def _names(message: dict[str, Any]) -> list[str]:
    return [call["function"]["name"] for call in message.get("tool_calls") or ()]


def share(hits: Sequence[bool]) -> dict[str, Any]:
    return {"n": len(hits), **share_interval(hits).as_dict()}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the result in Markdown."""
    lines = ["| | before | after |", "|---|---|---|"]
    for key, name in (
        ("exact_call", "exact calls"),
        ("right_function", "calls of the right function"),
        ("no_call_where_none_fits", "no call where no function fits"),
    ):
        cells = [found[when][key] for when in ("before", "after")]
        values = " | ".join(f"{x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}]" for x in cells)
        lines.append(f"| {name}, n = {cells[0]['n']} | {values} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
