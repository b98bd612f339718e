import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import ROOT
from votes import append

PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\u2028"}]


def vote(verdict: str, **other: Any) -> dict[str, Any]:
    return {
        "models": ["base", "tuned"],
        "prompts": [PROMPT, PROMPT],
        "answers": ["a", "b"],
        "verdict": verdict,
        **other,
    }


def rows(path: Path) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "frontend" / "votes.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def test_a_vote_becomes_a_preference_row(tmp_path: Path) -> None:
    append(tmp_path / "votes.jsonl", vote("right"))
    assert rows(tmp_path / "votes.jsonl") == [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi\u2028"},
                {"from": "gpt", "value": "b"},
            ],
            "prompt": PROMPT,
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": [{"role": "assistant", "content": "a"}],
            "chosen_model": "tuned",
            "rejected_model": "base",
        }
    ]


def test_only_a_preference_for_one_answer_to_the_same_prompt_is_a_row(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    for cast in (vote("tie"), vote("neither"), vote("left", prompts=[PROMPT, PROMPT[1:]]), vote("left")):
        append(file, cast)
    assert [row["chosen_model"] for row in rows(file)] == ["base"]
    assert len(file.read_text().splitlines()) >= 4, "every vote is kept"
