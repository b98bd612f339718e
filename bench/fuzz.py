"""Run schemathesis on the served OpenAPI document, with fuzz_hooks.py and schemathesis.toml."""

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from bench.load import PYTHON, ROOT


def run_schemathesis(
    url: str, model: str, authorization: str, mode: str, examples: int, folder: Path
) -> dict[str, Any]:
    """Fuzz the API and return the outcome.

    mode: positive, negative or all. examples: number for each operation, in addition to those at the
    fields' limits.
    folder: a place for the document.
    """
    request = urllib.request.Request(f"{url}/openapi.json", headers={"authorization": authorization})
    with urllib.request.urlopen(request, timeout=30) as answer:
        document = json.loads(answer.read())
    # Otherwise most cases would be about the key, which tests/api/test_access.py and tests/system test
    # better.
    del document["security"], document["components"]["securitySchemes"]
    file = folder / "openapi.json"
    file.write_text(json.dumps(document))
    command = [
        str(PYTHON.with_name("st")),
        f"--config-file={ROOT}/bench/schemathesis.toml",
        "run",
        str(file),
        f"--url={url}",
        f"--header=Authorization: {authorization}",
        "--phases=coverage,fuzzing",
        f"--mode={mode}",
        f"--max-examples={examples}",
        "--checks=all",
        "--exclude-checks=not_a_server_error,positive_data_acceptance",  # fuzz_hooks.py has its own
        "--continue-on-failure",
        "--request-timeout=60",
        "--max-response-time=30",
        "--workers=1",  # with several threads Python 3.11's parser miscounts its recursion (cpython#106905)
        "--seed=1",
        "--generation-database=none",
        "--suppress-health-check=all",
        "--no-color",
    ]
    own = {"SCHEMATHESIS_HOOKS": "bench.fuzz_hooks", "PYTHONPATH": str(ROOT), "FUZZ_MODEL": model}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True)
    cases = re.search(r"(\d+) generated", done.stdout)
    return {
        "cases": int(cases[1]) if cases else 0,
        "passed": done.returncode == 0,
        "output": "\n".join(line[:500] for line in (done.stdout + done.stderr).splitlines()),
    }
