"""Read sources one after another in a process of its own, because the Hub's libraries read HF_ENDPOINT once.

A line of standard input is a source; a line of standard output is its sides and rows, or what a user reads.
"""

import json
import sys

from huggingface_hub import constants

from trainer.data import hub
from trainer.data.sources import read_sides
from trainer.errors import DataError
from trainer.source_name import HubName

constants.DOWNLOAD_CHUNK_SIZE = 4096  # what arrives in whole chunks is kept when a download breaks off

for line in sys.stdin:
    asked = json.loads(line)
    try:
        problem = hub.check(HubName.parse(asked["source"])) if asked["check"] else None
        commits: dict[str, str] = {}
        sides = {} if asked["check"] else read_sides(asked["source"], commits=commits)
        rows = {side: [[row.where, row.value] for row in found] for side, found in sides.items()}
        answer = {"rows": rows, "error": problem, "commits": commits}
    except DataError as error:
        answer = {"rows": {}, "error": str(error)}
    print(f"ANSWER {json.dumps(answer)}", flush=True)
