"""Votes on two answers: appended to a JSON Lines file, and read from it as preference rows.

    python votes.py votes.jsonl > preferences.jsonl

A preference row is TRL's (`prompt`, `chosen`, `rejected`, each a list of messages); its `conversations`
are the prompt and the chosen answer in ShareGPT's form, which the trainer reads. Ties make no row, nor do
answers to different prompts (in a later turn each model has its own answers before it). Standard library
only.
"""

import fcntl
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LEFT, RIGHT, TIE, NEITHER = VERDICTS = ("left", "right", "tie", "neither")
SHARE_GPT = {"system": "system", "user": "human", "assistant": "gpt"}


def append(path: Path, vote: dict[str, Any]) -> None:
    """One line, whole even if several processes write.

    vote: at, models, prompts, answers (left and right each), sampling, verdict
    Raises: OSError
    """
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(vote, ensure_ascii=False) + "\n")


def preferences(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A row for each vote that prefers one answer to another to the same prompt."""
    for line in lines:
        vote = json.loads(line)
        prompt, other = vote["prompts"]
        if vote["verdict"] not in (LEFT, RIGHT) or prompt != other:
            continue
        better = VERDICTS.index(vote["verdict"])
        chosen, rejected = (
            {"role": "assistant", "content": vote["answers"][side]} for side in (better, 1 - better)
        )
        yield {
            "conversations": [
                {"from": SHARE_GPT[turn["role"]], "value": turn["content"]} for turn in [*prompt, chosen]
            ],
            "prompt": prompt,
            "chosen": [chosen],
            "rejected": [rejected],
            "chosen_model": vote["models"][better],
            "rejected_model": vote["models"][1 - better],
        }


def main() -> None:
    """Rows of the named file to standard output."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: python votes.py VOTES.jsonl > preferences.jsonl, with a file of votes")
    with open(sys.argv[1], encoding="utf-8") as votes:
        for row in preferences(votes):
            print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
