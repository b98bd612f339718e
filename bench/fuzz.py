"""schemathesis by the served OpenAPI document, with what fuzz_hooks.py and schemathesis.toml tell it."""

import os
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from bench.load import PYTHON, ROOT


def run_schemathesis(url: str, model: str, authorization: str, examples: int, folder: Path) -> dict[str, Any]:
    """examples: of each operation, beside the cases at every field's borders. folder: for the document."""
    program = str(PYTHON.with_name("st"))
    request = urllib.request.Request(f"{url}/openapi.json", headers={"authorization": authorization})
    with urllib.request.urlopen(request, timeout=30) as answer:
        document = folder / "openapi.json"
        document.write_bytes(answer.read())
    command = [program, f"--config-file={ROOT}/bench/schemathesis.toml", "run", str(document),
               f"--url={url}", "--checks=all", "--exclude-checks=not_a_server_error,positive_data_acceptance",
               f"--max-examples={examples}", "--continue-on-failure", "--request-timeout=30", "--seed=1",
               "--workers=4", "--generation-database=none", "--suppress-health-check=all",
               "--phases=coverage,fuzzing", "--no-color"]  # fmt: skip
    own = {"SCHEMATHESIS_HOOKS": "bench.fuzz_hooks", "PYTHONPATH": str(ROOT), "FUZZ_MODEL": model,
           "FUZZ_AUTHORIZATION": authorization}  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True)
    cases = re.search(r"(\d+) generated", done.stdout)
    return {
        "cases": int(cases[1]) if cases else 0,
        "passed": done.returncode == 0,
        "output": "\n".join(line[:500] for line in (done.stdout + done.stderr).splitlines()),
    }
