"""Store votes on two answers in a JSON Lines file, and print the preference rows that it holds.

    python votes.py votes.jsonl > preferences.jsonl

A vote needs a ballot. When two models have answered, the page signs prompts and answers. The browser keeps
the signature with the chat and returns it with the vote. So nobody can vote on answers that this page did not
give, and the server stores no text before a vote. The key is in a file next to the votes: page processes that
share the votes share the key, and a ballot survives a restart.

A preference row is TRL's (`prompt`, `chosen`, `rejected`, each a list of messages). Its `conversations` are
the prompt and the chosen answer in ShareGPT's form. Ties make no row, nor do answers to different prompts (in
a later turn each model has its own answers before it). With `data.use: chosen` the trainer trains the chosen
answers, of these rows or of the file of votes itself. Standard library only.
"""

import fcntl
import hmac
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from conversations import SIDES, Ballot, Chat, Conversation, for_model, from_question
from errors import VoteRefused

LEFT, RIGHT, TIE, NEITHER = VERDICTS = ("left", "right", "tie", "neither")
SHARE_GPT = {"system": "system", "user": "human", "assistant": "gpt"}
FIELDS = {"models", "prompts", "answers", "verdict"}
ID = re.compile(rb'\{"id": "([0-9a-f]{16})"')  # the beginning of each line; much faster than to parse it
KEY_BYTES = 32
MAX_VOTE_BYTES = 2**18  # a longer comparison gets no ballot
MAX_FILE_BYTES = 2**28


class VoteFile:
    """Issue ballots for comparisons, and store one vote for each.

    Several threads and processes may use one file. Raises: OSError if it or its key cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: set[str] = set()  # ids of the ballots that were used
        self._read: tuple[int, int] = (0, 0)  # the inode of the file, and the bytes of it that were read
        with _locked(path):
            self._key = _read_or_create_key(path.with_name(f"{path.name}.key"))

    def ballot(self, chat: Chat, system_prompt: str, sampling: dict[str, Any]) -> Ballot | None:
        """Sign the last answers of both sides of `chat`; None if the vote would be too large.

        The caller must have just received both answers from the API.
        """
        ballot = Ballot(
            id=secrets.token_hex(8),
            answered_at=_now(),
            settings=json.dumps({"system_prompt": system_prompt, "sampling": sampling}),
            signature="",
        )
        if len(_line(_row(chat, ballot))) > MAX_VOTE_BYTES:
            return None
        ballot["signature"] = self._sign(chat, ballot)
        return ballot

    def cast(self, chat: Chat, verdict: str, visitor: str) -> None:
        """Append the vote of `chat`'s ballot.

        visitor: an address; the file gets a keyed hash of it, so that one visitor's votes can be counted.
        Raises: VoteRefused, and then nothing is written.
        """
        row = self._verified(chat)
        pseudonym = hmac.digest(self._key, f"visitor {visitor}".encode(), "sha256").hex()[:16]
        line = _line(row | {"at": _now(), "visitor": pseudonym, "verdict": verdict})
        try:
            with _locked(self._path) as file:
                self._read_ids()
                if row["id"] in self._known:
                    raise VoteRefused("repeated")
                size = os.fstat(file.fileno()).st_size
                if size + len(line) > MAX_FILE_BYTES:
                    raise VoteRefused("full")
                _append(file, line, size)
                self._known.add(row["id"])
        except OSError as error:
            raise VoteRefused("failed") from error

    def _verified(self, chat: Chat) -> dict[str, Any]:
        ballot = chat.get("ballot")
        if ballot is None:
            raise VoteRefused("unknown")
        signature = ballot["signature"].encode(errors="replace")
        if not hmac.compare_digest(self._sign(chat, ballot).encode(), signature):
            raise VoteRefused("unknown")
        return _row(chat, ballot)

    def _sign(self, chat: Chat, ballot: Ballot) -> str:
        """Sign everything that the vote's row is made from."""
        sides = [
            [(entry["role"], entry["content"], entry.get("model", "")) for entry in sent]
            for sent in _sent(chat)
        ]
        signed = json.dumps([ballot["id"], ballot["answered_at"], ballot["settings"], sides])
        return hmac.digest(self._key, f"ballot {signed}".encode(), "sha256").hex()

    def _read_ids(self) -> None:
        """Read which ballots all processes have used since the last call."""
        with self._path.open("rb") as file:
            state, (inode, place) = os.fstat(file.fileno()), self._read
            file.seek(place if inode == state.st_ino and place <= state.st_size else 0)
            for line in file:
                if found := ID.match(line):
                    self._known.add(found[1].decode())
            self._read = (state.st_ino, file.tell())


def _sent(chat: Chat) -> list[Conversation]:
    """Return both sides without the turns that the page no longer sent."""
    return [from_question(chat[side], chat["start"]) for side in SIDES]


def _row(chat: Chat, ballot: Ballot) -> dict[str, Any]:
    """Return prompts and answers as a line of the file holds them; each list is (left, right)."""
    settings, sides = json.loads(ballot["settings"]), _sent(chat)
    return {
        "id": ballot["id"],
        "answered_at": ballot["answered_at"],
        "models": [side[-1].get("model", "") for side in sides],
        "prompts": [for_model(side[:-1], settings["system_prompt"]) for side in sides],
        "answers": [side[-1]["content"] for side in sides],
        "sampling": settings["sampling"],
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _line(vote: dict[str, Any]) -> bytes:
    return json.dumps(vote, ensure_ascii=False).encode(errors="replace") + b"\n"


def _parse(line: str | bytes) -> dict[str, Any] | None:
    """Return the vote in `line`, or None if it holds none, as after an interrupted write."""
    try:
        vote = json.loads(line)
    except ValueError:
        return None
    return vote if isinstance(vote, dict) and vote.keys() >= FIELDS else None


def _locked(path: Path) -> FileIO:
    """Open `path` for appending. Other processes and threads wait here until it is closed."""
    file = path.open("ab", buffering=0)  # a buffer would write again when it is closed after a failure
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _append(file: FileIO, line: bytes, size: int) -> None:
    """Write all of `line`, or nothing if that fails."""
    if size and not _ends_a_line(Path(file.name)):
        line = b"\n" + line
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        os.truncate(file.fileno(), size)
        raise


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _read_or_create_key(path: Path) -> bytes:
    """Return the key in `path`. The caller must hold the lock of the votes."""
    key = path.read_bytes() if path.exists() else b""
    if len(key) != KEY_BYTES:
        key = secrets.token_bytes(KEY_BYTES)
        path.touch(mode=0o600)
        path.write_bytes(key)
    return key


def preferences(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """Yield a row for each vote that prefers one answer to another to the same prompt.

    Report on standard error how many lines hold no vote.
    """
    unreadable = 0
    for line in lines:
        vote = _parse(line)
        if vote is None:
            unreadable += 1
            continue
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
    if unreadable:
        print(f"votes.py: lines that hold no vote and were skipped: {unreadable}", file=sys.stderr)


def main() -> None:
    """Print the preference rows of the file that is named on the command line."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: python votes.py VOTES.jsonl > preferences.jsonl, with a file of votes")
    with open(sys.argv[1], "rb") as votes:
        for row in preferences(votes):
            sys.stdout.buffer.write(_line(row))


if __name__ == "__main__":
    main()
