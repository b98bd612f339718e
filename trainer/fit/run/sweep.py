"""Stage `sweep`: run every arm of the grid in its own process, stop the worse half on the way, and choose.

A finished run is never repeated, and a failed one does not stop the others. Arms of one seed see the same
rows in the same order. `sweeps/<key>/` receives `results.json` and `index.html`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_model import BaseModel
from trainer.config import RunConfig
from trainer.data.prepare import Prepared
from trainer.errors import ArmError
from trainer.files import write_json
from trainer.fit.arm import Arm, Run, Setting, arms, place_of, read_run, run_name
from trainer.fit.choose.choice import Choice, choose, survivors
from trainer.fit.choose.comparison import Standing
from trainer.fit.choose.scores import scores
from trainer.fit.choose.summary import summarise
from trainer.fit.run.checkpoint import remove_trunks
from trainer.identity import older_line, sweep_key
from trainer.objective import objective_of
from trainer.progress import say

# Runs the arms in their directories for some steps; returns those that failed, and why.
RunArms = Callable[[Mapping[Arm, Path], int | None], dict[Arm, str]]
# Writes a page next to results.json, from its content.
WritePage = Callable[[Path, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Rung:
    """The runs of the settings that no earlier rung stopped. steps: None for runs to the end."""

    steps: int | None
    runs: list[Run]


class Sweep:
    def __init__(
        self,
        config: RunConfig,
        base: BaseModel,
        prepared: Prepared,
        artifacts: Path,
        run_arms: RunArms,
        write_page: WritePage,
        keep_older: bool = False,
    ) -> None:
        """keep_older: also use runs that other code or packages made."""
        self._config = config
        places = {
            arm: place_of(config, base, prepared.fingerprint, arm, artifacts, keep_older)
            for arm in arms(config)
        }
        self._directories = {arm: place.directory for arm, place in places.items()}
        self._older = {arm: place.older.differs for arm, place in places.items() if place.older}
        self._keep_older = keep_older
        self._prepared = prepared
        self._artifacts = artifacts
        self._run_arms = run_arms
        self._write_page = write_page
        self._failed: dict[Arm, str] = {}

    def run(self) -> tuple[Setting, dict[str, Any]]:
        """Run what is unfinished, then choose; return the winner and what `results.json` holds.

        Raises: ArmError if no setting finished.
        """
        for line in self._older_lines():
            say(line)
        measure = objective_of(self._config).SCORE
        alive = list(self._directories)
        rungs: list[Rung] = []
        for steps in _rung_steps(self._config):
            rungs.append(Rung(steps, self._rung(alive, steps)))
            standing = Standing(scores(rungs[-1].runs, measure), measure)
            if not standing.scores:
                raise ArmError(f"no arm finished: {self._why_none(rungs[-1].runs)}")
            staying = survivors(standing)
            alive = [arm for arm in alive if arm.setting in staying and arm not in self._failed]
            if len(rungs) <= self._config.sweep.halvings:
                say(f"  after {steps} steps {len(staying)} of {len(standing.scores)} settings continue")
        choice = choose(standing)
        say(f"  {choice.reason}")
        if choice.power:
            say(f"  {choice.power}")
        for score in standing.left_out:
            say(f"  {score.setting.name} left the choice: it shares no seed with {choice.best.name}")
        return choice.winner, self._write(rungs, choice)

    def _rung(self, alive: Sequence[Arm], steps: int | None) -> list[Run]:
        folder = run_name(self._config, steps)
        directories = {arm: self._directories[arm] / folder for arm in alive}
        waiting = {arm: path for arm, path in directories.items() if read_run(path, arm) is None}
        noun = "arm" if len(alive) == 1 else "arms"
        say(f"  {folder}: {len(alive)} {noun}, {len(alive) - len(waiting)} finished before")
        failed = self._run_arms(waiting, steps)
        self._failed.update(failed)
        for arm in waiting.keys() - failed.keys():
            if read_run(directories[arm], arm) is None:
                raise ArmError(no_result(arm, directories[arm]))
        runs = [run for arm, path in directories.items() if (run := read_run(path, arm))]
        for run in runs:
            if run.diverged and run.arm in waiting:
                say(f"  {run.arm.name}: diverged: {run.diverged}")
        return runs

    def _older_lines(self) -> list[str]:
        """Describe the arms that other code made, one line for each way in which they differ."""
        counts = Counter(self._older.values())
        total = len(self._directories)
        return [
            older_line(f"{count} of {total} arms were", differs, self._keep_older)
            for differs, count in counts.items()
        ]

    def _why_none(self, runs: Sequence[Run]) -> str:
        why = {arm.name: reason for arm, reason in self._failed.items()}
        why.update({run.arm.name: f"diverged: {run.diverged}" for run in runs if run.diverged})
        return "; ".join(f"{name}: {reason}" for name, reason in why.items())

    def _write(self, rungs: Sequence[Rung], choice: Choice) -> dict[str, Any]:
        failed = {arm.name: why for arm, why in self._failed.items()}
        sources = [row.source for row in self._prepared.rows("validation")]
        results = summarise(self._config, [rung.runs for rung in rungs], choice, failed, sources)
        if self._keep_older and self._older:
            results["made_by_others"] = {arm.name: differs for arm, differs in self._older.items()}
        key = sweep_key(self._config, [path.name for path in self._directories.values()])
        directory = self._artifacts / "sweeps" / key[:16]
        write_json(directory / "results.json", results)
        self._write_page(directory, results)
        say(f"  the whole sweep: {directory / 'index.html'}")
        for arm, path in self._directories.items():
            if arm.setting != choice.winner:
                remove_trunks(path)
        return results


def no_result(arm: Arm, directory: Path) -> str:
    """Explain why an arm whose process succeeded has no result where this code reads it."""
    return (
        f"{arm.name} left no result in {directory}: the trainer's code or its packages changed while it ran; "
        "run the same command again"
    )


def _rung_steps(config: RunConfig) -> list[int | None]:
    """Return the steps of each rung: the sweep's, and before them its half, its quarter, ..."""
    steps = config.sweep.steps
    if steps is None:
        return [None]
    return [steps // 2**i for i in range(config.sweep.halvings, -1, -1)]
