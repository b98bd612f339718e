"""Show how front end and engine spend their time, from the stacks of `bench/serving.py --profile FOLDER`.

    python bench/stacks.py FOLDER bench/results/profile-h100.json

Input is py-spy's raw format: a line for each stack, with its frames from the outermost in, separated by
`;`, and the number of samples. It contains only running threads. A stack counts for the first of PARTS that
matches one of its frames, or else for `other`. Standard library only.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

PARTS = {  # names, and patterns of functions with their files as py-spy writes them
    "front": {
        "tokens of prompts": r"api/engine/prompt\.py",
        "vLLM's output processing": r"output_processor|detokenizer|async_llm|Engine\.generate",
        "writes": r"ChunkWriter\.write|WriteQueue",
        "frames": r"GenerationRunner._stream|api/generation/answers|api/dialects/",
        "requests": r"h11|api/http/read_queue|api/http/connection|fastapi|starlette|api/generation/runner",
        "event loop": r"^Runner\.run ",
    },
    "core": {
        "waiting for the GPU": r"Event\.synchronize",
        "sampling": r"sample_tokens",
        "running the model": r"execute_model",
        "scheduling": r"v1/core/|EngineCore\.step",
        "messages": r"process_(out|in)put_sockets",
    },
}
IDLE = re.compile(r"Condition\.wait |_worker .*thread\.py|Queue\.get |^Poller\.poll ")
SHOWN = 20


def shares(lines: list[str], parts: dict[str, str]) -> dict[str, Any]:
    """Return a profile. samples: of running threads. parts: their shares. functions: by most own time."""
    found: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in lines:
        frames, _, count = line.rstrip().rpartition(" ")
        stack = [frame for frame in frames.split(";") if frame]
        if not stack or any(IDLE.search(frame) for frame in stack[-2:]):
            continue
        names = (name for name, pattern in parts.items() if any(re.search(pattern, f) for f in stack))
        found[next(names, "other")] += int(count)
        functions[re.sub(r":\d+\)$", ")", stack[-1])] += int(count)
    samples = found.total()
    return {
        "samples": samples,
        "parts": {name: round(count / samples, 3) for name, count in found.most_common()},
        "functions": {name: round(count / samples, 3) for name, count in functions.most_common(SHOWN)},
    }


def read(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each SERVER-LENGTHS-STREAMS-PROCESS.txt in the folder."""
    rows = []
    for file in sorted(folder.glob("*-*-*-*.txt")):
        server, lengths, streams, process = file.stem.rsplit("-", 3)
        figures = shares(file.read_text().splitlines(), PARTS[process])
        rows.append(
            {"server": server, "lengths": lengths, "streams": int(streams), "process": process, **figures}
        )
    return sorted(rows, key=lambda row: (row["streams"], row["process"]))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| streams | process | what ran |", "|---|---|---|"]
    for row in rows:
        parts = ", ".join(f"{name} {share:.0%}" for name, share in row["parts"].items())
        lines.append(f"| {row['streams']} | {row['process']} | {parts} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of recorded stacks")
    parser.add_argument("result", type=Path, help="JSON file to write")
    options = parser.parse_args()
    taken = read(options.folder)
    options.result.write_text(json.dumps(taken, indent=1) + "\n")
    print(table(taken))


if __name__ == "__main__":
    main()
