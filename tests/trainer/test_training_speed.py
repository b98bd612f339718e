"""The program that measures training speed takes another shape than its own."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.slow
def test_an_engine_is_measured_on_a_random_model_of_a_shape(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "training_run.py"), "compiled-fp32", "tiny"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "BENCH_WORK": str(tmp_path), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout + done.stderr
    result = json.loads(lines[0].removeprefix("RESULT "))
    assert result["tokens_per_s"] > 0 and result["tokens_a_step"] > 128
    assert result["first_loss"] == pytest.approx(math.log(2000), rel=0.05)  # of a random model
    assert (tmp_path / "tiny" / "model.safetensors").is_file()
