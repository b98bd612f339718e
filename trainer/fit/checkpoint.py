"""Which checkpoint a killed run goes on from."""

from pathlib import Path

# The Trainer writes this file last (transformers `Trainer._save_checkpoint`), so a checkpoint that
# holds it is whole.
LAST_WRITTEN = "trainer_state.json"


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run directory, or None to start anew."""
    whole = [p.parent for p in run.glob(f"checkpoint-*/{LAST_WRITTEN}") if p.stat().st_size > 0]
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)
