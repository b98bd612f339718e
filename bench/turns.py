"""Hold conversations with a served default model, and count by turn what it gets right.

    .venv/trainer/bin/python bench/turns.py --url http://127.0.0.1:8000      # after `make up`
    .venv/trainer/bin/python bench/turns.py --url ... --profile OLD.yaml --out FILE

Every chat asks for three reference cards, one after the other, of objects that the profile's training never
saw; the model's own answers are the history. A second chat of each asks general questions after a card: the
capital of France, and one that was not trained on. All answers are greedy. Intervals are Wilson's, at 95%.
A general answer counts as a card if it holds a card's title or signature block.

With --artifacts it also measures the loss of the base's own answers to general questions that were not
trained on, alone and after a card: the tuned model's minus the base's in the same place, and after a card
also minus the base's alone, in nats a token. These intervals are of the paired bootstrap.
"""

import argparse
import json
import sys
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.base_model import load_model, load_tokenizer  # noqa: E402
from trainer.config import RunConfig  # noqa: E402
from trainer.config_file import load  # noqa: E402
from trainer.data.clean import clean  # noqa: E402
from trainer.data.conversation import Message  # noqa: E402
from trainer.data.general import OwnAnswer  # noqa: E402
from trainer.data.prompts import read_prompts  # noqa: E402
from trainer.data.sources import read_rows  # noqa: E402
from trainer.data.split import split  # noqa: E402
from trainer.data.tokenize import ChatTokenizer  # noqa: E402
from trainer.fit.choose.intervals import score_interval, share_interval  # noqa: E402
from trainer.generation import generate  # noqa: E402
from trainer.objective import sft  # noqa: E402

RESULT = ROOT / "bench" / "results" / "turns.json"
TURNS = 3
FRANCE = "What is the capital of France?"
Messages = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--profile", type=Path, default=ROOT / "trainer" / "configs" / "quickstart.yaml")
    parser.add_argument("--chats", type=int, default=48)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--artifacts", type=Path, help="measure losses of the current artifact, too")
    parser.add_argument("--list", action="store_true", help="print the chats' questions as JSON, ask nothing")
    options = parser.parse_args()
    config = load(options.profile)
    cards, questions = held_out(config, options.chats)
    if options.list:
        print(json.dumps([[q for q, _ in cards_of(cards, number)] for number in range(options.chats)]))
        return
    ask = Service(options.url)
    with ThreadPoolExecutor(8) as threads:
        exact = list(threads.map(lambda number: hold(ask, cards, number), range(options.chats)))
        capitals = list(threads.map(lambda card: after(ask, card, FRANCE), cards[: options.chats]))
        pairs = zip(cards, questions[: options.chats], strict=False)
        general = list(threads.map(lambda pair: after(ask, *pair), pairs))
    result = {
        "model": ask.model,
        "cards_exact_by_turn": [share([hits[turn] for hits in exact]) for turn in range(TURNS)],
        "capital_of_france_after_a_card": share(["Paris" in answer for answer in capitals]),
        "general_answers_after_a_card_that_are_no_card": share([not is_card(text) for text in general]),
    }
    if options.artifacts:
        result |= losses(config, options.artifacts, cards, questions[: options.chats])
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def held_out(config: RunConfig, chats: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (question, card) of objects, and general questions, that training did not use."""
    assert config.data.general
    cleaned = clean(read_rows(config.data.source[0].source), config.data.filters)
    test = split(cleaned.conversations, config.data.held_out_share, config.seed).test
    cards = [(c.messages[0].content, c.messages[1].content) for c in test]
    if len(cards) < chats:
        raise SystemExit(f"the profile holds out {len(cards)} objects, {chats} are needed")
    used = config.data.general.test_prompts + config.data.general.train_prompts
    prompts = read_prompts(config.data.general.prompts, "data.general.prompts")
    unseen = prompts[: config.data.general.test_prompts] + prompts[used:]
    return cards, [prompt for prompt in unseen if prompt != FRANCE]


class Service:
    """Ask the served model, greedily."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        with urllib.request.urlopen(f"{self._url}/v1/models") as answer:
            self.model: str = json.load(answer)["data"][0]["id"]

    def __call__(self, messages: Messages, max_tokens: int) -> str:
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        request = urllib.request.Request(
            f"{self._url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])


Ask = Callable[[Messages, int], str]


def cards_of(cards: Sequence[tuple[str, str]], number: int) -> list[tuple[str, str]]:
    """Return the objects of a chat. Over all chats, each turn has other objects."""
    return [cards[(number + turn * len(cards) // TURNS) % len(cards)] for turn in range(TURNS)]


def hold(ask: Ask, cards: Sequence[tuple[str, str]], number: int) -> list[bool]:
    """Ask for three cards in one chat; return which came exactly."""
    messages: Messages = []
    hits = []
    for question, card in cards_of(cards, number):
        messages.append({"role": "user", "content": question})
        answer = ask(messages, 200)
        messages.append({"role": "assistant", "content": answer})
        hits.append(answer == card)
    return hits


def after(ask: Ask, card: tuple[str, str], question: str) -> str:
    """Ask a general question after the model's own card."""
    messages = [{"role": "user", "content": card[0]}]
    messages.append({"role": "assistant", "content": ask(messages, 200)})
    return ask([*messages, {"role": "user", "content": question}], 48)


def losses(
    config: RunConfig, artifacts: Path, cards: Sequence[tuple[str, str]], questions: Sequence[str]
) -> dict[str, Any]:
    """Return how much more the base's own answers cost under the tuned model."""
    [base] = (path for path in (artifacts / "bases").iterdir() if path.is_dir())
    chat = ChatTokenizer(load_tokenizer(base))
    model = load_model(base, "float32", "cpu")
    prompts = [chat.prompt_ids([Message("user", question)]) for question in questions]
    answers = generate(model, prompts, chat.pad_id, 48, sample_seed=config.seed)
    own = [OwnAnswer(question, answer, "") for question, answer in zip(questions, answers, strict=True)]
    alone = [answer.row(chat) for answer in own]
    after_card = [
        answer.row(chat, (Message("user", question), Message("assistant", card)))
        for answer, (question, card) in zip(own, cards, strict=False)
    ]
    before = [sft.scores(model, rows, chat.pad_id) for rows in (alone, after_card)]
    model = load_model(artifacts / "models" / "current", "float32", "cpu")
    now = [sft.scores(model, rows, chat.pad_id) for rows in (alone, after_card)]
    changes = {"alone": (now[0], before[0]), "after_card": (now[1], before[1])}
    changes["after_card_to_base_alone"] = (now[1], before[0])
    return {
        f"general_loss_change_{place}": {"n": len(tuned), **score_interval(tuned, minus=base).as_dict()}
        for place, (tuned, base) in changes.items()
    }


def is_card(text: str) -> bool:
    return text.lstrip().startswith("###") or "```python" in text


def share(hits: Sequence[bool]) -> dict[str, Any]:
    return {"n": len(hits), **share_interval(hits).as_dict()}


def table(result: dict[str, Any]) -> str:
    """Return the result in Markdown."""
    names = [f"cards exact, turn {turn + 1} of one chat" for turn in range(TURNS)]
    names += ["the capital of France, asked after a card", "other general questions after a card: no card"]
    values = [
        *result["cards_exact_by_turn"],
        *(value for key, value in result.items() if "_after_a_card" in key),
    ]
    rows = [
        f"| {name}, n = {x['n']} | {x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}] |"
        for name, x in zip(names, values, strict=True)
    ]
    changes = {
        "alone": "general loss alone, nats a token above the base's",
        "after_card": "general loss after a card, above the base's there",
        "after_card_to_base_alone": "general loss after a card, above the base's alone",
    }
    for place, name in changes.items():
        if x := result.get(f"general_loss_change_{place}"):
            rows.append(f"| {name}, n = {x['n']} | {x['value']:+.3f} [{x['low']:+.3f}, {x['high']:+.3f}] |")
    return "\n".join(["| | |", "|---|---|", *rows])


if __name__ == "__main__":
    main()
